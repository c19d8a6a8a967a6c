//! `start`: parked containers, released at the SYN.
//!
//! ```text
//!                                   ┌──freeze──┐
//!                                   │          v
//! prepare ──> Parked ──release──> running    frozen
//!               │                   │ ^        │
//!               │                exited └─thaw─┘
//!               └────── discard ────┴──> remove
//! ```
//!
//! Everything that does not depend on the request (root file system,
//! namespaces, cgroup) is done by [`FunctionRuntime::prepare`]; [`Process::release`]
//! only lets the container exec. Each runtime is one file beside this one, with
//! the folder of its name, and only these name what it drives. The rest of the agent
//! asks [`Drivers`].
//!
//! | file | isolates with | passes the control socket | parks in |
//! |---|---|---|---|
//! | `oci` | an OCI runtime | inherited, descriptor 3 | the runtime's init, before its exec |
//! | [`process`] | its own namespaces | inherited, descriptor 3 | a copy of the agent's program |
//! | `docker` | a daemon | bind-mounted socket file | a container that is created, not started |
//!
//! The first two share `local`: their containers become children of the agent, which must
//! call [`become_subreaper`] before it prepares any.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use headstart_config::{Agent, Mount, Secret};
use headstart_wire::{CONTROL_FD, CONTROL_FD_ENV, Channel};

mod docker;
mod oci;
pub mod process;

mod driver;
mod local;
mod survivors;

mod cgroup;
mod directory;
mod error;
mod logs;
mod name;
pub(crate) mod nice;
mod note;
mod pid_watch;
mod seccomp;
mod secrets;
mod tick;

pub use cgroup::Shares;
pub(crate) use cgroup::of_agent as cgroup_of_agent;
pub use directory::backends_directory;
pub use driver::{Drivers, HostCheck, Lack, NoDriver};
pub use error::StartError;
pub use note::Note;
pub use survivors::Survivors;

/// Every runtime. A new one is a file beside this one, its `mod` line, and its place here.
const DRIVERS: [driver::MakeDriver; 3] = [oci::driver, process::driver, docker::driver];

/// Where an instance sees its [`Init`].
const INIT_PATH: &str = "/run/headstart/init";

/// `PATH` of an instance whose configuration sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How ready the kernel is to kill a function for lack of memory on the node (`oom_score_adj`, proc(5)). The agent's unit
/// protects the agent and not the functions. Where the agent itself is less protected, so are they: to lower it again is
/// a privilege.
fn oom_score_adj() -> i32 {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().map_or(0, |own: i32| own.max(0))
}

/// Size of an instance's private `/tmp`, in bytes. Its pages count against the memory limit.
const TMP_BYTES: u64 = 64 * 1024 * 1024;

/// Open files of an instance. Above the 1024 that `select` can hold, so that a
/// function that never asks for more still serves a burst.
pub(crate) const OPEN_FILES: u64 = 4096;

/// A boxed future, so that runtimes can stand behind one `dyn` type.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Makes the containers of one function.
pub trait FunctionRuntime: Send + Sync {
    /// The label of this runtime in logs and metrics.
    fn name(&self) -> &'static str;

    /// Creates a container and parks it just before its exec.
    fn prepare<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<PreparedContainer, StartError>>;

    /// Takes over a running instance that an earlier agent of this function's
    /// configuration left. How it ends may not be known.
    fn adopt<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Arc<dyn Process>, StartError>>;
}

