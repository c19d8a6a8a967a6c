//! The rings of events, read without polling: what authenticated clients want goes first.

use std::io;

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

/// Open records in a row before others get their turn on the thread: a flood must not stop the agent.
const BURST_MAX: u32 = 256;

/// Hands every event to `seen`, the authenticated ring always emptied before the next of the open one, until a
/// ring cannot be read any more. Events before `since_ns` (`CLOCK_MONOTONIC`) are stale.
///
/// # Errors
/// When a ring cannot be watched.
pub async fn read(rings: Rings, since_ns: u64, mut seen: impl FnMut(Seen)) -> io::Result<()> {
    let mut authenticated = fd::register(rings.authenticated, Interest::READABLE)?;
    let mut open = fd::register(rings.open, Interest::READABLE)?;
    let mut burst = 0;
    loop {
        while let Some(record) = authenticated.get_mut().next() {
            seen(judge(&record, since_ns));
        }
        if let Some(record) = open.get_mut().next() {
            seen(judge(&record, since_ns));
            burst += 1;
            if burst == BURST_MAX {
                burst = 0;
                tokio::task::yield_now().await;
            }
            continue;
        }
        // A record that came meanwhile makes its ring ready again.
        tokio::select! {
            ready = authenticated.readable_mut() => ready?.clear_ready(),
            ready = open.readable_mut() => ready?.clear_ready(),
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
