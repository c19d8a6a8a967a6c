//! The handler's process, and the end of everything it has started.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use headstart_wire::CONTROL_FD_ENV;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::api::{self, RuntimeApi};
use crate::desk::Desk;

/// How long the handler may take to stop when the function ends: 500 ms, as on Lambda for a function with an internal extension
/// ("Understanding the Lambda execution environment lifecycle" in its developer guide).
const STOP_WAIT: Duration = Duration::from_millis(500);

/// Where the handler's code is. Images for Lambda have the variable; elsewhere it is the directory of the start.
const TASK_ROOT: &str = "LAMBDA_TASK_ROOT";

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandlerExit {
    Code(i32),
    Signal(Signal),
}

impl HandlerExit {
    /// The exit code of a shell that reports it.
    pub(crate) fn code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal as i32,
        };
        u8::try_from(code).unwrap_or(u8::MAX)
    }
}

impl fmt::Display for HandlerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by {signal}"),
        }
    }
}

/// Collects processes that have ended. The first process of an instance inherits those whose parents are gone, and they
/// count among its processes until then.
pub(crate) struct Reaper {
    last: watch::Receiver<Option<(Pid, HandlerExit)>>,
    wanted: watch::Sender<Option<Pid>>,
}

impl Reaper {
    /// Begins to collect.
    pub(crate) fn start() -> io::Result<Self> {
        let mut ended = signal(SignalKind::child())?;
        let (found, last) = watch::channel(None);
        let (wanted, of) = watch::channel(None);
        tokio::spawn(async move {
            while ended.recv().await.is_some() {
                while let Some((pid, exit)) = collect() {
                    if *of.borrow() == Some(pid) {
                        found.send_replace(Some((pid, exit)));
                    }
                }
            }
        });
        Ok(Self { last, wanted })
    }

    /// How this child has ended. Nothing else waits for its end.
    async fn exit(&self, pid: Pid) -> HandlerExit {
        let mut last = self.last.clone();
        let found = last.wait_for(|last| matches!(last, Some((known, _)) if *known == pid)).await;
        // The task that collects ends with the runtime only.
        found.ok().and_then(|last| *last).map_or(HandlerExit::Code(0), |(_, exit)| exit)
    }
}

fn collect() -> Option<(Pid, HandlerExit)> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => return Some((pid, HandlerExit::Code(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => return Some((pid, HandlerExit::Signal(signal))),
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// A running handler, and the Runtime API that it talks to. Killed on drop.
pub(crate) struct Handler<'a> {
    pid: Pid,
    reaper: &'a Reaper,
    api: RuntimeApi,
}

impl<'a> Handler<'a> {
    /// Serves the Runtime API, with a new socket so that nothing of an earlier handler is left in its queue, and starts the
    /// program.
    pub(crate) async fn start(
        command: &[OsString],
        desk: &Arc<Desk>,
        reaper: &'a Reaper,
    ) -> io::Result<Self> {
        let api = RuntimeApi::start(Arc::clone(desk)).await?;
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).process_group(0);
        command.env_remove(CONTROL_FD_ENV).env("AWS_LAMBDA_RUNTIME_API", api::ADDRESS);
        if let (None, Ok(here)) = (env::var_os(TASK_ROOT), env::current_dir()) {
            command.env(TASK_ROOT, here);
        }
        let child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{} cannot be run: {error}", program.display()))
        })?;
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default());
        // Nothing has been collected since it was made: collecting is a task of this thread.
        reaper.wanted.send_replace(Some(pid));
        Ok(Self { pid, reaper, api })
    }

    /// How it has ended.
    pub(crate) async fn exited(&self) -> HandlerExit {
        self.reaper.exit(self.pid).await
    }

    /// Asks it to stop, and kills what is left of it.
    pub(crate) async fn stop(&mut self) {
        let _ = kill(self.pid, Signal::SIGTERM);
        let _ = timeout(STOP_WAIT, self.exited()).await;
        self.kill().await;
    }

    /// Kills it with everything that it has started, and ends its Runtime API.
    pub(crate) async fn kill(&mut self) {
        kill_all(self.pid);
        // No process outlives SIGKILL for long, unless the kernel is at work for it.
        let _ = timeout(STOP_WAIT, self.exited()).await;
        self.api.end().await;
    }
}

impl Drop for Handler<'_> {
    fn drop(&mut self) {
        kill_all(self.pid);
    }
}

fn kill_all(handler: Pid) {
    // The first process of a PID namespace is not killed by this (kill(2)), and all others are the handler's.
    let killed = if getpid() == Pid::from_raw(1) {
        kill(Pid::from_raw(-1), Signal::SIGKILL)
    } else {
        killpg(handler, Signal::SIGKILL)
    };
    // An error means that there is none.
    let _ = killed;
}
