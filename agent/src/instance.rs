//! One instance, from its release to its end: the task that talks to it and times it.

mod cold_start;

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use headstart_wire::WireError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::event::{Demand, InstanceEnd};
use crate::inject::{Conversation, Resources, ShimEvent, until};
use crate::manager::DescriptorStore;
use crate::measure::{self, StartHistory, Timeline, now_ns};
use crate::start::{BoxFuture, Exit, Note, Parked, Process, StartError};
use cold_start::ColdStart;

/// How long an instance may take to say whether it can be frozen. Above what the shim gives to its hooks.
const QUIET_WAIT: Duration = Duration::from_secs(5);

/// What the owner of the state tells an instance's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstanceCommand {
    /// Ask it to go; kill it when it does not.
    Stop,
    /// Freeze it, unless somebody is connected.
    Freeze,
    /// Let it run again, for this demand.
    Thaw(Demand),
}

/// What an instance's task tells the one that owns the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InstanceReport {
    /// It accepts connections; also after a thaw.
    Ready,
    /// It says that it has answered its first connection.
    Served,
    /// It is frozen.
    Frozen,
    /// It is not, and accepts; with what went wrong, unless somebody is connected.
    NotFrozen { busy: bool, error: Option<String> },
    /// It is gone; with what went wrong, unless it was asked to go or exited with code 0.
    Gone { end: InstanceEnd, error: Option<String> },
}

/// Who is told.
pub(crate) trait Reporter: Send + Sync {
    /// Takes one report, waiting for room if there is none.
    fn report(&self, report: InstanceReport) -> impl Future<Output = ()> + Send;
}

/// What an instance is started with.
pub(crate) struct Launch {
    pub(crate) name: String,
    pub(crate) runtime: &'static str,
    pub(crate) origin: InstanceOrigin,
    /// What it counts its connections on.
    pub(crate) page: OwnedFd,
    pub(crate) resources: Resources,
    /// Of its configuration.
    pub(crate) fingerprint: String,
    /// It gives its backend connections back when it is frozen.
    pub(crate) return_backends: bool,
    pub(crate) stop_grace: Duration,
    /// Since when connections wait, in nanoseconds of `CLOCK_MONOTONIC`; 0 while none does.
    pub(crate) connected_ns: Arc<AtomicU64>,
    pub(crate) starts: Arc<StartHistory>,
    /// Who keeps its descriptors for the next agent.
    pub(crate) descriptor_store: DescriptorStore,
}

/// Where its life begins.
pub(crate) enum InstanceOrigin {
    /// A parked container is let go.
    New { parked: Parked, demand: Demand },
    /// An earlier agent let it go; it runs.
    Adopted { process: Arc<dyn Process>, control: OwnedFd, note: Note },
}

/// Why the loop over an instance's life ended.
enum TaskEnd {
    Exited(Exit),
    NotStarted(StartError),
    NoLease(WireError),
}

/// Where it is between running and frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FreezeState {
    /// It runs.
    Running,
    /// It was told that it is to be frozen, and has to answer until then.
    Requested { answer_by: Instant },
    /// It has answered, and its processes are being stopped.
    Freezing,
    /// They are stopped.
    Frozen,
    /// It runs again and has not said that it accepts.
    Thawing(Demand),
}

type FreezeAttempt<'a> = Option<BoxFuture<'a, Result<(), StartError>>>;

struct InstanceTask {
    name: String,
    function: String,
    /// Its cold start, unless that was an earlier agent's.
    cold_start: Option<ColdStart>,
    process: Arc<dyn Process>,
    page: OwnedFd,
    descriptor_store: DescriptorStore,
    note: Note,
    return_backends: bool,
    stop_grace: Duration,
    /// It has said that it accepts.
    ready: bool,
    freeze_state: FreezeState,
    /// Its descriptors are kept for the next agent.
    stored: bool,
    /// Somebody asked it to go.
    stop_requested: bool,
    /// When it is killed.
    kill_at: Option<Instant>,
}

