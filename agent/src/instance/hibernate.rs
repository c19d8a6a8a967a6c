//! Hibernation: the memory of a frozen instance goes to swap, and comes back when the instance is wanted.
//!
//! Only private memory is written: pages of files stay in the kernel's page cache, which gives them up by itself when memory
//! is short. What an instance has touched since it was last woken is its working set, and is read ahead at the next wake,
//! beside the thaw.

mod pages;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::start::{BoxFuture, Process};
use pages::ProcessPages;

/// Memory that is worth a failure: an instance with less stays as it is anyway.
const LITTLE: u64 = 1 << 20;

/// Instances that are written at a time: many may fall asleep at once, and wakes need processors and threads too.
static WRITERS: Semaphore = Semaphore::const_new(2);

/// As long as no working set is known, at most so much is read ahead: to read all of a larger heap takes longer than to read
/// what is needed when it is needed.
const UNKNOWN_MAX: u64 = 32 << 20;

/// Where the memory of a hibernated instance is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryUse {
    pub(crate) resident: u64,
    pub(crate) swapped: u64,
}

/// An attempt to write an instance's memory to swap, while one is under way. Dropping it ends it.
pub(super) type PageOutAttempt = Option<BoxFuture<'static, Result<MemoryUse, String>>>;

/// What is known of the memory of an instance.
#[derive(Debug, Clone, Default)]
pub(super) struct Hibernation(Arc<Mutex<WorkingSet>>);

#[derive(Debug, Default)]
struct WorkingSet {
    /// What was in memory when its memory was last written.
    pages: Vec<ProcessPages>,
    /// All of it was written then.
    written: bool,
    /// It had been the time before: `pages` are what it has touched since.
    known: bool,
}

/// Ends a page-out on another thread when its future is dropped.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Hibernation {
    /// Writes the memory of a frozen instance to swap, on a thread of its own.
    pub(super) fn page_out(
        &self,
        process: Arc<dyn Process>,
    ) -> BoxFuture<'static, Result<MemoryUse, String>> {
        let cancel = CancelOnDrop(Arc::new(AtomicBool::new(false)));
        let (set, cancelled) = (Arc::clone(&self.0), Arc::clone(&cancel.0));
        Box::pin(async move {
            let _cancel = cancel;
            let _turn = WRITERS.acquire().await;
            let paged = tokio::task::spawn_blocking(move || page_out(&process.processes(), &set, &cancelled));
            paged.await.unwrap_or_else(|error| Err(format!("the thread that writes it ended: {error}")))
        })
    }

    /// Reads the working set ahead, on a thread of its own: the instance runs meanwhile.
    pub(super) fn prefetch(&self) {
        let set = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            let pages = {
                let mut set = lock(&set);
                let bytes: u64 = set.pages.iter().map(ProcessPages::bytes).sum();
                if set.known || bytes <= UNKNOWN_MAX { std::mem::take(&mut set.pages) } else { Vec::new() }
            };
            for process in &pages {
                // What cannot be read ahead is read when it is needed.
                if let Err(error) = process.read_ahead() {
                    tracing::debug!(pid = process.pid(), "not read ahead: {error}");
                }
            }
        });
    }
}

fn lock(set: &Mutex<WorkingSet>) -> std::sync::MutexGuard<'_, WorkingSet> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

fn page_out(pids: &[i32], set: &Mutex<WorkingSet>, cancelled: &AtomicBool) -> Result<MemoryUse, String> {
    if pids.is_empty() {
        return Err("its processes are not known to the agent".into());
    }
    let pages: Vec<ProcessPages> = pids
        .iter()
        .map(|pid| ProcessPages::resident(*pid))
        .collect::<Result<_, _>>()
        .map_err(text("its memory cannot be looked at"))?;
    let bytes: u64 = pages.iter().map(ProcessPages::bytes).sum();
    {
        let mut set = lock(set);
        set.pages.clone_from(&pages);
        set.known = std::mem::take(&mut set.written);
    }
    Swap::read().map_err(text("/proc/meminfo"))?.check(bytes)?;
    for process in &pages {
        process.page_out(cancelled).map_err(text("the kernel does not write it"))?;
    }
    let mut used = MemoryUse { resident: 0, swapped: 0 };
    for pid in pids {
        let (resident, swapped) = pages::memory_of(*pid).map_err(text("its memory cannot be looked at"))?;
        used = MemoryUse { resident: used.resident + resident, swapped: used.swapped + swapped };
    }
    // It has been woken meanwhile, and nothing waits for the answer.
    if cancelled.load(Ordering::Relaxed) {
        return Ok(used);
    }
    if bytes >= LITTLE && used.swapped < bytes / 2 {
        return Err(format!(
            "the kernel wrote {} of {} MiB to swap: memory that is locked, shared or of huge pages stays, and \
             the group's swap limit may be too low",
            mib(used.swapped),
            mib(bytes)
        ));
    }
    lock(set).written = true;
    Ok(used)
}

fn text(what: &str) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// The node's swap, in bytes (proc(5), `meminfo`).
struct Swap {
    total: u64,
    free: u64,
}

impl Swap {
    fn read() -> std::io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        Ok(Self { total: pages::field(&text, "SwapTotal:"), free: pages::field(&text, "SwapFree:") })
    }

    /// Whether so much has room in it.
    fn check(&self, bytes: u64) -> Result<(), String> {
        if self.total == 0 {
            return Err("this node has no swap: add some (headstart doctor says how)".into());
        }
        if self.free < bytes {
            return Err(format!(
                "swap is full: {} of {} MiB are free, and it has {} in memory",
                mib(self.free),
                mib(self.total),
                mib(bytes)
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_without_room_in_swap_stays() {
        let (total, mib) = (64 << 20, 1 << 20);
        assert_eq!(Swap { total, free: mib }.check(mib), Ok(()));
        assert!(Swap { total, free: mib }.check(2 * mib).unwrap_err().contains("1 of 64 MiB are free"));
        assert!(Swap { total: 0, free: 0 }.check(0).unwrap_err().contains("no swap"));
    }

    #[test]
    fn what_has_no_known_process_stays() {
        let (set, cancelled) = (Mutex::default(), AtomicBool::new(false));
        assert!(page_out(&[], &set, &cancelled).unwrap_err().contains("not known"));
    }
}
