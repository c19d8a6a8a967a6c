//! runc on this node, and the files of its containers.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use headstart_config::Agent;
use rustix::process::Signal;
use tokio::process::Command;

use crate::manager;
use crate::start::cgroup::Cgroups;
use crate::start::error::within;
use crate::start::local::{self, Leftovers, LocalHost, PARKED_FILE};
use crate::start::pid_watch::PidWatch;
use crate::start::{BoxFuture, StartError, directory, name};

/// For `runc delete`, and for a `runc create` that was killed to be gone, each.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// runc's own state, below the state directory.
const ROOT: &str = "runc";

/// One directory per instance is in here, below the state directory.
const BUNDLES: &str = "oci";

/// The FIFO that the parked init waits for, in runc's state of a container.
const FIFO: &str = "exec.fifo";

/// crun's description of a container. runc's has another name.
const CRUN_STATUS: &str = "status";

/// In a bundle: the number of the container's first process.
pub(super) const PID_FILE: &str = "pid";

/// What to do when runc cannot be run.
const INSTALL: &str = "install runc (`apt install runc`), or use another `runtime`";

/// Where containers are made, of whatever function.
pub(super) struct OciHost {
    runc: PathBuf,
    is_crun: OnceLock<bool>,
    /// runc's own state.
    root: PathBuf,
    /// One directory per instance: configuration, PID file, runc's log.
    bundles: PathBuf,
    cgroups: Cgroups,
    leftovers: Leftovers,
}

impl OciHost {
    /// Containers made by the program `runc`, which keep their state under the state directory.
    pub(super) fn new(agent: &Agent) -> Self {
        let state_dir = &agent.state_dir;
        Self {
            runc: agent.runc.clone(),
            is_crun: OnceLock::new(),
            root: state_dir.join(ROOT),
            bundles: state_dir.join(BUNDLES),
            cgroups: Cgroups::new(agent),
            leftovers: Leftovers::default(),
        }
    }

    pub(super) fn runc(&self) -> &Path {
        &self.runc
    }

    /// The FIFO that the parked init of an instance waits for.
    pub(super) fn fifo(&self, instance: &str) -> PathBuf {
        self.root.join(instance).join(FIFO)
    }

    /// Whether the parked init of an instance reads from its FIFO, as crun's does. runc's writes.
    pub(super) fn fifo_is_read(&self, instance: &str) -> bool {
        self.root.join(instance).join(CRUN_STATUS).exists()
    }

    /// The first line of `--version`.
    pub(super) fn version(&self) -> io::Result<String> {
        let output = std::process::Command::new(&self.runc).arg("--version").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("installed").to_owned())
    }

    /// Whether it is crun, whatever its file is called. Asked once.
    pub(super) fn is_crun(&self) -> bool {
        let is_runc = self.runc.file_name().is_some_and(|name| name == "runc");
        !is_runc && *self.is_crun.get_or_init(|| self.version().is_ok_and(|line| line.starts_with("crun")))
    }

    /// runc, without the variables that the service manager set for the agent: it would pass them on to the function.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.runc);
        for variable in manager::VARIABLES {
            command.env_remove(variable);
        }
        command.arg("--root").arg(&self.root);
        command
    }

    pub(super) fn spawn_error(&self, error: io::Error) -> StartError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                StartError::RuntimeMissing { path: self.runc.clone(), hint: INSTALL }
            }
            _ => StartError::System { step: "running runc", source: error },
        }
    }

    /// Removes every trace of a container, whatever its state. Can be repeated.
    async fn delete(&self, instance: &str) -> Result<(), StartError> {
        let state = self.root.join(instance);
        if state.exists() {
            let mut command = self.command();
            command.args(["delete", "--force", instance]);
            command.stdin(Stdio::null()).kill_on_drop(true);
            let output = within(REMOVE_TIMEOUT, "runc delete", command.output())
                .await?
                .map_err(|error| self.spawn_error(error))?;
            if state.exists() {
                let detail = format!("runc delete: {}", String::from_utf8_lossy(&output.stderr).trim());
                return Err(StartError::Left { detail });
            }
        }
        local::remove_cgroup(&self.cgroups.of(instance)).await?;
        directory::remove(&self.bundles.join(instance))
    }
}

impl LocalHost for OciHost {
    fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    fn directory(&self, instance: &str) -> PathBuf {
        self.bundles.join(instance)
    }

    fn instances(&self) -> BTreeSet<String> {
        let mut names = name::instances_in(&self.bundles);
        names.extend(name::instances_in(&self.root));
        names
    }

    fn first_pid(&self, instance: &str) -> Option<i32> {
        let text = fs::read_to_string(self.directory(instance).join(PID_FILE)).ok()?;
        text.trim().parse().ok()
    }

    fn was_released(&self, instance: &str) -> bool {
        !self.fifo(instance).exists()
    }

    fn network(&self, first_pid: i32) -> io::Result<File> {
        // The number is still this container's: its zombie is waited for only when it is removed.
        File::open(format!("/proc/{first_pid}/ns/net"))
    }

    fn leftovers(&self) -> &Leftovers {
        &self.leftovers
    }

    fn clean<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(self.delete(instance))
    }

    /// Without runc. It would do no more, our containers have no hooks; but it takes a processor
    /// for tens of milliseconds, many times over, while the new agent prepares its own.
    fn clean_survivor<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(async move {
            let (cgroup, bundle) = (self.cgroups.of(instance), self.directory(instance));
            if !bundle.join(PARKED_FILE).exists() {
                kill_creators(&bundle).await?;
            }
            cgroup.kill();
            local::remove_cgroup(&cgroup).await?;
            directory::remove(&self.root.join(instance))?;
            directory::remove(&bundle)
        })
    }
}

/// Ends a `runc create` that the earlier agent did not live to see the end of: it
/// would go on making what is removed here. The init that it has begun ends with it.
async fn kill_creators(bundle: &Path) -> Result<(), StartError> {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let creates = || {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|argument| argument == bundle.as_os_str().as_encoded_bytes())
        };
        if !creates() {
            continue;
        }
        // Once more: the number may have been another process's before its pidfd was opened.
        if let Some(creator) = PidWatch::foreign(pid).ok().filter(|_| creates()) {
            creator.signal(Signal::KILL);
            within(REMOVE_TIMEOUT, "ending a container's creation", creator.exited()).await?;
        }
    }
    Ok(())
}
