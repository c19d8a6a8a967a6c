//! What an earlier agent left.
//!
//! ```text
//! parked   ──────────────────────────────> remove
//! running  ──SIGTERM──> gone, or grace ──> remove
//!    └─────keep──> the new agent's own (`FunctionRuntime::adopt`)
//! ```
//!
//! A parked container holds nothing that a client waits for and is removed at
//! once. An instance that runs may be in the middle of an answer: it is asked to
//! stop and gets the time that its function has for that. It still accepts until
//! then, from the same socket as those of this agent. What it prints is read from
//! then on, too: until then it is in its pipe, for the agent that takes it over.
//!
//! All names are taken before this agent makes its first container, so its own
//! are never among them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{BoxFuture, Note, StartError};

/// Survivors that are removed at the same time. The new agent prepares containers
/// meanwhile, which matters more.
const REMOVALS_MAX: usize = 1;

/// One container of an earlier agent.
pub(super) trait Survivor: Send + Sync {
    /// Its name.
    fn instance(&self) -> &str;

    /// Its directory.
    fn directory(&self) -> &Path;

    /// It was released and has not ended: a client may wait for its answer.
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
    /// The runtimes of which it is not known what was left, and why.
    unknown: Vec<String>,
}

impl Survivors {
    /// What the drivers have found, and what they could not look for.
    pub(super) fn new(found: Vec<Box<dyn Survivor>>, unknown: Vec<String>) -> Self {
        let (running, idle): (Vec<_>, Vec<_>) = found.into_iter().partition(|survivor| survivor.runs());
        if !running.is_empty() || !idle.is_empty() {
            tracing::info!(running = running.len(), idle = idle.len(), "an earlier agent left instances");
        }
        Self { idle, running, unknown, ..Self::default() }
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

    /// Leaves one of those alone: it is about to be taken over ([`super::FunctionRuntime::adopt`]).
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

    /// Ends and removes all of them; those that run get `grace` first. Returns what may be left.
    pub async fn end(mut self, grace: Duration) -> Vec<String> {
        self.ask(grace);
        let mut failed = 0;
        for idle in &self.idle {
            let removed = remove(&**idle).await;
            self.removed += usize::from(removed);
            failed += usize::from(!removed);
        }
        while let Some(gone) = self.ending.join_next().await {
            let removed = gone.unwrap_or(false);
            self.removed += usize::from(removed);
            failed += usize::from(!removed);
        }
        if self.removed > 0 {
            tracing::info!(swept = self.removed, "removed what an earlier agent left");
        }
        if failed > 0 {
            self.unknown.push(format!("{failed} containers that cannot be removed"));
        }
        self.unknown
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
