//! How an agent is to run, and where: all that it has in common with the one after it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::{READY_LIMIT, RunningAgent, binary};
use crate::lab::claim::free_port;
use crate::lab::command::run;
use crate::lab::docker::DockerDaemon;
use crate::lab::manager::Manager;
use crate::lab::netns::Namespace;
use crate::lab::pins::PinDirectory;
use crate::lab::process::ChildProcess;
use crate::lab::scratch::Scratch;

/// How a [`RunningAgent`] runs.
///
/// What a test does not ask for is off: no interface is watched, the socket lookup is not, nothing stays pinned.
#[derive(Clone, Debug, Default)]
pub struct AgentSetup {
    interfaces: Vec<String>,
    settings: Vec<(String, String)>,
    syn: Vec<(String, String)>,
    lookup: bool,
    pinned: bool,
    sections: String,
    variables: Vec<(String, String)>,
    binary: Option<PathBuf>,
    manager: Option<Manager>,
    namespace: Option<Namespace>,
}

impl AgentSetup {
    /// Watches `interface` for SYNs. With none, functions start when a connection is complete.
    pub fn interface(mut self, interface: &str) -> Self {
        self.interfaces.push(interface.to_owned());
        self
    }

    /// Sets a key of `[agent]` to `value`, which is TOML: strings bring their quotes.
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets a key of `[syn]` to `value`, which is TOML. The directory for pins is given.
    pub fn syn(mut self, key: &str, value: &str) -> Self {
        self.syn.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Whether the socket lookup is a sensor too.
    pub fn lookup(mut self, on: bool) -> Self {
        self.lookup = on;
        self
    }

    /// What is in the kernel stays there when the agent ends, as it does for users.
    pub fn pinned(mut self) -> Self {
        self.pinned = true;
        self
    }

    /// Uses this Docker daemon.
    pub fn docker(self, docker: &DockerDaemon) -> Self {
        self.setting("docker_socket", &format!("{:?}", docker.socket()))
    }

    /// Adds to the configuration: `[[backend]]` and `[[function]]` sections.
    pub fn config(mut self, sections: &str) -> Self {
        self.sections.push_str(sections);
        self.sections.push('\n');
        self
    }

    /// Sets an environment variable of the agent.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs this program instead of `HEADSTART_BIN` or the one cargo builds.
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = Some(path.to_owned());
        self
    }

    /// Runs it as a service of `manager`.
    pub fn manager(mut self, manager: &Manager) -> Self {
        self.manager = Some(manager.clone());
        self
    }

    /// Runs it in a network of its own: its interfaces, its loopback, and its admin address are there.
    /// (`/sys` stays that of the host.)
    pub fn namespace(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// Starts the agent and waits until `/readyz` says so.
    pub fn start(self) -> Result<RunningAgent> {
        RunningAgent::start(Arc::new(AgentPlace::new(self)?))
    }

    /// Starts an agent that may never be ready, and waits until it is up.
    pub fn start_unready(self) -> Result<RunningAgent> {
        let agent = RunningAgent::launch(Arc::new(AgentPlace::new(self)?))?;
        agent.wait_log("headstart is up", READY_LIMIT)?;
        Ok(agent)
    }

    fn text(&self, place: &AgentPlace, sections: &str) -> String {
        let lines = |settings: &[(String, String)]| -> String {
            settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
        };
        let (admin, state_dir) = (place.admin, place.state_dir.display().to_string());
        let (interfaces, pin_dir) = (&self.interfaces, place.pins.path().display().to_string());
        format!(
            "[agent]\ninterfaces = {interfaces:?}\nadmin = \"{admin}\"\nstate_dir = {state_dir:?}\n{}\n\
             [syn]\npin_dir = {pin_dir:?}\nlookup = {}\n{}\n{}",
            lines(&self.settings),
            self.lookup,
            lines(&self.syn),
            sections
        )
    }
}

/// What stays the same from one agent to the next: configuration, directories, addresses.
#[derive(Debug)]
pub(super) struct AgentPlace {
    setup: AgentSetup,
    pub(super) admin: SocketAddr,
    pub(super) config: PathBuf,
    pub(super) state_dir: PathBuf,
    binary: PathBuf,
    /// An agent was killed here, and none has cleaned up since.
    littered: AtomicBool,
    pub(super) pins: PinDirectory,
    _files: Scratch,
}

impl AgentPlace {
    fn new(setup: AgentSetup) -> Result<Self> {
        let files = Scratch::new("agent")?;
        let state_dir = files.path().join("state");
        fs::create_dir(&state_dir)?;
        let binary = match &setup.binary {
            Some(path) => path.clone(),
            None => binary()?,
        };
        let place = Self {
            admin: free_port()?,
            config: files.path().join("headstart.toml"),
            state_dir,
            binary,
            littered: AtomicBool::new(false),
            pins: PinDirectory::new()?,
            _files: files,
            setup,
        };
        place.write(&place.setup.sections)?;
        Ok(place)
    }

    /// Writes the configuration, with these sections at the end.
    pub(super) fn write(&self, sections: &str) -> Result<()> {
        Ok(fs::write(&self.config, self.setup.text(self, sections))?)
    }

    /// Starts an agent here.
    pub(super) fn spawn(&self) -> Result<ChildProcess> {
        let mut command = match &self.setup.manager {
            Some(manager) => manager.command(&self.binary)?,
            None => Command::new(&self.binary),
        };
        command.args(["run", "--config"]).arg(&self.config);
        if !self.setup.pinned {
            command.arg("--unpin");
        }
        for (name, value) in &self.setup.variables {
            command.env(name, value);
        }
        self.inside(|| ChildProcess::spawn(&mut command))?
    }

    /// Does `work` where the agent's loopback is.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        match &self.setup.namespace {
            Some(namespace) => namespace.enter(work),
            None => Ok(work()),
        }
    }

    /// An agent is killed here now, or one has cleaned up.
    pub(super) fn litter(&self, killed: bool) {
        self.littered.store(killed, Ordering::Relaxed);
    }

    /// `headstart uninstall`: what an agent leaves, in the kernel and of containers.
    pub(super) fn uninstall(&self) -> Result<String> {
        let mut command = Command::new(&self.binary);
        self.inside(|| run(command.args(["uninstall", "--config"]).arg(&self.config)))?
    }
}

impl Drop for AgentPlace {
    fn drop(&mut self) {
        if self.littered.load(Ordering::Relaxed)
            && let Err(error) = self.uninstall()
        {
            eprintln!("what a killed agent left stays: {error:#}");
        }
    }
}
