//! A gateway that runs a container with `runc run` at the first byte, on the host's network: a container at its quickest.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::Result;

use super::{Peer, PeerPlace, PeerSetup, missing, version};
use crate::evidence::bench::querying;
use crate::evidence::usual::Usual;
use crate::lab::{Rootfs, free_port};

#[derive(Debug)]
struct RuncRun {
    version: String,
    usual: Usual,
    _rootfs: Rootfs,
}

pub(super) fn start(place: &PeerPlace<'_>) -> Result<PeerSetup> {
    if let Some(missing) = missing(&["runc"], "apt-get install runc") {
        return Ok(missing);
    }
    let (rootfs, upstream) = (place.rootfs()?, free_port()?);
    let listen = upstream.to_string();
    let variables = querying::direct(place.site, "");
    let mut environment: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.push(("HEADSTART_LISTEN", &listen));
    let usual = Usual::start(&rootfs, &environment, place.listen()?, upstream)?;
    let version = version(Command::new("runc").arg("--version"))?;
    Ok(PeerSetup::Here(Box::new(RuncRun { version, usual, _rootfs: rootfs })))
}

impl Peer for RuncRun {
    fn version(&self) -> &str {
        &self.version
    }

    fn address(&self) -> SocketAddr {
        self.usual.address()
    }

    fn starts_container(&self) -> bool {
        true
    }

    fn cool(&mut self) -> Result<()> {
        self.usual.stop()
    }

    fn problems(&self) -> Vec<String> {
        self.usual.problems()
    }
}
