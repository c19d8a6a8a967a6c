//! Reads the rings of events without polling, events of authenticated clients first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{MapData, RingBuf};
use headstart_ebpf::event::SynEvent;
use tokio::io::Interest;

use crate::fd;

/// A ring that the eBPF programs write.
pub type Ring = RingBuf<MapData>;

/// Both rings. They are separate, so that a flood cannot displace events of authenticated clients.
pub struct Rings {
    /// Events of clients with a key.
    pub authenticated: Ring,
    /// Events of all other clients.
    pub open: Ring,
}

/// A record of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingRecord {
    /// A client asks for a function.
    Event(SynEvent),
    /// An event from before this agent wrote its functions. A pinned ring keeps events from the time without an agent,
    /// and their numbers may belong to other functions.
    Stale,
    /// A record of another length.
    Malformed,
}

/// Most records in a row before the task yields, so that a flood does not stop the agent's other tasks.
pub const BURST_MAX: u32 = 256;

/// Takes records from both rings; clones take from the same rings.
///
/// Besides the task that waits for records ([`read`]), the owner of the functions' state takes them: the kernel wakes the
/// task after the write, and on a busy machine after the same client's connection is visible.
#[derive(Clone)]
pub struct Reader {
    rings: Arc<Mutex<Rings>>,
    since_ns: u64,
}

impl Reader {
    /// Events before `since_ns` (nanoseconds of `CLOCK_MONOTONIC`) are stale.
    #[must_use]
    pub fn new(rings: Rings, since_ns: u64) -> Self {
        Self { rings: Arc::new(Mutex::new(rings)), since_ns }
    }

    /// The next record of the authenticated ring, or else of the open one.
    pub fn take(&self) -> Option<RingRecord> {
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

/// Passes every record to `on_record`. It ends only with an error.
///
/// # Errors
/// When a ring cannot be watched.
pub async fn read(reader: Reader, mut on_record: impl FnMut(RingRecord)) -> io::Result<()> {
    let (authenticated, open) = reader.descriptors()?;
    let authenticated = fd::register(authenticated, Interest::READABLE)?;
    let open = fd::register(open, Interest::READABLE)?;
    let mut burst = 0;
    loop {
        if let Some(record) = reader.take() {
            on_record(record);
            burst += 1;
            if burst == BURST_MAX {
                burst = 0;
                tokio::task::yield_now().await;
            }
            continue;
        }
        // A record that arrives meanwhile makes its ring readable again.
        tokio::select! {
            ready = authenticated.readable() => ready?.clear_ready(),
            ready = open.readable() => ready?.clear_ready(),
        }
    }
}

fn judge(record: &[u8], since_ns: u64) -> RingRecord {
    match SynEvent::from_bytes(record) {
        Some(event) if event.timestamp_ns >= since_ns => RingRecord::Event(event),
        Some(_) => RingRecord::Stale,
        None => RingRecord::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_judged_by_length_and_time() {
        let mut record = [0; SynEvent::SIZE];
        record[..8].copy_from_slice(&7_u64.to_ne_bytes());
        assert!(matches!(judge(&record, 7), RingRecord::Event(event) if event.timestamp_ns == 7));
        assert_eq!(judge(&record, 8), RingRecord::Stale);
        assert_eq!(judge(&record[1..], 0), RingRecord::Malformed);
        assert_eq!(judge(&[], 0), RingRecord::Malformed);
    }
}
