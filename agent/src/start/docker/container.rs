//! One container of the daemon, of this agent or taken over from an earlier one.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::api::{KILLED, ListedContainer, Output};
use super::{DockerHost, INSTANCE_LABEL, RETRY_PAUSE, STATE_DIR_LABEL};
use crate::fd;
use crate::start::cgroup::freezer::FREEZE_TIMEOUT;
use crate::start::error::within;
use crate::start::{BoxFuture, Exit, Process, StartError, directory};

/// From the start of a container until its init has connected. A daemon under load has been seen to take many seconds.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two attempts to pause it.
const PAUSE_AGAIN: Duration = Duration::from_millis(10);

/// One container.
pub(super) struct DockerContainer {
    host: Arc<DockerHost>,
    instance: String,
    /// What errors call the function's program.
    program: String,
    directory: PathBuf,
    id: String,
    ended: Arc<watch::Sender<Option<Exit>>>,
    /// It was started before its release, and its init waits.
    started: AtomicBool,
    released: AtomicBool,
    /// It is paused, or about to be: a call of the daemon is saved otherwise.
    frozen: AtomicBool,
    /// Removals take turns.
    removal: Mutex<()>,
}

impl DockerContainer {
    /// One that is created and not released.
    pub(super) fn created(host: &Arc<DockerHost>, instance: &str, program: &str, id: String) -> Self {
        let ended = Arc::new(watch::channel(None).0);
        tokio::spawn(watch_removal(Arc::clone(host), id.clone(), Arc::clone(&ended)));
        Self {
            host: Arc::clone(host),
            instance: instance.to_owned(),
            program: program.to_owned(),
            directory: host.directory.join(instance),
            id,
            ended,
            started: AtomicBool::new(false),
            released: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            removal: Mutex::new(()),
        }
    }

    /// Takes over one that runs.
    pub(super) async fn adopt(
        host: &Arc<DockerHost>,
        instance: &str,
        program: &str,
    ) -> Result<Self, StartError> {
        let labels =
            [(STATE_DIR_LABEL, host.state_dir.display().to_string()), (INSTANCE_LABEL, instance.to_owned())];
        let running = host.api.list(&labels).await?.into_iter().find(|listed| listed.runs);
        let Some(ListedContainer { id, frozen, .. }) = running else {
            return Err(StartError::Adopt { instance: instance.to_owned(), detail: "it does not run" });
        };
        let container = Self::created(host, instance, program, id);
        container.released.store(true, Ordering::Relaxed);
        container.frozen.store(frozen, Ordering::Relaxed);
        container.follow(Output::New);
        Ok(container)
    }

    /// Starts it with an init, and waits until that has connected to the control socket, where the lease releases it.
    pub(super) async fn start_ahead(&self, control: &OwnedFd) -> Result<(), StartError> {
        let failed = StartError::system("waiting for an init");
        let control = control.try_clone().and_then(|control| fd::register(control, Interest::READABLE));
        let control = control.map_err(&failed)?;
        self.start().await?;
        self.started.store(true, Ordering::Relaxed);
        let connected = async {
            tokio::select! {
                connected = control.readable() => connected.map(drop).map_err(&failed),
                exit = self.exited() => Err(StartError::Died { exit }),
            }
        };
        within(INIT_TIMEOUT, "starting an init", connected).await?
    }

    async fn start(&self) -> Result<(), StartError> {
        let started = self.host.api.start(&self.id, &self.program).await;
        if let Err(StartError::Died { exit }) = started {
            self.ended.send_replace(Some(exit));
        }
        started?;
        self.follow(Output::Whole);
        Ok(())
    }

    /// Follows a started container: its output, and how it ends.
    fn follow(&self, output: Output) {
        let (host, id) = (Arc::clone(&self.host), self.id.clone());
        let instance = self.instance.clone();
        let ended = Arc::clone(&self.ended);
        tokio::spawn(async move {
            let logs = host.api.follow_logs(&id, &instance, output);
            let end = async {
                loop {
                    match host.api.wait(&id).await {
                        Ok(exit) => break ended.send_replace(Some(exit)),
                        Err(error) => {
                            tracing::warn!(instance, %error, "waiting for a container is interrupted");
                            tokio::time::sleep(RETRY_PAUSE).await;
                        }
                    }
                }
            };
            tokio::join!(logs, end);
        });
    }

    /// Nothing reaches a frozen container.
    async fn ensure_thawed(&self) {
        if let Err(error) = self.thaw().await {
            tracing::warn!(instance = self.instance, "cannot be thawed: {error}");
        }
    }
}

impl Process for DockerContainer {
    fn release(&self) -> BoxFuture<'_, Result<u64, StartError>> {
        Box::pin(async move {
            if self.released.swap(true, Ordering::Relaxed) {
                return Err(StartError::AlreadyReleased);
            }
            if !self.started.load(Ordering::Relaxed) {
                self.start().await?;
            }
            headstart_wire::monotonic_ns().map_err(StartError::system("reading the clock"))
        })
    }

    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(async {
            let mut ended = self.ended.subscribe();
            ended.wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or_default()
        })
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            if let Some(exit) = *self.ended.borrow() {
                return Err(StartError::Freeze { detail: format!("it has ended ({exit})") });
            }
            self.frozen.store(true, Ordering::Relaxed);
            let deadline = Instant::now() + FREEZE_TIMEOUT;
            let frozen = loop {
                match self.host.api.pause(&self.id).await {
                    // On cgroup v1 the daemon tries for some milliseconds, in which a process that waits for a processor
                    // does not stop.
                    Err(StartError::Freeze { .. })
                        if self.ended.borrow().is_none() && Instant::now() < deadline =>
                    {
                        tokio::time::sleep(PAUSE_AGAIN).await;
                    }
                    paused => break paused,
                }
            };
            if frozen.is_err() {
                self.ensure_thawed().await;
            }
            frozen
        })
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            if self.frozen.load(Ordering::Relaxed) {
                self.host.api.unpause(&self.id).await?;
                self.frozen.store(false, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(error) = self.host.api.terminate(&self.id).await {
                tracing::debug!(instance = self.instance, %error, "a container was not asked to stop");
            }
            self.ensure_thawed().await;
        })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async move {
            let _turn = self.removal.lock().await;
            self.ensure_thawed().await;
            self.host.api.remove(&self.id).await?;
            set_killed(&self.ended);
            directory::remove(&self.directory)
        })
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn owns(&self, pid: i32) -> bool {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.lines().any(|line| line.contains(&self.id))
    }
}

/// A parked container has no process that could end, but others may remove it.
async fn watch_removal(host: Arc<DockerHost>, id: String, ended: Arc<watch::Sender<Option<Exit>>>) {
    while let Err(error) = host.api.wait_removed(&id).await {
        tracing::debug!(id, %error, "waiting for a container's removal is interrupted");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    set_killed(&ended);
}

/// Notes that a container is gone, unless it is known how it ended.
fn set_killed(ended: &watch::Sender<Option<Exit>>) {
    ended.send_if_modified(|exit| {
        let unknown = exit.is_none();
        exit.get_or_insert(KILLED);
        unknown
    });
}
