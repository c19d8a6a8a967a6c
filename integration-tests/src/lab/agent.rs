//! The agent as its users run it: the binary, a configuration file, a log, an admin address.

mod setup;

use super::{
    command::run_within, metrics::Metrics, process::ChildProcess, profile, rootfs::cargo, target_dir,
};
use crate::lab::client::{self, HttpReply};
use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};
use serde_json::Value;
use setup::AgentPlace;
use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

pub use setup::AgentSetup;

const BUILD_LIMIT: Duration = Duration::from_secs(1800);
const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a dropped agent may clean up before it is killed.
const DROP_LIMIT: Duration = Duration::from_secs(5);
/// The pause between two looks at a state that only the agent can change.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A running agent. Killed on drop; [`RunningAgent::stop`] is the clean way.
#[derive(Debug)]
pub struct RunningAgent {
    process: ChildProcess,
    started_ns: u64,
    place: Arc<AgentPlace>,
}

/// An agent that has stopped: directories and addresses for the next one. Without a next one, a drop cleans up after a kill.
#[derive(Debug)]
pub struct StoppedAgent(Arc<AgentPlace>);

impl StoppedAgent {
    /// Starts the next agent, with the same configuration, directories and addresses, and waits until it is ready.
    pub fn start(self) -> Result<RunningAgent> {
        RunningAgent::start(self.0)
    }

    /// `headstart uninstall` with its configuration.
    pub fn uninstall(&self) -> Result<String> {
        self.0.uninstall()
    }

    /// The directory for pins.
    pub fn pin_dir(&self) -> &Path {
        self.0.pins.path()
    }
}

impl RunningAgent {
    fn start(place: Arc<AgentPlace>) -> Result<Self> {
        let agent = Self::launch(place)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    fn launch(place: Arc<AgentPlace>) -> Result<Self> {
        let started_ns = now_ns()?;
        Ok(Self { process: place.spawn()?, started_ns, place })
    }

    /// The address of `/metrics` and the API; in the agent's network, if that is its own.
    pub fn admin(&self) -> SocketAddr {
        self.place.admin
    }

    /// When its program was started, in nanoseconds of `CLOCK_MONOTONIC`, as its timelines have them.
    pub fn started_ns(&self) -> u64 {
        self.started_ns
    }

    /// The directory for what it pins; there is none while it has pinned nothing.
    pub fn pin_dir(&self) -> &Path {
        self.place.pins.path()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.place.config
    }

    /// The directory for its own files.
    pub fn state_dir(&self) -> &Path {
        &self.place.state_dir
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits for a line in its log.
    pub fn wait_log(&self, text: &str, limit: Duration) -> Result<String> {
        self.process.wait_line(text, limit)
    }

    /// Asks the admin address, or the unix socket for what is no GET; any status is an answer.
    pub fn ask(&self, method: &str, path: &str) -> Result<HttpReply> {
        let reply = match method {
            "GET" => self.place.inside(|| client::get(self.place.admin, path, REQUEST_LIMIT))?,
            _ => client::request_at(&self.admin_socket(), method, path, REQUEST_LIMIT),
        };
        reply.with_context(|| format!("{method} {path}; the agent says:\n{}", self.log()))
    }

    /// Its unix socket for requests that change something.
    pub fn admin_socket(&self) -> PathBuf {
        self.state_dir().join("admin.sock")
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
        self.operate(name, "stop")
    }

    /// Asks for an operation: `POST /api/v1/functions/NAME/OPERATION`.
    pub fn operate(&self, name: &str, operation: &str) -> Result<()> {
        self.success("POST", &format!("/api/v1/functions/{name}/{operation}")).map(drop)
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
            let reply = self.ask("GET", &format!("/api/v1/functions/{name}"))?;
            let found = (reply.status == 200).then(|| serde_json::from_str(&reply.body)).transpose()?;
            match found {
                Some(function) if reached(&function) => return Ok(function),
                _ if Instant::now() >= deadline => {
                    bail!("{name} is not {what} after {limit:?}: {}\n{}", reply.body, self.log());
                }
                _ if self.process.ended_within(LOOK_AGAIN) => bail!("the agent ended:\n{}", self.log()),
                _ => {}
            }
        }
    }

    /// Waits until a backend's pool has so many idle connections.
    pub fn wait_idle(&self, backend: &str, count: u64, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let pools: Value = serde_json::from_str(&self.success("GET", "/api/v1/backends")?)?;
            let pool = pools.as_array().into_iter().flatten().find(|pool| pool["backend"] == backend);
            if pool.and_then(|pool| pool["idle"].as_u64()) >= Some(count) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{backend} is not ready: {pools}\n{}", self.log());
            ensure!(!self.process.ended_within(LOOK_AGAIN), "the agent ended:\n{}", self.log());
        }
    }

