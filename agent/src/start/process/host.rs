//! The files of this runtime's instances.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use headstart_config::Agent;
use rustix::process::{Pid, Signal, kill_process};

use super::ParkHelper;
use crate::start::cgroup::Cgroups;
use crate::start::local::{self, Leftovers, LocalHost};
use crate::start::{BoxFuture, StartError, directory, name};

/// One directory per instance is in here, below the state directory.
const DIRECTORY: &str = "process";

/// In an instance's directory: the number of its first process.
const PID_FILE: &str = "pid";

/// Where processes are parked, of whatever function.
pub(super) struct ProcessHost {
    helper: ParkHelper,
    /// One directory per instance.
    directory: PathBuf,
    cgroups: Cgroups,
    leftovers: Leftovers,
}

impl ProcessHost {
    /// Processes that `helper` parks, and that are noted under the state directory.
    pub(super) fn new(helper: ParkHelper, agent: &Agent) -> Self {
        Self {
            helper,
            directory: agent.state_dir.join(DIRECTORY),
            cgroups: Cgroups::new(agent),
            leftovers: Leftovers::default(),
        }
    }

    pub(super) fn helper(&self) -> &ParkHelper {
        &self.helper
    }

    /// Notes the number of an instance's first process, as [`LocalHost::first_pid`] reads it.
    pub(super) fn note_pid(&self, instance: &str, pid: i32) -> io::Result<()> {
        fs::write(self.directory(instance).join(PID_FILE), marker(pid))
    }

    /// Ends all that runs of an instance and removes its traces.
    async fn end(&self, instance: &str) -> Result<(), StartError> {
        let cgroup = self.cgroups.of(instance);
        cgroup.kill();
        if let Some(first) = self.first_pid(instance).and_then(Pid::from_raw) {
            // Without a cgroup. Gone in between is what is wanted.
            let _gone = kill_process(first, Signal::KILL);
        }
        local::remove_cgroup(&cgroup).await?;
        directory::remove(&self.directory(instance))
    }
}

/// A process number with its namespace, which tells it from a later process of the same number.
fn marker(pid: i32) -> String {
    let namespace = fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap_or_default();
    format!("{pid} {}", namespace.display())
}

impl LocalHost for ProcessHost {
    fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    fn directory(&self, instance: &str) -> PathBuf {
        self.directory.join(instance)
    }

    fn instances(&self) -> BTreeSet<String> {
        name::instances_in(&self.directory)
    }

    /// If it is still there.
    fn first_pid(&self, instance: &str) -> Option<i32> {
        let text = fs::read_to_string(self.directory(instance).join(PID_FILE)).ok()?;
        let pid = text.split(' ').next()?.parse().ok()?;
        (marker(pid) == text).then_some(pid)
    }

    /// Without cgroups only the note tells.
    fn is_first(&self, instance: &str, pid: i32) -> bool {
        self.cgroups.of(instance).contains(pid) || self.first_pid(instance) == Some(pid)
    }

    /// One that was never parked to the end was not released either.
    fn was_released(&self, _instance: &str) -> bool {
        false
    }

    fn network(&self, first_pid: i32) -> io::Result<File> {
        // The number is still this process's: its zombie is waited for only when it is removed.
        File::open(format!("/proc/{first_pid}/ns/net"))
    }

    fn leftovers(&self) -> &Leftovers {
        &self.leftovers
    }

    fn clean<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(self.end(instance))
    }
}