/// Leases, releases, listens, measures; then cleans up. The last thing that it
/// reports is always `Gone`.
pub(crate) async fn run(
    launch: Launch,
    mut commands: mpsc::Receiver<InstanceCommand>,
    reporter: &impl Reporter,
) {
    let Launch { name, resources, page, .. } = launch;
    let function = resources.function.clone();
    let (process, cold_start, note) = match &launch.origin {
        InstanceOrigin::New { parked, demand } => {
            let timeline = Timeline::new(function.clone(), name.clone(), launch.runtime, demand);
            let cold_start = ColdStart::new(timeline, launch.connected_ns, launch.starts);
            let note = Note {
                function: function.clone(),
                fingerprint: launch.fingerprint,
                trigger: demand.trigger,
                ready_ns: 0,
                backends: Vec::new(),
            };
            (Arc::clone(&parked.process), Some(cold_start), note)
        }
        InstanceOrigin::Adopted { process, note, .. } => (Arc::clone(process), None, note.clone()),
    };
    let mut instance = InstanceTask {
        name,
        function,
        ready: cold_start.is_none(),
        stored: cold_start.is_none(),
        cold_start,
        process,
        page,
        descriptor_store: launch.descriptor_store,
        freeze_state: FreezeState::Running,
        note,
        return_backends: launch.return_backends,
        stop_grace: launch.stop_grace,
        stop_requested: false,
        kill_at: None,
    };
    let conversation = match launch.origin {
        InstanceOrigin::New { parked, .. } => match instance.page.try_clone() {
            Ok(page) => Conversation::begin(resources, &instance.name, parked.control, page),
            Err(error) => Err(error.into()),
        },
        InstanceOrigin::Adopted { control, .. } => {
            Conversation::resume(resources, &instance.name, control, &instance.note.backends)
        }
    };
    let (end, violation) = match conversation {
        Ok(mut conversation) => {
            let end = instance.supervise(&mut conversation, &mut commands, reporter).await;
            (end, conversation.violation().map(str::to_owned))
        }
        Err(error) => (TaskEnd::NoLease(error), None),
    };
    if instance.stored {
        instance.descriptor_store.remove_instance(&instance.name);
    }
    let (end, error) = instance.ended(&end, violation);
    reporter.report(InstanceReport::Gone { end, error }).await;
    if let Err(error) = instance.process.remove().await {
        tracing::error!(instance = instance.name, "cannot be removed: {error}");
    }
}