/// What every runtime needs to know of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The function's name.
    pub function: String,
    /// Program and arguments. Only an image may supply its own instead of an empty one.
    pub command: Vec<String>,
    /// The directory in which the program starts, where the runtime is not an image's.
    pub workdir: PathBuf,
    /// User, where the runtime's own keys name none.
    pub user: u32,
    /// Its group.
    pub group: u32,
    /// The user of the host that is root in the instance's user namespace, if it has one.
    pub namespace_root: Option<u32>,
    /// Environment from the configuration. Never holds secrets of backends.
    pub env: Vec<(String, String)>,
    /// Memory limit in bytes, swap included where it has none of its own.
    pub memory_bytes: u64,
    /// It is hibernated, and may have as much in swap as in memory.
    pub swaps: bool,
    /// Most processes and threads at a time.
    pub pids: u64,
    /// What it gets of processors and block devices.
    pub shares: Shares,
    /// What it sees of the node.
    pub mounts: Vec<Mount>,
    /// What it finds in [`headstart_config::SECRETS_PATH`].
    pub secrets: Vec<Secret>,
    /// The instance sees what is in [`backends_directory`] at [`headstart_wire::BACKENDS_PATH`].
    pub backends: bool,
    /// The agent's own init.
    pub init: Init,
    /// A program of the agent's that runs the command, and speaks to the agent for it.
    pub adapter: Option<Adapter>,
}

/// A program of the agent's (`runtime-shim/lambda`) that runs a function's command and speaks to the agent for it. The instance
/// sees it by a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Its file on the node.
    pub file: PathBuf,
    /// Its command line, up to the function's command.
    pub words: Vec<String>,
}

/// The agent's own init (`runtime-shim/init`): the first process of an instance whose program knows nothing of Headstart, or
/// whose container cannot be released otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    /// Its file on the node. The instance sees it at `/run/headstart/init`.
    pub file: PathBuf,
    /// What it does for a program that knows nothing of Headstart; empty for one that speaks to the agent itself.
    pub contract: Vec<String>,
}

/// What to do if the init is not there.
pub(crate) const INIT_HINT: &str =
    "install it beside the agent's program, or name its file with `init` in [agent]";

/// What to do if the adapter is not there.
pub(crate) const LAMBDA_HINT: &str = "install it beside headstart-init";

impl Init {
    /// The command line that runs `command` by this contract.
    fn arguments(&self, contract: &[String], command: &[String]) -> Vec<String> {
        let words = [INIT_PATH].into_iter().chain(contract.iter().map(String::as_str)).chain(["--"]);
        words.chain(command.iter().map(String::as_str)).map(str::to_owned).collect()
    }
}

impl ContainerSpec {
    /// The environment of an instance, a default `PATH` included.
    fn environment(&self) -> Vec<(String, String)> {
        let mut env: Vec<_> = self.env.iter().filter(|(name, _)| name != CONTROL_FD_ENV).cloned().collect();
        if !env.iter().any(|(name, _)| name == "PATH") {
            env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
        }
        env
    }

    /// The environment of an instance that inherits its control socket.
    fn environment_with_control(&self) -> Vec<(String, String)> {
        let mut env = self.environment();
        env.push((CONTROL_FD_ENV.to_owned(), CONTROL_FD.to_string()));
        env
    }

    /// The limits of its memory.
    fn memory_limit(&self) -> cgroup::MemoryLimit {
        cgroup::MemoryLimit { bytes: self.memory_bytes, swaps: self.swaps }
    }

    /// Whether the program knows nothing of Headstart.
    fn is_unaware(&self) -> bool {
        !self.init.contract.is_empty()
    }

    /// What the container executes: program and arguments.
    fn arguments(&self) -> Vec<String> {
        let command = self.adapted(&self.command);
        if self.is_unaware() { self.init.arguments(&self.init.contract, &command) } else { command }
    }

    /// The command line that runs `command`, by the adapter if there is one.
    fn adapted(&self, command: &[String]) -> Vec<String> {
        let before = self.adapter.as_ref().map_or(&[][..], |adapter| &adapter.words);
        before.iter().chain(command).cloned().collect()
    }

