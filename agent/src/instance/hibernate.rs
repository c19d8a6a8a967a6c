//! Hibernation: the memory of a frozen instance goes to swap, and comes back when the instance is wanted.
//!
//! Only private memory is written: pages of files stay in the kernel's page cache, which gives them up by itself when memory
//! is short. What an instance has touched since it was last woken is its working set, and is read ahead at the next wake,
//! beside the thaw.

mod pages;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::start::{BoxFuture, Process, nice};
use pages::{Bounds, ProcessPages, Target};

/// Memory that is worth a failure: an instance with less stays as it is anyway.
const LITTLE: u64 = 1 << 20;

/// Instances that are written at a time: many may fall asleep at once, and wakes need processors and threads too.
const WRITERS_MAX: usize = 2;

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

/// What is known of the memory of an instance. Dropping it ends the reading ahead.
#[derive(Debug, Default)]
pub(super) struct Hibernation {
    set: Arc<Mutex<WorkingSet>>,
    reading: Option<Cancel>,
}

#[derive(Debug, Default)]
struct WorkingSet {
    /// What was in memory when its memory was last written.
    pages: Vec<ProcessPages>,
    /// All of it was written then.
    written: bool,
    /// It had been the time before: `pages` are what it has touched since.
    known: bool,
    /// What was read ahead when it was last woken. It has not taken all of that.
    ahead: Vec<ProcessPages>,
}

/// Ends what another thread does when it is dropped.
#[derive(Debug, Default)]
struct Cancel(Arc<AtomicBool>);

impl Cancel {
    fn look(&self) -> impl Fn() -> bool + Send + 'static {
        let cancelled = Arc::clone(&self.0);
        move || cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Hibernation {
    /// Writes the memory of a frozen instance to swap, on a thread of its own.
    pub(super) fn page_out(
        &mut self,
        process: Arc<dyn Process>,
    ) -> BoxFuture<'static, Result<MemoryUse, String>> {
        self.reading = None;
        let (cancel, set) = (Cancel::default(), Arc::clone(&self.set));
        Box::pin(async move {
            // The thread keeps the turn: it may go on for a moment after this future is dropped.
            let turn = writers().acquire_owned().await;
            let cancelled = cancel.look();
            let paged = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                nice::in_background(|| page_out(&*process, &set, &cancelled))
            });
            paged.await.unwrap_or_else(|error| Err(format!("the thread that writes it ended: {error}")))
        })
    }

    /// Reads the working set ahead, on a thread of its own: the instance runs meanwhile.
    pub(super) fn wake(&mut self) {
        let mut set = lock(&self.set);
        let pages = std::mem::take(&mut set.pages);
        let bytes: u64 = pages.iter().map(ProcessPages::bytes).sum();
        if pages.is_empty() || (!set.known && bytes > UNKNOWN_MAX) {
            return;
        }
        set.ahead.clone_from(&pages);
        drop(set);
        let cancelled = self.reading.insert(Cancel::default()).look();
        tokio::task::spawn_blocking(move || {
            for process in &pages {
                // What cannot be read ahead is read when it is needed.
                if let Err(error) = process.read_ahead(&cancelled) {
                    tracing::debug!(pid = process.pid(), "not read ahead: {error}");
                }
            }
        });
    }
}

fn writers() -> Arc<Semaphore> {
    static WRITERS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(WRITERS_MAX)));
    Arc::clone(&WRITERS)
}

fn lock(set: &Mutex<WorkingSet>) -> std::sync::MutexGuard<'_, WorkingSet> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

fn page_out(
    instance: &dyn Process,
    set: &Mutex<WorkingSet>,
    cancelled: &dyn Fn() -> bool,
) -> Result<MemoryUse, String> {
    let opened = instance.processes().into_iter().map(|pid| Target::open(pid, |pid| instance.owns(pid)));
    let processes = opened
        .filter_map(Result::transpose)
        .collect::<Result<Vec<_>, _>>()
        .map_err(text("its processes cannot be opened"))?;
    if processes.is_empty() {
        return Err("its processes are not known to the agent".into());
    }
    let look = || -> Result<Vec<ProcessPages>, String> {
        let mut bounds = Bounds::default();
        let pages = processes.iter().map(|process| ProcessPages::resident(process, &mut bounds, cancelled));
        pages.collect::<Result<_, _>>().map_err(text("its memory cannot be looked at"))
    };
    let bytes = |pages: &[ProcessPages]| pages.iter().map(ProcessPages::bytes).sum::<u64>();

    let pages = look()?;
    Swap::read().map_err(text("/proc/meminfo"))?.check(bytes(&pages))?;
    let ahead = {
        let mut set = lock(set);
        if cancelled() {
            return Err(WANTED.into());
        }
        set.pages.clone_from(&pages);
        set.known = std::mem::take(&mut set.written);
        std::mem::take(&mut set.ahead)
    };
    ahead.iter().for_each(|process| process.take(cancelled));
    for process in pages.iter().chain(&ahead) {
        process.page_out(cancelled).map_err(text("the kernel does not write it"))?;
    }

    let (before, left) = (bytes(&pages), bytes(&look()?));
    let mut used = MemoryUse { resident: 0, swapped: 0 };
    for process in &processes {
        let Ok((resident, swapped)) = pages::memory_of(process.pid()) else { continue };
        used = MemoryUse { resident: used.resident + resident, swapped: used.swapped + swapped };
    }
    let mut set = lock(set);
    if cancelled() {
        return Err(WANTED.into());
    }
    if before >= LITTLE && left > before / 2 {
        return Err(format!(
            "the kernel wrote {} of {} MiB to swap: memory that is locked or of huge pages stays, and the group's \
             swap limit may be too low",
            mib(before.saturating_sub(left)),
            mib(before)
        ));
    }
    set.written = true;
    Ok(used)
}

/// Nothing waits for this answer.
const WANTED: &str = "it is wanted again";

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
}
