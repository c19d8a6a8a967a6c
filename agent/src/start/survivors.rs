//! What an earlier agent left.
//!
//! ```text
//! parked   ──────────────────────────────> remove
//! running  ──SIGTERM──> gone, or grace ──> remove
//!    └─────keep──> the new agent's own (`Runtime::adopt`)
//! ```
//!
//! A parked container holds nothing that a client waits for and is removed at
//! once. An instance that runs may be in the middle of an answer: it is asked to
//! stop and gets the time that its function has for that. It still accepts until
//! then, from the same socket as those of this agent. What it prints is read from
//! then on, too: until then it is in its pipe, for whoever takes it over.
//!
//! All names are taken before this agent makes its first container, so its own
//! are never among them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::libc;
use tokio::net::unix::pipe;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cgroup::Cgroup;
use super::error::within;
use super::logs::Logs;
use super::watch::{Image, Watch};
use super::{BoxFuture, Note, StartError, docker, name, oci, process};

/// In an instance's directory: the [`Image`] that it had while it was parked.
pub(super) const PARKED_FILE: &str = "parked";

/// Survivors that are removed at the same time. The new agent prepares containers
/// meanwhile, which matters more.
const REMOVALS_MAX: usize = 1;

/// For a killed process to be gone.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// One container of an earlier agent.
pub(super) trait Survivor: Send + Sync {
    /// Its name.
    fn instance(&self) -> &str;

    /// Its directory.
    fn directory(&self) -> &Path;

    /// It was let go and has not ended: somebody may wait for its answer.
    fn runs(&self) -> bool;

    /// Asks it to stop (`SIGTERM`), and thaws it for that.
    fn terminate(&self) -> BoxFuture<'_, ()>;

    /// Resolves when nothing of it runs.
    fn gone(&self) -> BoxFuture<'_, ()>;

    /// Ends it at once and removes every trace.
    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>>;
}

/// Everything that an earlier agent left under one state directory.
#[derive(Default)]
pub struct Survivors {
    /// Parked, ended, or mere files.
    idle: Vec<Box<dyn Survivor>>,
    /// Not asked yet.
    running: Vec<Box<dyn Survivor>>,
    /// One task for each that was asked; true when it is gone without a trace.
    ending: JoinSet<bool>,
    removed: usize,
}

impl Survivors {
    /// Looks for them: also for those of functions that are no longer
    /// configured. Changes nothing.
    pub async fn find(state_dir: &Path, runc: &Path, docker_socket: &Path) -> Self {
        let mut found = oci::survivors(state_dir, runc);
        found.extend(process::survivors(state_dir));
        match docker::survivors(state_dir, docker_socket).await {
            Ok(more) => found.extend(more),
            Err(error) => tracing::warn!("cannot find what an earlier agent left: {error}"),
        }
        let (running, idle): (Vec<_>, Vec<_>) = found.into_iter().partition(|survivor| survivor.runs());
        if !running.is_empty() || !idle.is_empty() {
            tracing::info!(running = running.len(), idle = idle.len(), "an earlier agent left instances");
        }
        Self { idle, running, ..Self::default() }
    }

    /// Whether there was nothing, or nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.idle.is_empty() && self.running.is_empty() && self.ending.is_empty()
    }

    /// How many run that were not asked to stop yet.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// The names of those.
    #[must_use]
    pub fn running_names(&self) -> Vec<String> {
        self.running.iter().map(|survivor| survivor.instance().to_owned()).collect()
    }

    /// What the earlier agent noted of those, where it did.
    #[must_use]
    pub fn notes(&self) -> Vec<(String, Note)> {
        let noted = self.running.iter().filter_map(|survivor| {
            let note = Note::read(survivor.directory())?;
            Some((survivor.instance().to_owned(), note))
        });
        noted.collect()
    }

    /// Leaves one of those alone: it is about to be taken over ([`super::Runtime::adopt`]).
    pub fn keep(&mut self, instance: &str) {
        self.running.retain(|survivor| survivor.instance() != instance);
    }

    /// Ends them until `free` says that it is enough: first the idle, then those
    /// that run, each of which gets `grace`. Returns when nothing is left at the latest.
    pub async fn make_room(&mut self, grace: Duration, free: impl Fn() -> bool) {
        while !free() {
            if let Some(idle) = self.idle.pop() {
                self.removed += usize::from(remove(&*idle).await);
                continue;
            }
            self.ask(grace);
            match self.ending.join_next().await {
                Some(gone) => self.removed += usize::from(gone.unwrap_or(false)),
                None => return,
            }
        }
    }

    /// Ends and removes all of them; those that run get `grace` first.
    pub async fn end(mut self, grace: Duration) {
        self.ask(grace);
        for idle in &self.idle {
            self.removed += usize::from(remove(&**idle).await);
        }
        while let Some(gone) = self.ending.join_next().await {
            self.removed += usize::from(gone.unwrap_or(false));
        }
        if self.removed > 0 {
            tracing::info!(swept = self.removed, "removed what an earlier agent left");
        }
    }

    fn ask(&mut self, grace: Duration) {
        let turns = Arc::new(Semaphore::new(REMOVALS_MAX));
        let deadline = Instant::now() + grace;
        for survivor in self.running.drain(..) {
            let turns = Arc::clone(&turns);
            self.ending.spawn(async move {
                survivor.terminate().await;
                if tokio::time::timeout_at(deadline, survivor.gone()).await.is_err() {
                    tracing::warn!(instance = survivor.instance(), "did not stop in time: killed");
                }
                // The semaphore is never closed.
                let _turn = turns.acquire_owned().await.ok();
                remove(&*survivor).await
            });
        }
    }
}