    /// Changes its configuration file to these sections after `[agent]` and `[syn]`; the agent is not notified.
    pub fn rewrite(&self, sections: &str) -> Result<()> {
        self.place.write(sections)
    }

    /// The targets of its open descriptors.
    pub fn open_fds(&self) -> Result<Vec<String>> {
        crate::lab::leaks::descriptors(self.id())
    }

    /// Asks it to end (SIGTERM) and returns how it did.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.end(STOP_LIMIT)
    }

    fn end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status = self.process.stop(Signal::SIGTERM, limit)?;
        if status.success() {
            self.place.litter(false);
        }
        Ok(status)
    }

    /// Kills it, as a crash would: nothing is cleaned up, and instances go on.
    pub fn kill(mut self) -> Result<StoppedAgent> {
        self.place.litter(true);
        self.process.stop(Signal::SIGKILL, STOP_LIMIT)?;
        Ok(StoppedAgent(Arc::clone(&self.place)))
    }

    /// As [`RunningAgent::stop`], where another agent will follow.
    pub fn halt(mut self) -> Result<StoppedAgent> {
        let status = self.end(STOP_LIMIT)?;
        ensure!(status.success(), "{status}:\n{}", self.log());
        Ok(StoppedAgent(Arc::clone(&self.place)))
    }

    /// `headstart uninstall` with its configuration: refused while it runs.
    pub fn uninstall(&self) -> Result<String> {
        self.place.uninstall()
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
            let asked = self.place.inside(|| client::get(self.place.admin, "/readyz", REQUEST_LIMIT))?;
            let said = match asked {
                Ok(reply) if reply.status == 200 => return Ok(()),
                Ok(reply) => format!("{} {}", reply.status, reply.body),
                Err(failure) => failure.to_string(),
            };
            ensure!(!self.process.ended_within(LOOK_AGAIN), "the agent ended:\n{}", self.log());
            ensure!(Instant::now() < deadline, "the agent is not ready ({said}):\n{}", self.log());
        }
    }
}

impl Drop for RunningAgent {
    /// The agent gets time to clean up: parked containers of a killed one could not be found once its state directory is gone.
    fn drop(&mut self) {
        // After `kill` the process is gone, and the place is the next agent's business.
        if !self.process.ended_within(Duration::ZERO) {
            let _killed_in_the_end = self.end(DROP_LIMIT);
        }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of timelines and of the kernel's events.
pub fn now_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

/// `HEADSTART_BIN`, or a build of this workspace in [`profile`], made at most once per process.
pub fn binary() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    if let Some(path) = env::var_os("HEADSTART_BIN") {
        return Ok(path.into());
    }
    let build = || {
        let mut cargo = cargo();
        run_within(BUILD_LIMIT, cargo.args(["build", "--profile", profile(), "-p", "headstart-agent"]))
    };
    let built = BUILT.get_or_init(|| build().map(drop).map_err(|error| format!("{error:#}")));
    ensure!(built.is_ok(), "the agent does not build: {built:?}");
    Ok(target_dir().join(profile()).join("headstart"))
}
