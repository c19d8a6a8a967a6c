//! The cgroup of one instance, `<cgroup_parent>/<agent>/<instance>`, in either version. `<agent>` is made of the state
//! directory, so that an agent knows its instances also when that directory is gone.
//!
//! Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
//! In a hybrid system the controllers are in the v1 hierarchies; the v2 tree has none.

pub(super) mod freezer;
mod orphan;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headstart_config::Agent;
use rustix::process::{Pid, Signal, kill_process};

use super::{Lack, name};

/// Where the hierarchies are mounted on every current distribution.
const MOUNT: &str = "/sys/fs/cgroup";

/// How long an empty cgroup may stay busy while its last process goes away.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Between attempts to remove a busy cgroup.
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

/// The period of a processor quota: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The memory of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    /// In memory; in version 1 this is the limit for memory and swap together.
    pub(super) bytes: u64,
    /// It may have as much in swap, in version 2.
    pub(super) swaps: bool,
}

/// What an instance gets of processors and block devices. `None` is the kernel's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shares {
    /// The most processor time, in thousandths of a processor.
    pub cpu_millis: Option<u32>,
    /// Against other groups, 1 to 10000.
    pub cpu_weight: Option<u32>,
    /// The same for block devices.
    pub io_weight: Option<u32>,
}

impl Shares {
    /// The controllers that it needs, by their names in version 1.
    fn controllers(&self) -> impl Iterator<Item = &'static str> {
        let cpu = self.cpu_millis.or(self.cpu_weight).is_some();
        [("cpu", cpu), ("blkio", self.io_weight.is_some())]
            .into_iter()
            .filter_map(|(controller, needed)| needed.then_some(controller))
    }
}

/// The controllers that limit instances.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

/// The cgroups of one agent's instances.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    /// Where the hierarchies are mounted.
    mount: PathBuf,
    /// `cgroup_parent`, relative to each hierarchy's root.
    parent: PathBuf,
    /// The name of this agent's directory in it.
    agent: String,
}

impl Cgroups {
    /// Those that this section configures.
    pub(super) fn new(agent: &Agent) -> Self {
        let parent = agent.cgroup_parent.strip_prefix("/").unwrap_or(&agent.cgroup_parent).to_owned();
        Self { mount: MOUNT.into(), parent, agent: escape(&agent.state_dir) }
    }

    /// That of one instance.
    pub(super) fn of(&self, instance: &str) -> Cgroup {
        Cgroup { mount: self.mount.clone(), path: self.parent.join(&self.agent).join(instance) }
    }

    /// The instances that have a cgroup in any hierarchy.
    fn instances(&self) -> BTreeSet<String> {
        let own = self.parent.join(&self.agent);
        hierarchies(&self.mount).flat_map(|hierarchy| name::instances_in(&hierarchy.join(&own))).collect()
    }

    /// Checks that the parent is there. The default one is made when it is needed.
    pub(super) fn check(&self) -> Result<(), Lack> {
        let default = Agent::default().cgroup_parent;
        let is_there = hierarchies(&self.mount).any(|hierarchy| hierarchy.join(&self.parent).is_dir());
        if is_there || Path::new("/").join(&self.parent) == default {
            return Ok(());
        }
        Err(format!(
            "no cgroup /{} in {}: start the unit that has it (`systemctl start headstart-functions`), or set \
             `cgroup_parent` in [agent] to one that exists",
            self.parent.display(),
            self.mount.display()
        )
        .into())
    }

    /// Removes the directories that hold all instances, where they are empty. Others' instances may be in the parent, and
    /// only the default parent was made by an agent.
    pub(super) fn remove_parents(&self) {
        for hierarchy in hierarchies(&self.mount) {
            let _busy_or_absent = fs::remove_dir(hierarchy.join(&self.parent).join(&self.agent));
            if Path::new("/").join(&self.parent) == Agent::default().cgroup_parent {
                let _busy_or_absent = fs::remove_dir(hierarchy.join(&self.parent));
            }
        }
    }
}

/// The name of a cgroup of an agent's own. Two state directories never have the same.
pub(crate) fn of_agent(agent: &Agent) -> String {
    escape(&agent.state_dir)
}

