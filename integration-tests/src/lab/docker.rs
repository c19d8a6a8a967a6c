//! Docker: the daemon that runs here already, or one of our own that leaves the host's network alone.

use super::{
    bridge::Bridge,
    client,
    command::{run, run_within},
    process::ChildProcess,
    scratch::{Scratch, unique},
    sweep,
};
use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Docker before 24 writes a key outside all directories it is given.
const STRAY_KEY: &str = "/etc/docker/key.json";
/// A file beside the daemon's own: the key was not there before.
const KEY_IS_STRAY: &str = "key-is-stray";
const SYSTEM_SOCKET: &str = "/var/run/docker.sock";

/// A Docker daemon. If it is our own, it stops on drop and takes everything it made with it.
#[derive(Debug)]
pub struct DockerDaemon {
    socket: PathBuf,
    own: Option<Daemon>,
}

#[derive(Debug)]
struct Daemon {
    process: ChildProcess,
    cgroup: String,
    files: Scratch,
    /// It is there until the daemon has ended.
    bridge: Option<Bridge>,
}

impl DockerDaemon {
    /// The daemon of this process. The first call starts it, and it stops when the last clone is dropped.
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<DockerDaemon>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(docker) = shared.upgrade() {
            return Ok(docker);
        }
        let docker = Arc::new(Self::find_or_start()?);
        *shared = Arc::downgrade(&docker);
        Ok(docker)
    }

    fn find_or_start() -> Result<Self> {
        let configured = env::var("DOCKER_HOST").ok();
        let configured = configured.as_deref().and_then(|host| host.strip_prefix("unix://"));
        let socket = PathBuf::from(configured.unwrap_or(SYSTEM_SOCKET));
        if answers(&socket) { Ok(Self { socket, own: None }) } else { Self::start() }
    }

    /// Starts a daemon of its own. Its containers have no network.
    pub fn start() -> Result<Self> {
        Self::start_own(None)
    }

    /// Starts a daemon of its own whose containers are on a bridge, see [`DockerDaemon::bridge`].
    pub fn bridged() -> Result<Self> {
        Self::start_own(Some(Bridge::new()?))
    }

    /// Where overlay2 does not work (on an overlay), vfs does.
    fn start_own(bridge: Option<Bridge>) -> Result<Self> {
        let name = bridge.as_ref().map_or("none", Bridge::name);
        let mut docker = Self::start_with("overlay2", name).or_else(|first| {
            Self::start_with("vfs", name)
                .map_err(|second| anyhow!("with overlay2: {first:#}\nwith vfs: {second:#}"))
        })?;
        if let Some(daemon) = &mut docker.own {
            daemon.bridge = bridge;
        }
        Ok(docker)
    }

    fn start_with(driver: &str, bridge: &str) -> Result<Self> {
        let files = Scratch::new("docker")?;
        let (socket, cgroup) = (files.path().join("docker.sock"), unique("docker"));
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(files.path().join("data"));
        command.arg("--exec-root").arg(files.path().join("run"));
        command.arg("--pidfile").arg(files.path().join("pid"));
        command.arg("--host").arg(format!("unix://{}", socket.display()));
        command.arg(format!("--storage-driver={driver}")).arg(format!("--cgroup-parent=/{cgroup}"));
        command.arg(format!("--bridge={bridge}"));
        command.args(["--iptables=false", "--ip6tables=false"]);
        command.args(["--ip-forward=false", "--userland-proxy=false"]);
        if !Path::new(STRAY_KEY).exists() {
            fs::write(files.path().join(KEY_IS_STRAY), "")?;
        }
        let process = ChildProcess::spawn(&mut command)?;
        process.wait_line("API listen on", START_LIMIT)?;
        let docker = Self { socket, own: Some(Daemon { process, cgroup, files, bridge: None }) };
        docker.run(&["version"]).context("talking to our own dockerd")?;
        Ok(docker)
    }

    /// Its socket, for `DOCKER_HOST=unix://...`.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether this is a daemon of our own.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// The bridge of its containers, in a daemon of our own that has one.
    pub fn bridge(&self) -> Option<&Bridge> {
        self.own.as_ref()?.bridge.as_ref()
    }

    /// The `docker` client, pointed at this daemon.
    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("unix://{}", self.socket.display()));
        command
    }

    /// Runs the client and returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run_within(STOP_LIMIT, self.command().args(arguments))
    }

    /// A request to its API, without a body: the status and the body of the answer.
    pub fn ask(&self, method: &str, path: &str) -> Result<(u16, String)> {
        let reply = client::request_at(&self.socket, method, path, STOP_LIMIT)?;
        Ok((reply.status, reply.body))
    }

    /// The daemon's version.
    pub fn version(&self) -> Result<String> {
        let version = self.run(&["version", "--format", "{{.Server.Version}}"])?;
        Ok(format!("Docker {}", version.trim()))
    }

    /// Ids of all containers, also stopped ones, that match a filter such as `label=headstart`.
    pub fn containers(&self, filter: &str) -> Result<Vec<String>> {
        let ids = self.run(&["ps", "--all", "--quiet", "--no-trunc", "--filter", filter])?;
        Ok(ids.lines().map(str::to_owned).collect())
    }

    /// Removes the containers that match a filter, running or not.
    pub fn remove_containers(&self, filter: &str) -> Result<()> {
        for id in self.containers(filter)? {
            self.run(&["rm", "--force", "--volumes", &id])?;
        }
        Ok(())
    }
}

impl Drop for DockerDaemon {
    fn drop(&mut self) {
        if self.own.is_none() {
            return;
        }
        // Otherwise the daemon gives each of them ten seconds to end.
        let left = self.run(&["ps", "--all", "--quiet"]).unwrap_or_default();
        if !left.is_empty() {
            let _ = run(self.command().args(["rm", "--force", "--volumes"]).args(left.lines()));
        }
        if let Some(Daemon { process, cgroup, files, .. }) = &mut self.own {
            if let Err(error) = process.stop(Signal::SIGTERM, STOP_LIMIT) {
                eprintln!("{error:#}");
            }
            sweep::remove_cgroups(cgroup);
            remove_stray_key(files.path());
        }
    }
}

/// Removes the key that the daemon with these files wrote, if it did.
pub(super) fn remove_stray_key(files: &Path) {
    if files.join(KEY_IS_STRAY).exists() {
        let _ = fs::remove_file(STRAY_KEY).and_then(|()| fs::remove_dir("/etc/docker"));
    }
}

/// Whether a daemon answers on `socket`.
fn answers(socket: &Path) -> bool {
    client::request_at(socket, "GET", "/_ping", ANSWER_LIMIT).is_ok_and(|reply| reply.status == 200)
}