    /// The file of its init, if the program needs one. An error if a file of the agent's is missing.
    fn init_file(&self) -> Result<Option<&Path>, StartError> {
        let there = |file: &'_ Path, hint| match file.is_file() {
            true => Ok(()),
            false => Err(StartError::RuntimeMissing { path: file.to_owned(), hint }),
        };
        if let Some(adapter) = &self.adapter {
            there(&adapter.file, LAMBDA_HINT)?;
        }
        if !self.is_unaware() {
            return Ok(None);
        }
        there(&self.init.file, INIT_HINT)?;
        Ok(Some(&self.init.file))
    }

    /// What errors call the program.
    fn program(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }
}

/// A container that is created and waits. It holds no function code yet.
pub struct PreparedContainer {
    /// The agent's end of the instance's control socket.
    pub control: ControlEnd,
    /// The container.
    pub process: Arc<dyn Process>,
}

/// The agent's end of a control socket.
pub enum ControlEnd {
    /// The instance inherits the other end: a lease can be queued before it runs.
    Connected(Channel),
    /// A listening socket that only this instance can see: it connects when it runs.
    Listening(OwnedFd),
}

/// How a container's first process ended. Nothing is set when that cannot be known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, when it ended by itself.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// It did not end well, and the kernel had killed in this container for lack of memory.
    pub oom: bool,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.oom, self.code, self.signal) {
            (true, _, _) => f.write_str("out of memory"),
            (_, Some(code), _) => write!(f, "exit code {code}"),
            (_, _, Some(signal)) => write!(f, "killed by signal {signal}"),
            _ => f.write_str("gone, status unknown"),
        }
    }
}

/// One container, parked or running.
pub trait Process: Send + Sync {
    /// Releases a parked container. Resolves when it has exec'd, with the time
    /// of that in nanoseconds of `CLOCK_MONOTONIC`.
    fn release(&self) -> BoxFuture<'_, Result<u64, StartError>>;

    /// Resolves when the container's first process is gone, parked or running.
    fn exited(&self) -> BoxFuture<'_, Exit>;

    /// Stops every process of it, so that it uses no processor time (cgroup freezer). Resolves when all are
    /// stopped. On an error it has been thawed again.
    fn freeze(&self) -> BoxFuture<'_, Result<(), StartError>>;

    /// Lets it run again. Can be repeated.
    fn thaw(&self) -> BoxFuture<'_, Result<(), StartError>>;

    /// Asks it to stop (`SIGTERM`), and thaws it for that. Harmless when it is gone.
    fn terminate(&self) -> BoxFuture<'_, ()>;

    /// Ends it at once and removes every trace: processes, cgroup, mounts, files. Can be repeated.
    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>>;

    /// The instance's own directory, for root only, which is removed with it. A [`Note`] has its place there.
    fn directory(&self) -> &Path;

    /// Its own network namespace, in which the loopback interface is up. An error where it has none of its own, or that
    /// comes later.
    fn network(&self) -> std::io::Result<File> {
        Err(std::io::Error::other("this runtime has no network namespace before the start"))
    }

    /// Whether `pid` (in the agent's PID namespace) runs inside this container.
    fn owns(&self, pid: i32) -> bool;

    /// The last line that it has printed; empty where that cannot be known.
    fn last_words(&self) -> BoxFuture<'_, String> {
        Box::pin(async { String::new() })
    }

    /// Its processes, in the agent's PID namespace; none where that cannot be known.
    fn processes(&self) -> Vec<i32> {
        Vec::new()
    }
}

/// Makes orphans below this process its children, so that the exit of every
/// container is seen here (`PR_SET_CHILD_SUBREAPER`, prctl(2)).
///
/// Nothing in the agent may wait for "any child": each container is waited for
/// by its own pidfd.
///
/// # Errors
/// Never on Linux 3.4 and later.
pub fn become_subreaper() -> std::io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Removes what instances share and none of them can remove: call it when all are gone.
pub fn tidy(agent: &Agent) {
    cgroup::Cgroups::new(agent).remove_parents();
}

#[cfg(test)]
mod tests;
