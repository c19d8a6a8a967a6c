//! What runtimes share whose containers are processes of this node, with a cgroup of ours.

mod leftovers;
mod survivor;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use headstart_wire::Channel;
use nix::sys::resource::{Resource, getrlimit};
use rustix::process::Signal;
use rustix::thread::CapabilitySet;
use tokio::io::Interest;

use super::cgroup::{Cgroup, Cgroups, freezer};
use super::error::within;
use super::logs::Logs;
use super::pid_watch::{Image, PidWatch};
use super::{BoxFuture, Exit, OPEN_FILES, Process, StartError, nice};
use crate::fd;

pub(super) use leftovers::Leftovers;
pub(super) use survivor::survivors;
#[cfg(test)]
pub(super) use survivor::{follow_again, output_of};

/// From the release to the exec: milliseconds, unless the node is out of memory.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// For a killed container to be gone.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// For what a container has printed to be read, after its end.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(500);

/// In an instance's directory: the [`Image`] that it had while it was parked.
pub(super) const PARKED_FILE: &str = "parked";

/// What makes the containers of one runtime, of whatever function.
pub(super) trait LocalHost: Send + Sync + 'static {
    /// The cgroups of its instances.
    fn cgroups(&self) -> &Cgroups;

    /// The directory of an instance.
    fn directory(&self, instance: &str) -> PathBuf;

    /// The instances that have files here.
    fn instances(&self) -> BTreeSet<String>;

    /// The number of an instance's first process, as its files say. Another process may have it by now.
    fn first_pid(&self, instance: &str) -> Option<i32>;

    /// Whether this is the instance's first process.
    fn is_first(&self, instance: &str, pid: i32) -> bool {
        self.cgroups().of(instance).contains(pid)
    }

    /// Whether an instance without [`PARKED_FILE`] was released.
    fn was_released(&self, instance: &str) -> bool;

    /// The network namespace of a container, as [`Process::network`] returns it.
    fn network(&self, first_pid: i32) -> io::Result<File>;

    /// Containers that could not be removed.
    fn leftovers(&self) -> &Leftovers;

    /// Removes what a container leaves whose processes are gone. Can be repeated.
    fn clean<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<(), StartError>>;

    /// Removes what a container of an earlier agent has left. Can be repeated.
    fn clean_survivor<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<(), StartError>> {
        self.clean(instance)
    }
}

/// What keeps a parked container from its exec.
pub(super) trait Latch: Send {
    /// Lets the container exec, and returns when it has, in nanoseconds of `CLOCK_MONOTONIC`.
    fn open<'a>(self: Box<Self>, container: &'a LocalContainer) -> BoxFuture<'a, Result<u64, StartError>>;
}

/// The capabilities that every local container needs of the agent. Found by leaving them out one by one: the tests
/// of `start` fail without any of them, save `DAC_OVERRIDE`.
pub(super) fn capabilities() -> CapabilitySet {
    let needed = CapabilitySet::SYS_ADMIN
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        // A container's bounding set.
        | CapabilitySet::SETPCAP
        // Signals to a function, which is another user.
        | CapabilitySet::KILL
        // /proc/PID/exe and ns of another user's process: the moment of its exec, and who it is.
        | CapabilitySet::SYS_PTRACE
        // A container is prepared in the background, and released at normal priority.
        | CapabilitySet::SYS_NICE
        // The root of a cgroup hierarchy may not be writable for its owner (cgroup-v1 mounts have mode 0555).
        | CapabilitySet::DAC_OVERRIDE;
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
    // An instance has more open files than the agent itself may have.
    if limit < OPEN_FILES { needed | CapabilitySet::SYS_RESOURCE } else { needed }
}

/// One container, of this agent or taken over from an earlier one.
pub(super) struct LocalContainer {
    host: Arc<dyn LocalHost>,
    instance: String,
    directory: PathBuf,
    watch: PidWatch,
    /// Unless it was taken over, and has replaced its output.
    logs: Option<Logs>,
    cgroup: Cgroup,
    /// Taken by the release.
    latch: Mutex<Option<Box<dyn Latch>>>,
    /// Removals take turns.
    removal: tokio::sync::Mutex<()>,
}

impl LocalContainer {
    /// One that is parked, and waits behind `latch`.
    pub(super) fn parked(
        host: Arc<dyn LocalHost>,
        instance: &str,
        watch: PidWatch,
        logs: Logs,
        latch: Box<dyn Latch>,
    ) -> Self {
        Self::new(host, instance, watch, Some(logs), Some(latch))
    }

    /// Takes over one that an earlier agent has released.
    pub(super) fn adopt(host: Arc<dyn LocalHost>, instance: &str) -> Result<Self, StartError> {
        let watch = survivor::running(&*host, instance)?;
        let logs = survivor::follow_again(instance, watch.pid());
        Ok(Self::new(host, instance, watch, logs, None))
    }

    fn new(
        host: Arc<dyn LocalHost>,
        instance: &str,
        watch: PidWatch,
        logs: Option<Logs>,
        latch: Option<Box<dyn Latch>>,
    ) -> Self {
        Self {
            directory: host.directory(instance),
            cgroup: host.cgroups().of(instance),
            host,
            instance: instance.to_owned(),
            watch,
            logs,
            latch: Mutex::new(latch),
            removal: tokio::sync::Mutex::new(()),
        }
    }

    /// Its name.
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// Its first process.
    pub(super) fn watch(&self) -> &PidWatch {
        &self.watch
    }

