//! A gateway that asks the Docker daemon at the first byte to start a container that it has, on the bridge network: the
//! usual way.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

use super::{Peer, PeerPlace, PeerSetup};
use crate::evidence::gateway::{Gateway, GatewayUpstream, When};
use crate::lab::LabContainer;

#[derive(Debug)]
struct DockerStart {
    version: String,
    gateway: Gateway,
    container: Arc<LabContainer>,
}

pub(super) fn start(place: &PeerPlace<'_>) -> Result<PeerSetup> {
    let container = Arc::new(super::docker_container(place)?);
    let gateway = Gateway::start(When::FirstByte, place.listen()?, StartUpstream(Arc::clone(&container)))?;
    let version = place.docker.version()?;
    Ok(PeerSetup::Here(Box::new(DockerStart { version, gateway, container })))
}

struct StartUpstream(Arc<LabContainer>);

impl GatewayUpstream for StartUpstream {
    fn connect(&self) -> Result<std::net::TcpStream> {
        self.0.start()?;
        self.0.connect()
    }
}

impl Peer for DockerStart {
    fn version(&self) -> &str {
        &self.version
    }

    fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    fn starts_container(&self) -> bool {
        true
    }

    fn cool(&mut self) -> Result<()> {
        self.container.kill()
    }

    fn problems(&self) -> Vec<String> {
        self.gateway.problems()
    }
}
