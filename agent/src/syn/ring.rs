//! The rings of events, read without polling: what authenticated clients want goes first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{MapData, RingBuf};
use headstart_ebpf::event::SynEvent;
use tokio::io::Interest;

use crate::fd;

/// One ring that the kernel half writes.
pub type Ring = RingBuf<MapData>;

/// Both rings. They are separate so that a flood cannot push out authenticated clients.
pub struct Rings {
    /// Of clients with a key.
    pub authenticated: Ring,
    /// Of everybody else.
    pub open: Ring,
}

/// What came out of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Somebody asks for a function.
    Event(SynEvent),
    /// An event from before this agent knew its functions: a pinned ring keeps what was written while no agent
    /// ran, and its numbers may mean other functions.
    Stale,
    /// A record of another length than ours.
    Malformed,
}

/// Records in a row before others get their turn on the thread: a flood must not stop the agent.
pub const BURST_MAX: u32 = 256;

/// Takes records out of both rings; clones take from the same ones.
///
/// Who waits to be woken for them ([`read`]) is not the only one who looks: the kernel wakes it later than it writes,
/// and on a busy machine later than the same client's connection is there to be seen.
#[derive(Clone)]
pub struct Reader {
    rings: Arc<Mutex<Rings>>,
    since_ns: u64,
}

impl Reader {
    /// Events before `since_ns` (`CLOCK_MONOTONIC`) are stale.
    #[must_use]
    pub fn new(rings: Rings, since_ns: u64) -> Self {
        Self { rings: Arc::new(Mutex::new(rings)), since_ns }
    }

    /// The next record of the authenticated ring, or else of the open one.
    pub fn take(&self) -> Option<Seen> {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let Rings { authenticated, open } = &mut *rings;
        if let Some(record) = authenticated.next() {
            return Some(judge(&record, self.since_ns));
        }
        open.next().map(|record| judge(&record, self.since_ns))
    }

    /// The descriptors that become readable with records.
    fn descriptors(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((rings.authenticated.as_fd().try_clone_to_owned()?, rings.open.as_fd().try_clone_to_owned()?))
    }
}

/// Hands every event to `seen`, until a ring cannot be watched any more.
///
/// # Errors
/// When a ring cannot be watched.
pub async fn read(reader: Reader, mut seen: impl FnMut(Seen)) -> io::Result<()> {
    let (authenticated, open) = reader.descriptors()?;
    let authenticated = fd::register(authenticated, Interest::READABLE)?;
    let open = fd::register(open, Interest::READABLE)?;
    let mut burst = 0;
    loop {
        if let Some(record) = reader.take() {
            seen(record);
            burst += 1;
            if burst == BURST_MAX {
                burst = 0;
                tokio::task::yield_now().await;
            }
            continue;
        }
        // A record that came meanwhile makes its ring ready again.
        tokio::select! {
            ready = authenticated.readable() => ready?.clear_ready(),
            ready = open.readable() => ready?.clear_ready(),
        }
    }
}

fn judge(record: &[u8], since_ns: u64) -> Seen {
    match SynEvent::from_bytes(record) {
        Some(event) if event.timestamp_ns >= since_ns => Seen::Event(event),
        Some(_) => Seen::Stale,
        None => Seen::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_judged_by_length_and_time() {
        let mut record = [0; SynEvent::SIZE];
        record[..8].copy_from_slice(&7_u64.to_ne_bytes());
        assert!(matches!(judge(&record, 7), Seen::Event(event) if event.timestamp_ns == 7));
        assert_eq!(judge(&record, 8), Seen::Stale);
        assert_eq!(judge(&record[1..], 0), Seen::Malformed);
        assert_eq!(judge(&[], 0), Seen::Malformed);
    }
}
