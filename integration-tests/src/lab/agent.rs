//! The agent as its users run it: the binary, a configuration file, a log, an admin address.

use super::{
    claim::free_port, command::run_within, docker::Docker, metrics::Metrics, process::Process, rootfs::cargo,
    scratch::Scratch, target_dir,
};
use crate::client::{self, Reply};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::OnceLock,
    time::{Duration, Instant},
};

const BUILD_LIMIT: Duration = Duration::from_secs(1800);
const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a dropped agent may clean up before it is killed.
const DROP_LIMIT: Duration = Duration::from_secs(5);
/// The pause between two looks at a state that only the agent can change.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How an [`Agent`] is to run.
#[derive(Clone, Debug, Default)]
pub struct AgentSetup {
    interfaces: Vec<String>,
    settings: Vec<(String, String)>,
    sections: String,
    variables: Vec<(String, String)>,
    binary: Option<PathBuf>,
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

    /// Uses this Docker daemon.
    pub fn docker(self, docker: &Docker) -> Self {
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

    /// Starts the agent and waits until `/readyz` says so.
    pub fn start(self) -> Result<Agent> {
        let files = Scratch::new("agent")?;
        let (admin, config) = (free_port()?, files.path().join("headstart.toml"));
        let state_dir = files.path().join("state");
        fs::create_dir(&state_dir)?;
        fs::write(&config, self.text(admin, &state_dir))?;
        let binary = match self.binary {
            Some(path) => path,
            None => binary()?,
        };
        let mut command = Command::new(binary);
        command.args(["run", "--config"]).arg(&config).envs(self.variables);
        let agent = Agent { process: Process::spawn(&mut command)?, admin, config, state_dir, _files: files };
        agent.wait_ready()?;
        Ok(agent)
    }

    fn text(&self, admin: SocketAddr, state_dir: &Path) -> String {
        let (interfaces, state_dir) = (&self.interfaces, state_dir.display().to_string());
        let settings: String =
            self.settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        format!(
            "[agent]\ninterfaces = {interfaces:?}\nadmin = \"{admin}\"\nstate_dir = {state_dir:?}\n{settings}\n{}",
            self.sections
        )
    }
}

/// A running agent. Killed on drop; [`Agent::stop`] is the clean way.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    admin: SocketAddr,
    config: PathBuf,
    state_dir: PathBuf,
    _files: Scratch,
}

impl Agent {
    /// The address of `/metrics` and the API.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The directory for its own files.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits for a line in its log.
    pub fn wait_log(&self, text: &str, limit: Duration) -> Result<String> {
        self.process.wait_line(text, limit)
    }

    /// Asks the admin address; any status is an answer.
    pub fn ask(&self, method: &str, path: &str) -> Result<Reply> {
        client::request(self.admin, method, path, "", REQUEST_LIMIT)
            .with_context(|| format!("{method} {path}; the agent says:\n{}", self.log()))
    }

    /// `GET /metrics`.
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.success("GET", "/metrics")?)
    }

    /// `GET /api/v1/starts`.
    pub fn starts(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.success("GET", "/api/v1/starts")?)?)
    }

    /// `GET /api/v1/functions`.
    pub fn functions(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.success("GET", "/api/v1/functions")?)?)
    }

    /// Stops the function's instances: `POST /api/v1/functions/NAME/stop`.
    pub fn stop_function(&self, name: &str) -> Result<()> {
        self.success("POST", &format!("/api/v1/functions/{name}/stop")).map(drop)
    }

    /// Waits until the function is in `state` (`"cold"`, `"ready"`), and returns how the API shows it.
    pub fn wait_state(&self, name: &str, state: &str, limit: Duration) -> Result<Value> {
        self.wait_function(name, state, limit, |function| function["state"] == state)
    }

    /// Waits until `reached` accepts how the API shows the function; `what` names it in the error.
    pub fn wait_function(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        reached: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let all = self.functions()?;
            let found = all.as_array().and_then(|all| all.iter().find(|function| function["name"] == name));
            match found {
                Some(function) if reached(function) => return Ok(function.clone()),
                _ if Instant::now() >= deadline => {
                    bail!("{name} is not {what} after {limit:?}: {all}\n{}", self.log());
                }
                _ if self.process.ended_within(LOOK_AGAIN) => bail!("the agent ended:\n{}", self.log()),
                _ => {}
            }
        }
    }

    /// What its open descriptors refer to.
    pub fn open_fds(&self) -> Result<Vec<String>> {
        crate::leaks::descriptors(self.id())
    }

    /// Asks it to end (SIGTERM) and returns how it did.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.process.stop(Signal::SIGTERM, STOP_LIMIT)
    }

    /// Sends it a signal, SIGKILL for instance, and waits for its end.
    pub fn end_with(mut self, signal: Signal) -> Result<ExitStatus> {
        self.process.stop(signal, STOP_LIMIT)
    }

    fn success(&self, method: &str, path: &str) -> Result<String> {
        let reply = self.ask(method, path)?;
        ensure!((200..300).contains(&reply.status), "{method} {path}: {} {}", reply.status, reply.body);
        Ok(reply.body)
    }

    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let said = match client::get(self.admin, "/readyz", REQUEST_LIMIT) {
                Ok(reply) if reply.status == 200 => return Ok(()),
                Ok(reply) => format!("{} {}", reply.status, reply.body),
                Err(failure) => failure.to_string(),
            };
            ensure!(!self.process.ended_within(LOOK_AGAIN), "the agent ended:\n{}", self.log());
            ensure!(Instant::now() < deadline, "the agent is not ready ({said}):\n{}", self.log());
        }
    }
}

impl Drop for Agent {
    /// A killed agent leaves parked containers that nobody finds once its state directory is gone: it may clean up.
    fn drop(&mut self) {
        let _killed_in_the_end = self.process.stop(Signal::SIGTERM, DROP_LIMIT);
    }
}

/// `HEADSTART_BIN`, or the release build of this workspace, made at most once per process.
pub fn binary() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    if let Some(path) = env::var_os("HEADSTART_BIN") {
        return Ok(path.into());
    }
    let build = || {
        let mut cargo = cargo();
        run_within(BUILD_LIMIT, cargo.args(["build", "--release", "-p", "headstart-agent"]))
    };
    let built = BUILT.get_or_init(|| build().map(drop).map_err(|error| format!("{error:#}")));
    ensure!(built.is_ok(), "the agent does not build: {built:?}");
    Ok(target_dir().join("release/headstart"))
}