async fn remove(survivor: &dyn Survivor) -> bool {
    let instance = survivor.instance();
    match survivor.remove().await {
        Ok(()) => tracing::debug!(instance, "removed"),
        Err(error) => {
            tracing::warn!(instance, "cannot remove what an earlier agent left: {error}");
            return false;
        }
    }
    true
}

/// Removes a local instance's processes and traces.
pub(super) trait Clean: Send + Sync {
    /// Can be repeated.
    fn clean<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<(), StartError>>;
}

/// The first process of an instance that an earlier agent left on this node. It is
/// nobody's child here: its end is seen on a pidfd, its status is not.
pub(super) struct First {
    /// Nothing is left but files.
    watch: Option<Watch>,
    runs: bool,
}

impl First {
    /// That of the instance whose files are in `directory`; it may be `pid`.
    /// `otherwise` tells whether it runs when the directory does not.
    pub(super) fn find(
        instance: &str,
        directory: &Path,
        pid: Option<i32>,
        otherwise: impl FnOnce() -> bool,
    ) -> Self {
        let watch = pid.and_then(|pid| Watch::stranger(pid).ok());
        // After its pidfd was opened: a number that was given to another process meanwhile is not in there.
        let watch = watch.filter(|watch| belongs(instance, directory, watch.pid()));
        let runs = watch.as_ref().and_then(|watch| Image::of(watch.pid())).is_some_and(|now| {
            let parked = fs::read_to_string(directory.join(PARKED_FILE)).ok();
            match parked.and_then(|text| Image::parse(&text)) {
                Some(parked) => parked.replaced_by(&now),
                None => otherwise(),
            }
        });
        Self { watch, runs }
    }

    /// To be taken over.
    pub(super) fn running(self, instance: &str) -> Result<Watch, StartError> {
        let detail = if self.watch.is_some() { "it was not let go yet" } else { "it has ended" };
        let running = self.watch.filter(|_| self.runs);
        running.ok_or_else(|| StartError::Adopt { instance: instance.to_owned(), detail })
    }
}

/// A survivor on this node.
pub(super) struct Local<C> {
    instance: String,
    cleaner: Arc<C>,
    directory: PathBuf,
    first: First,
    /// Opened while the agent may, and read when it is this one's to read.
    output: Mutex<Option<pipe::Receiver>>,
}

impl<C: Clean> Local<C> {
    pub(super) fn new(instance: String, cleaner: Arc<C>, directory: PathBuf, first: First) -> Self {
        let running = first.watch.as_ref().filter(|_| first.runs);
        let output = Mutex::new(running.and_then(|watch| output_of(&instance, watch.pid())));
        Self { instance, cleaner, directory, first, output }
    }
}

fn belongs(instance: &str, directory: &Path, pid: i32) -> bool {
    Cgroup::of(instance).contains(pid) || process::noted(directory) == Some(pid)
}

/// The instance's output goes to a pipe whose reader died with the earlier agent:
/// reads on, so that it neither fills nor is lost.
pub(super) fn follow_again(instance: &str, pid: i32) -> Option<Logs> {
    output_of(instance, pid).map(|output| Logs::follow(name::function_of(instance), instance, output))
}

/// The reading end of that pipe; nothing is read yet.
pub(super) fn output_of(instance: &str, pid: i32) -> Option<pipe::Receiver> {
    let path = format!("/proc/{pid}/fd/1");
    let open = || -> io::Result<pipe::Receiver> {
        // What the function has put there instead is not opened.
        if !fs::metadata(&path)?.file_type().is_fifo() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        pipe::Receiver::from_file(fs::OpenOptions::new().read(true).custom_flags(flags).open(&path)?)
    };
    let told = |error: &_| tracing::debug!(instance, "its output cannot be followed any more: {error}");
    open().inspect_err(told).ok()
}

impl<C: Clean> Survivor for Local<C> {
    fn instance(&self) -> &str {
        &self.instance
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn runs(&self) -> bool {
        self.first.runs
    }

    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(watch) = &self.first.watch {
                let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
                let function = name::function_of(&self.instance);
                let _to_its_end = output.map(|output| Logs::follow(function, &self.instance, output));
                watch.signal(rustix::process::Signal::TERM);
                Cgroup::of(&self.instance).ensure_thawed();
            }
        })
    }

    fn gone(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(watch) = &self.first.watch {
                watch.exited().await;
            }
        })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            if let Some(watch) = &self.first.watch {
                watch.signal(rustix::process::Signal::KILL);
                Cgroup::of(&self.instance).ensure_thawed();
                within(REMOVE_TIMEOUT, "killing a container", watch.exited()).await?;
            }
            self.cleaner.clean(&self.instance).await
        })
    }
}
