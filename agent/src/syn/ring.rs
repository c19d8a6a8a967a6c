//! The ring of SYN events, read without polling.

use std::io;

use aya::maps::{MapData, RingBuf};
use headstart_ebpf::event::SynEvent;
use tokio::io::Interest;

use crate::fd;

/// The ring that the kernel half writes.
pub type Ring = RingBuf<MapData>;

/// Hands every event to `seen`, in order, until the ring cannot be read any
/// more. A record of another length than ours is left out and counted.
///
/// # Errors
/// When the ring cannot be watched.
pub async fn read(ring: Ring, mut seen: impl FnMut(Option<SynEvent>)) -> io::Result<()> {
    let mut ring = fd::register(ring, Interest::READABLE)?;
    loop {
        let mut guard = ring.readable_mut().await?;
        while let Some(record) = guard.get_inner_mut().next() {
            seen(SynEvent::from_bytes(&record));
        }
        guard.clear_ready();
    }
}
