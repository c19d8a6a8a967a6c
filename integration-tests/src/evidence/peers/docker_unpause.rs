//! A gateway that asks the Docker daemon at the first byte to unpause a container. It is not cold: the container, its
//! memory and its connection to the database stay, and so does what they cost.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

use super::{Peer, PeerPlace, PeerSetup};
use crate::evidence::gateway::{Gateway, GatewayUpstream, When};
use crate::lab::LabContainer;

#[derive(Debug)]
struct DockerUnpause {
    version: String,
    gateway: Gateway,
    container: Arc<LabContainer>,
}

pub(super) fn start(place: &PeerPlace<'_>) -> Result<PeerSetup> {
    let container = Arc::new(super::docker_container(place)?);
    container.start()?;
    // Its connection is there once it listens.
    drop(container.connect()?);
    let gateway = Gateway::start(When::FirstByte, place.listen()?, UnpauseUpstream(Arc::clone(&container)))?;
    let mut peer = DockerUnpause { version: place.docker.version()?, gateway, container };
    peer.cool()?;
    Ok(PeerSetup::Here(Box::new(peer)))
}

struct UnpauseUpstream(Arc<LabContainer>);

impl GatewayUpstream for UnpauseUpstream {
    fn connect(&self) -> Result<std::net::TcpStream> {
        self.0.unpause()?;
        self.0.connect()
    }
}

impl Peer for DockerUnpause {
    fn version(&self) -> &str {
        &self.version
    }

    fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    fn starts_container(&self) -> bool {
        false
    }

    fn cool(&mut self) -> Result<()> {
        self.container.pause()
    }

    fn problems(&self) -> Vec<String> {
        self.gateway.problems()
    }
}
