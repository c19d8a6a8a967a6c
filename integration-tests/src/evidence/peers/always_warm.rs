//! A process that always runs, with its connection: no cold start, and the price of that. What the others are compared
//! with.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::{Peer, PeerPlace, PeerSetup};
use crate::evidence::gateway::reach;
use crate::lab::{ChildProcess, Rootfs};

#[derive(Debug)]
struct AlwaysWarm {
    address: SocketAddr,
    process: ChildProcess,
    _rootfs: Rootfs,
}

pub(super) fn start(place: &PeerPlace<'_>) -> Result<PeerSetup> {
    let (rootfs, address) = (place.rootfs()?, place.listen()?);
    let process = ChildProcess::spawn(place.command(&rootfs).env("HEADSTART_LISTEN", address.to_string()))?;
    drop(reach(address, &process)?);
    Ok(PeerSetup::Here(Box::new(AlwaysWarm { address, process, _rootfs: rootfs })))
}

impl Peer for AlwaysWarm {
    fn version(&self) -> &'static str {
        "the function alone"
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn starts_container(&self) -> bool {
        false
    }

    fn cool(&mut self) -> Result<()> {
        anyhow::ensure!(!self.process.ended_within(Duration::ZERO), "it ended: {}", self.process.log());
        Ok(())
    }
}
