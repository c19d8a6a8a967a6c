//! What people use today, on the same function, links and database: each in a file of its own.
//!
//! The function answers with a query's result. It connects and logs in by itself while it initialises, with TLS 1.3 and
//! SCRAM-SHA-256, and keeps the connection. A request that is lost or fails is the caller's to count: nothing here tries
//! again.

mod always_warm;
mod docker_start;
mod docker_unpause;
mod runc_run;
mod socket_activate;
mod socket_proxyd;
mod wasmtime_serve;
mod workerd;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;

use crate::evidence::bench::querying;
use crate::lab::site::Site;
use crate::lab::{DockerDaemon, LabContainer, Rootfs, free_port, privilege, run};

/// Where the peers are.
#[derive(Debug)]
pub struct PeerPlace<'a> {
    /// Where clients and the database are.
    pub site: &'a Site,
    /// A daemon with a bridge from which the database is reached.
    pub docker: &'a Arc<DockerDaemon>,
}

/// One way to serve the function.
pub trait Peer: Debug {
    /// The version of what it is.
    fn version(&self) -> &str;

    /// Where clients connect.
    fn address(&self) -> SocketAddr;

    /// Whether a cold start is one of a container.
    fn starts_container(&self) -> bool;

    /// The path that is asked for.
    fn path(&self) -> &'static str {
        querying::PATH
    }

    /// Whether it is the same function; else one without a database, in another language.
    fn has_database(&self) -> bool {
        true
    }

    /// Makes the next request a cold one.
    fn cool(&mut self) -> Result<()>;

    /// What went wrong so far: nothing, in a valid comparison.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A peer, or why there is none here.
#[derive(Debug)]
pub enum PeerSetup {
    /// It is up, and cold.
    Here(Box<dyn Peer>),
    /// What is missing, and how it is had.
    Missing(String),
}

/// How a peer is brought up.
pub type StartPeer = fn(&PeerPlace<'_>) -> Result<PeerSetup>;

/// All of them, by name.
pub const ALL: [(&str, StartPeer); 8] = [
    ("always-warm", always_warm::start),
    ("docker-start", docker_start::start),
    ("docker-unpause", docker_unpause::start),
    ("runc-run", runc_run::start),
    ("systemd-socket-activate", socket_activate::start),
    ("systemd-socket-proxyd", socket_proxyd::start),
    ("wasmtime-serve", wasmtime_serve::start),
    ("workerd", workerd::start),
];

impl PeerPlace<'_> {
    /// A free address for a peer, where clients reach it.
    fn listen(&self) -> Result<SocketAddr> {
        Ok(self.site.link.host(free_port()?.port()))
    }

    fn rootfs(&self) -> Result<Rootfs> {
        querying::rootfs(self.site)
    }

    /// The function's program on this host, with what it is told.
    fn command(&self, rootfs: &Rootfs) -> Command {
        let mut command = Command::new(rootfs.path().join(rootfs.command().trim_start_matches('/')));
        command.envs(querying::direct(self.site, &rootfs.path().display().to_string()));
        command
    }
}

/// The first line that a program says about its version.
fn version(command: &mut Command) -> Result<String> {
    Ok(run(command)?.lines().next().unwrap_or_default().trim().to_owned())
}

/// Why a peer is missing without these programs.
fn missing(programs: &[&str], how: &str) -> Option<PeerSetup> {
    let absent: Vec<_> =
        programs.iter().filter(|program| !privilege::is_installed(program)).copied().collect();
    (!absent.is_empty()).then(|| PeerSetup::Missing(format!("{} is not installed: {how}", absent.join(", "))))
}

/// A container with the function, on the bridge.
fn docker_container(place: &PeerPlace<'_>) -> Result<LabContainer> {
    LabContainer::create(place.docker, &place.rootfs()?, &querying::direct(place.site, ""))
}
