//! A gateway that asks the Docker daemon at the first byte to start a container that it has, on the bridge network: the
//! usual way.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;

use super::{Found, Peer, Place};
use crate::evidence::gateway::{Gateway, Upstream, When};
use crate::lab::DockerContainer;

#[derive(Debug)]
struct DockerStart {
    version: String,
    gateway: Gateway,
    container: Arc<DockerContainer>,
}

pub(super) fn start(place: &Place<'_>) -> Result<Found> {
    let container = Arc::new(super::docker_container(place)?);
    let gateway = Gateway::start(When::FirstByte, place.listen()?, Started(Arc::clone(&container)))?;
    let version = place.docker.version()?;
    Ok(Found::Here(Box::new(DockerStart { version, gateway, container })))
}

struct Started(Arc<DockerContainer>);

impl Upstream for Started {
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