    /// The last line that it has printed. Waits until all is read, at most `patience`.
    pub(super) async fn last_line(&self, patience: Duration) -> String {
        match &self.logs {
            Some(logs) => logs.last(patience).await,
            None => String::new(),
        }
    }

    /// Releases its init now, and waits until that has made everything ready for the lease, which releases the program.
    pub(super) async fn run_init(&self, control: &Channel) -> Result<(), StartError> {
        let noting = StartError::system("noting what a parked container runs");
        let parked = fs::read_to_string(self.directory.join(PARKED_FILE)).unwrap_or_default();
        let ready = async {
            self.take_latch()?.open(self).await?;
            let control = control.as_fd().try_clone_to_owned();
            let control = control.and_then(|control| fd::register(control, Interest::READABLE));
            let control = control.map_err(StartError::system("waiting for an init"))?;
            tokio::select! {
                said = control.readable() => said.map(drop).map_err(StartError::system("waiting for an init")),
                exit = self.watch.exited() => {
                    let detail = self.last_line(LAST_WORDS_TIMEOUT).await;
                    Err(StartError::Create { detail: format!("its init ended: {exit}; its last line: {detail}") })
                }
            }
        };
        within(RELEASE_TIMEOUT, "starting an init", ready).await??;
        note_image(&self.directory, self.watch.pid())?;
        let latch = InitLatch { file: self.directory.join(PARKED_FILE), before: parked, noting };
        *self.latch.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(latch));
        Ok(())
    }

    fn take_latch(&self) -> Result<Box<dyn Latch>, StartError> {
        let mut latch = self.latch.lock().unwrap_or_else(PoisonError::into_inner);
        latch.take().ok_or(StartError::AlreadyReleased)
    }
}

/// The lease has released the program already, which an init runs.
struct InitLatch<F> {
    /// [`PARKED_FILE`], and its text for an instance that was released.
    file: PathBuf,
    before: String,
    noting: F,
}

impl<F: Fn(io::Error) -> StartError + Send + 'static> Latch for InitLatch<F> {
    fn open<'a>(self: Box<Self>, _container: &'a LocalContainer) -> BoxFuture<'a, Result<u64, StartError>> {
        Box::pin(async move {
            let exec_ns = headstart_wire::monotonic_ns().map_err(StartError::system("reading the clock"))?;
            // The first process stays the init: only this tells a later agent that it runs the program.
            fs::write(&self.file, &self.before).map_err(&self.noting)?;
            Ok(exec_ns)
        })
    }
}

/// Begins to watch the first process of an instance, whose former parent is gone.
pub(super) fn watch(cgroup: Cgroup, pid: i32) -> Result<PidWatch, StartError> {
    PidWatch::child(pid, move || cgroup.oom_killed())
}

/// Notes what a parked process runs, to tell it from the function.
pub(super) fn note_image(directory: &Path, pid: i32) -> Result<Option<Image>, StartError> {
    let parked = Image::of(pid);
    if let Some(parked) = &parked {
        fs::write(directory.join(PARKED_FILE), parked.to_line())
            .map_err(StartError::system("noting what a parked container runs"))?;
    }
    Ok(parked)
}

impl Process for LocalContainer {
    fn release(&self) -> BoxFuture<'_, Result<u64, StartError>> {
        Box::pin(async move {
            let latch = self.take_latch()?;
            nice::to_foreground(self.watch.pid());
            within(RELEASE_TIMEOUT, "releasing a container", latch.open(self)).await?
        })
    }

    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(self.watch.exited())
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(freezer::freeze(&self.cgroup, &self.watch))
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async { freezer::thaw(&self.cgroup) })
    }

    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { signal(&self.watch, &self.cgroup, Signal::TERM) })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async move {
            let _turn = self.removal.lock().await;
            kill(&self.watch, &self.cgroup).await?;
            self.host.leftovers().clean(&*self.host, &self.instance).await
        })
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn network(&self) -> io::Result<File> {
        self.host.network(self.watch.pid())
    }

    fn owns(&self, pid: i32) -> bool {
        self.cgroup.contains(pid) || self.watch.shares_namespace(pid)
    }

    fn last_words(&self) -> BoxFuture<'_, String> {
        Box::pin(self.last_line(LAST_WORDS_TIMEOUT))
    }

    fn processes(&self) -> Vec<i32> {
        self.cgroup.processes()
    }
}

/// Signals a container's first process, and thaws it: a signal does not reach the frozen.
fn signal(watch: &PidWatch, cgroup: &Cgroup, signal: Signal) {
    watch.signal(signal);
    cgroup.ensure_thawed();
}

/// Kills a container's first process, which takes the others with it, and waits for its end.
async fn kill(watch: &PidWatch, cgroup: &Cgroup) -> Result<(), StartError> {
    signal(watch, cgroup, Signal::KILL);
    within(REMOVE_TIMEOUT, "killing a container", watch.exited()).await.map(drop)
}

/// After an attempt to make a container: removes what a failed one has left, or what earlier ones have.
pub(super) async fn settle<T>(
    host: &dyn LocalHost,
    instance: &str,
    made: Result<T, StartError>,
) -> Result<T, StartError> {
    if made.is_ok() {
        host.leftovers().again(host).await;
    } else if let Err(error) = host.leftovers().clean(host, instance).await {
        tracing::warn!(instance, "what a failed start left is removed later: {error}");
    }
    made
}

/// Removes an instance's cgroup.
pub(super) async fn remove_cgroup(cgroup: &Cgroup) -> Result<(), StartError> {
    cgroup.remove().await.map_err(|error| StartError::Left { detail: format!("cgroup {error}") })
}