impl InstanceTask {
    async fn supervise(
        &mut self,
        conversation: &mut Conversation,
        commands: &mut mpsc::Receiver<InstanceCommand>,
        reporter: &impl Reporter,
    ) -> TaskEnd {
        let process = Arc::clone(&self.process);
        let mut released = self.cold_start.is_none();
        match &mut self.cold_start {
            Some(cold_start) => cold_start.lease_queued(),
            None => self.resume(conversation).await,
        }
        // Lazy: nothing is let go that runs already.
        let (mut release, mut exited) = (process.release(), process.exited());
        let (mut listening, mut freezing): (_, FreezeAttempt<'_>) = (true, None);
        loop {
            let unanswered = if let FreezeState::Requested { answer_by } = self.freeze_state {
                Some(answer_by)
            } else {
                None
            };
            tokio::select! {
                exec = &mut release, if !released => match exec {
                    Ok(exec_ns) => {
                        released = true;
                        if let Some(cold_start) = &mut self.cold_start {
                            cold_start.executed(exec_ns);
                        }
                    }
                    Err(error) => return TaskEnd::NotStarted(error),
                },
                event = conversation.next(&*process), if listening => {
                    listening = event != ShimEvent::Closed;
                    if event == ShimEvent::BackendsChanged {
                        if self.ready {
                            self.store(conversation);
                        }
                    } else if event == ShimEvent::Quiet && matches!(self.freeze_state, FreezeState::Requested { .. }) {
                        self.freeze_state = FreezeState::Freezing;
                        freezing = Some(process.freeze());
                    } else if let Some(report) = self.on_shim_event(event) {
                        reporter.report(report).await;
                        self.store(conversation);
                    } else if !listening {
                        self.control_closed(reporter).await;
                    }
                }
                exit = &mut exited => return TaskEnd::Exited(exit),
                Some(command) = commands.recv(), if !self.stop_requested => match command {
                    InstanceCommand::Stop => {
                        self.stop_requested = true;
                        freezing = None;
                        self.terminate().await;
                    }
                    InstanceCommand::Freeze => {
                        if let Err(error) = conversation.freeze(self.return_backends) {
                            let error = Some(format!("not frozen: it cannot be told: {error}"));
                            reporter.report(InstanceReport::NotFrozen { busy: false, error }).await;
                        } else {
                            self.freeze_state = FreezeState::Requested { answer_by: Instant::now() + QUIET_WAIT };
                        }
                    }
                    InstanceCommand::Thaw(demand) => self.thaw(demand, conversation).await,
                },
                frozen = done(&mut freezing) => {
                    let report = self.freeze_ended(frozen, conversation);
                    reporter.report(report).await;
                }
                () = until(unanswered) => {
                    // Whatever it says later is out of order, and it goes on.
                    self.freeze_state = FreezeState::Running;
                    let _ = conversation.thaw();
                    let error = format!("not frozen: no answer within {} s", QUIET_WAIT.as_secs());
                    tracing::warn!(instance = self.name, "{error}");
                    reporter.report(InstanceReport::NotFrozen { busy: false, error: Some(error) }).await;
                }
                () = until(self.kill_at) => {
                    self.kill_at = None;
                    tracing::warn!(instance = self.name, "did not stop in time: killed");
                    if let Err(error) = process.remove().await {
                        tracing::error!(instance = self.name, "cannot be killed: {error}");
                    }
                }
            }
        }
    }

    /// The outcome of an attempt to freeze it.
    fn freeze_ended(
        &mut self,
        frozen: Result<(), StartError>,
        conversation: &mut Conversation,
    ) -> InstanceReport {
        match frozen {
            Ok(()) => {
                self.freeze_state = FreezeState::Frozen;
                InstanceReport::Frozen
            }
            Err(error) => {
                self.freeze_state = FreezeState::Running;
                // It has been thawed, and waits to be told so.
                let _ = conversation.thaw();
                tracing::error!(instance = self.name, reason = error.reason(), "not frozen: {error}");
                InstanceReport::NotFrozen { busy: false, error: Some(format!("not frozen: {error}")) }
            }
        }
    }

    async fn thaw(&mut self, demand: Demand, conversation: &mut Conversation) {
        self.freeze_state = FreezeState::Thawing(demand);
        self.resume(conversation).await;
    }

    /// Has it run and accept, also when it does already: how far an earlier agent was with a freeze or a thaw nobody
    /// knows.
    async fn resume(&mut self, conversation: &mut Conversation) {
        // Queued first: it is there when the first instruction runs.
        let told = conversation.thaw().map_err(|error| error.to_string());
        let thawed = self.process.thaw().await.map_err(|error| error.to_string());
        if let Err(error) = told.and(thawed) {
            tracing::error!(instance = self.name, "not thawed: {error}");
            self.terminate().await;
        }
    }

    /// The control socket is closed: it ended, which we are about to see, or broke the protocol.
    async fn control_closed(&mut self, reporter: &impl Reporter) {
        if self.kill_at.is_some() {
            return;
        }
        match self.freeze_state {
            FreezeState::Running if self.ready => {}
            FreezeState::Requested { .. } => {
                self.freeze_state = FreezeState::Running;
                reporter.report(InstanceReport::NotFrozen { busy: false, error: None }).await;
            }
            // Nobody would ever learn that it accepts.
            _ => self.terminate().await,
        }
    }

    /// Has it kept for the next agent, as it is now.
    fn store(&mut self, conversation: &Conversation) {
        if !self.stored
            && let Some(control) = conversation.control()
        {
            self.stored =
                self.descriptor_store.store_instance(&self.name, control, self.page.as_fd()).is_ok();
        }
        if !self.stored {
            return;
        }
        self.note.backends = conversation.held();
        if let Err(error) = self.note.write(self.process.directory()) {
            tracing::error!(instance = self.name, "the next agent will not know it as it is now: {error}");
        }
    }

    /// SIGTERM now, the end after the grace period.
    async fn terminate(&mut self) {
        self.kill_at = Some(Instant::now() + self.stop_grace);
        self.process.terminate().await;
    }

    /// Notes what the instance said, and returns what is to be reported.
    fn on_shim_event(&mut self, event: ShimEvent) -> Option<InstanceReport> {
        match event {
            ShimEvent::Busy => {
                self.freeze_state = FreezeState::Running;
                return Some(InstanceReport::NotFrozen { busy: true, error: None });
            }
            ShimEvent::Thawed { thawed_ns } => {
                let freeze_state = std::mem::replace(&mut self.freeze_state, FreezeState::Running);
                // Otherwise it was not frozen after all, and that has been reported.
                let FreezeState::Thawing(demand) = freeze_state else { return None };
                let thawed_ns = Timeline::clamp(thawed_ns, demand.at_ns, now_ns());
                measure::record_thaw(&self.function, &demand, thawed_ns);
                return Some(InstanceReport::Ready);
            }
            ShimEvent::Quiet | ShimEvent::BackendsChanged | ShimEvent::Closed => return None,
            ShimEvent::Ready { ready_ns } => {
                self.ready = true;
                self.note.ready_ns = ready_ns;
            }
            ShimEvent::Hello { .. } | ShimEvent::Injected { .. } | ShimEvent::Served { .. } => {}
        }
        if let Some(cold_start) = &mut self.cold_start {
            cold_start.on_shim_event(event);
        }
        match event {
            ShimEvent::Ready { .. } => Some(InstanceReport::Ready),
            ShimEvent::Served { .. } => Some(InstanceReport::Served),
            _ => None,
        }
    }

    /// Says how it ended, and what was wrong with that.
    fn ended(&mut self, end: &TaskEnd, violation: Option<String>) -> (InstanceEnd, Option<String>) {
        let (asked, instance) = (self.stop_requested, &self.name);
        let early = if self.ready { "" } else { " before it was ready" };
        let (end, reason, error) = match end {
            TaskEnd::Exited(exit) if asked => {
                tracing::info!(instance, asked, "instance ended{early}: {exit}");
                (InstanceEnd::Asked, "", None)
            }
            TaskEnd::Exited(exit) if exit.code == Some(0) && self.ready => {
                tracing::info!(instance, asked, "instance ended: {exit}");
                (InstanceEnd::Exited, "", None)
            }
            TaskEnd::Exited(exit) => {
                let end = match exit {
                    Exit { oom: true, .. } => InstanceEnd::OutOfMemory,
                    Exit { code: Some(0), .. } => InstanceEnd::Exited,
                    Exit { code: None, signal: None, .. } => InstanceEnd::Unknown,
                    _ => InstanceEnd::Crashed,
                };
                let because = violation.map(|why| format!("; its control socket was closed: {why}"));
                (end, "exit", Some(format!("instance ended{early}: {exit}{}", because.unwrap_or_default())))
            }
            TaskEnd::NotStarted(error) => {
                (InstanceEnd::NotStarted, error.reason(), Some(format!("instance not started: {error}")))
            }
            TaskEnd::NoLease(error) => {
                (InstanceEnd::NotStarted, error.reason(), Some(format!("instance not started: {error}")))
            }
        };
        match &error {
            // The function's own doing.
            Some(text) if reason == "exit" => tracing::warn!(instance, reason, "{text}"),
            Some(text) => tracing::error!(instance, reason, "{text}"),
            None => {}
        }
        if let Some(cold_start) = &mut self.cold_start {
            cold_start.ended();
        }
        (end, error)
    }
}

/// The end of an attempt to freeze, when one is under way; then there is none any more.
async fn done(freezing: &mut FreezeAttempt<'_>) -> Result<(), StartError> {
    match freezing {
        Some(attempt) => {
            let outcome = attempt.await;
            *freezing = None;
            outcome
        }
        None => std::future::pending().await,
    }
}
