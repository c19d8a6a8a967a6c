//! systemd's socket activation of a process, without a container: it is started at the first connection, which it accepts
//! itself.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{Peer, PeerPlace, PeerSetup, missing, version};
use crate::evidence::bench::querying;
use crate::lab::{ChildProcess, Rootfs};

pub(super) const PROGRAM: &str = "systemd-socket-activate";
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct SocketActivate {
    version: String,
    activated: ActivatedUnit,
    _rootfs: Rootfs,
}

pub(super) fn start(place: &PeerPlace<'_>) -> Result<PeerSetup> {
    if let Some(missing) = missing(&[PROGRAM], "apt-get install systemd") {
        return Ok(missing);
    }
    let (rootfs, address) = (place.rootfs()?, place.listen()?);
    let root = rootfs.path().display().to_string();
    let program = rootfs.path().join(rootfs.command().trim_start_matches('/'));
    let variables = querying::direct(place.site, &root);
    let activated = ActivatedUnit::listen(address, variables, vec![program.display().to_string()])?;
    let version = version(Command::new(PROGRAM).arg("--version"))?;
    Ok(PeerSetup::Here(Box::new(SocketActivate { version, activated, _rootfs: rootfs })))
}

impl Peer for SocketActivate {
    fn version(&self) -> &str {
        &self.version
    }

    fn address(&self) -> SocketAddr {
        self.activated.address
    }

    fn starts_container(&self) -> bool {
        false
    }

    fn cool(&mut self) -> Result<()> {
        self.activated.again()
    }
}

/// `systemd-socket-activate`, which becomes what it starts.
#[derive(Debug)]
pub(super) struct ActivatedUnit {
    pub(super) address: SocketAddr,
    variables: Vec<(&'static str, String)>,
    command: Vec<String>,
    process: ChildProcess,
}

impl ActivatedUnit {
    pub(super) fn listen(
        address: SocketAddr,
        variables: Vec<(&'static str, String)>,
        command: Vec<String>,
    ) -> Result<Self> {
        let process = spawn(address, &variables, &command)?;
        Ok(Self { address, variables, command, process })
    }

    /// Ends what runs, and listens again.
    pub(super) fn again(&mut self) -> Result<()> {
        self.process.stop(Signal::SIGKILL, LIMIT)?;
        self.process = spawn(self.address, &self.variables, &self.command)?;
        Ok(())
    }
}

fn spawn(address: SocketAddr, variables: &[(&str, String)], words: &[String]) -> Result<ChildProcess> {
    let mut command = Command::new(PROGRAM);
    command.arg("--listen").arg(address.to_string());
    for (name, value) in variables {
        command.arg("--setenv").arg(format!("{name}={value}"));
    }
    let process = ChildProcess::spawn(command.args(words))?;
    process.wait_line("Listening on", LIMIT)?;
    Ok(process)
}