/// The root of each hierarchy. With version 2 alone it is the mount point itself.
fn hierarchies(mount: &Path) -> impl Iterator<Item = PathBuf> {
    let mounted = fs::read_dir(mount).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    mounted.chain([mount.to_owned()])
}

/// A path as one file name: `/run/headstart` is `run:headstart`. Two paths never have the same.
fn escape(path: &Path) -> String {
    let mut name = String::new();
    for byte in path.strip_prefix("/").unwrap_or(path).as_os_str().as_encoded_bytes() {
        match byte {
            b'/' => name.push(':'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => name.push(char::from(*byte)),
            // Writing to a string succeeds.
            other => _ = write!(name, "\\x{other:02x}"),
        }
    }
    name
}

/// One instance's cgroup.
#[derive(Debug, Clone)]
pub(super) struct Cgroup {
    /// Where the hierarchies are mounted.
    mount: PathBuf,
    /// Relative to each hierarchy's root.
    path: PathBuf,
}

impl Cgroup {
    /// The path below each hierarchy's root, as an OCI configuration names it.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// Makes the cgroup with its limits.
    pub(super) fn create(&self, memory: &MemoryLimit, pids: u64, shares: &Shares) -> io::Result<()> {
        self.limit(memory, pids, shares)?;
        self.set_shares(shares)
    }

    fn limit(&self, limit: &MemoryLimit, pids: u64, shares: &Shares) -> io::Result<()> {
        let memory = limit.bytes.to_string();
        if self.is_unified() {
            let directory = self.controller("");
            fs::create_dir_all(&directory)?;
            self.enable_controllers(shares)?;
            fs::write(directory.join("memory.max"), &memory)?;
            write_if_present(&directory.join("memory.swap.max"), if limit.swaps { &memory } else { "0" })?;
            return fs::write(directory.join("pids.max"), pids.to_string());
        }
        for controller in CONTROLLERS {
            if !self.mount.join(controller).is_dir() {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no {controller} controller")));
            }
            fs::create_dir_all(self.controller(controller))?;
        }
        for controller in shares.controllers().filter(|controller| self.mount.join(controller).is_dir()) {
            fs::create_dir_all(self.controller(controller))?;
        }
        // Without it the function runs all the same, and cannot be frozen.
        if self.mount.join(freezer::HIERARCHY).is_dir() {
            fs::create_dir_all(self.controller(freezer::HIERARCHY))?;
        }
        fs::write(self.controller("memory").join("memory.limit_in_bytes"), &memory)?;
        write_if_present(&self.controller("memory").join("memory.memsw.limit_in_bytes"), &memory)?;
        fs::write(self.controller("pids").join("pids.max"), pids.to_string())
    }

    /// Sets what it gets of processors and block devices. The cgroup is there.
    pub(super) fn set_shares(&self, shares: &Shares) -> io::Result<()> {
        let Shares { cpu_millis, cpu_weight, io_weight } = shares;
        let unified = self.is_unified();
        if let Some(millis) = cpu_millis {
            let quota_us = u64::from(*millis) * CPU_PERIOD_US / 1000;
            if unified {
                write(&self.controller("").join("cpu.max"), &format!("{quota_us} {CPU_PERIOD_US}"))?;
            } else {
                let directory = self.controller("cpu");
                write(&directory.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
                write(&directory.join("cpu.cfs_quota_us"), &quota_us.to_string())?;
            }
        }
        if let Some(weight) = cpu_weight {
            if unified {
                write(&self.controller("").join("cpu.weight"), &weight.to_string())?;
            } else {
                // 1024 there is what 100 is here.
                let shares = (u64::from(*weight) * 1024 / 100).clamp(2, 262_144);
                write(&self.controller("cpu").join("cpu.shares"), &shares.to_string())?;
            }
        }
        if let Some(weight) = io_weight {
            // Only some I/O schedulers have weights, and the kernel may have none of these.
            if unified {
                write_if_present(&self.controller("").join("io.weight"), &format!("default {weight}"))?;
                write_if_present(&self.controller("").join("io.bfq.weight"), &weight.min(&1000).to_string())?;
            } else {
                write_if_present(
                    &self.controller("blkio").join("blkio.bfq.weight"),
                    &weight.min(&1000).to_string(),
                )?;
            }
        }
        Ok(())
    }

    /// Enables the controllers for it in every cgroup above it, in version 2.
    fn enable_controllers(&self, shares: &Shares) -> io::Result<()> {
        for above in self.path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let file = self.mount.join(above).join("cgroup.subtree_control");
            let enabled = fs::read_to_string(&file)?;
            let needed = shares.controllers().map(|controller| controller.trim_start_matches("blk"));
            for controller in CONTROLLERS.into_iter().chain(needed) {
                if !enabled.split_whitespace().any(|one| one == controller) {
                    fs::write(&file, format!("+{controller}"))?;
                }
            }
        }
        Ok(())
    }

    /// The files into which a process writes `0` to enter the cgroup.
    pub(super) fn join_files(&self) -> Vec<PathBuf> {
        let controllers: &[&str] =
            if self.is_unified() { &[""] } else { &["memory", "pids", freezer::HIERARCHY, "cpu", "blkio"] };
        let directories = controllers.iter().map(|controller| self.controller(controller));
        directories.filter(|directory| directory.is_dir()).map(|own| own.join("cgroup.procs")).collect()
    }

    /// Whether the kernel killed a process of it for lack of memory.
    pub(super) fn oom_killed(&self) -> bool {
        let file = if self.is_unified() {
            self.controller("").join("memory.events")
        } else {
            self.controller("memory").join("memory.oom_control")
        };
        let events = fs::read_to_string(file).unwrap_or_default();
        let count =
            events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        count.is_some_and(|count| count > 0)
    }

    /// Whether `pid` is in it, in any hierarchy.
    pub(super) fn contains(&self, pid: i32) -> bool {
        let own = self.path();
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.lines().any(|line| {
            let path = line.splitn(3, ':').nth(2).unwrap_or_default();
            Path::new(path).starts_with(&own)
        })
    }

    /// Kills whatever is in it, frozen or not.
    pub(super) fn kill(&self) {
        self.signal_all(Signal::KILL);
    }

    /// Signals whatever is in it, and thaws it: a signal does not reach the frozen.
    fn signal_all(&self, signal: Signal) {
        for pid in self.processes().into_iter().filter_map(Pid::from_raw) {
            // One that has ended since needs no signal.
            let _gone = kill_process(pid, signal);
        }
        self.ensure_thawed();
    }

    /// Its processes.
    pub(super) fn processes(&self) -> Vec<i32> {
        let read = |file: PathBuf| fs::read_to_string(file).unwrap_or_default();
        let mut pids: Vec<i32> = self
            .join_files()
            .into_iter()
            .flat_map(|file| read(file).lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Every directory that this instance has in any hierarchy.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        let own = hierarchies(&self.mount).map(|hierarchy| hierarchy.join(&self.path));
        own.filter(|directory| directory.is_dir()).collect()
    }

    /// Removes it everywhere. Its processes must be dead or dying.
    pub(super) async fn remove(&self) -> io::Result<()> {
        let mut left = REMOVE_TIMEOUT;
        for directory in self.directories() {
            loop {
                match fs::remove_dir(&directory) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if left.is_zero() => {
                        let context = format!("{}: {error}", directory.display());
                        return Err(io::Error::new(error.kind(), context));
                    }
                    Err(_busy) => {
                        tokio::time::sleep(REMOVE_PAUSE).await;
                        left = left.saturating_sub(REMOVE_PAUSE);
                    }
                }
            }
        }
        Ok(())
    }

    fn controller(&self, controller: &str) -> PathBuf {
        self.mount.join(controller).join(&self.path)
    }

    fn is_unified(&self) -> bool {
        is_unified_at(&self.mount)
    }
}

/// Whether swap can be limited here: v1 kernels without `swapaccount` have no such file.
pub(super) fn limits_swap() -> bool {
    is_unified() || Path::new(MOUNT).join("memory/memory.memsw.limit_in_bytes").exists()
}

/// Whether the controllers are in the v2 tree.
pub(super) fn is_unified() -> bool {
    is_unified_at(Path::new(MOUNT))
}

fn is_unified_at(mount: &Path) -> bool {
    mount.join("cgroup.controllers").exists()
}

/// The error names the file: without the controller there is none.
fn write(file: &Path, text: &str) -> io::Result<()> {
    fs::write(file, text)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

fn write_if_present(file: &Path, text: &str) -> io::Result<()> {
    if file.exists() { fs::write(file, text) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
