//! One instance, from its release to its end: the task that exchanges messages with it and measures its start.

mod cold_start;
mod end;
mod freeze;
mod hibernate;
mod store;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use headstart_config::Contract;
use headstart_wire::WireError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::event::{Demand, InstanceEnd};
use crate::inject::{Conversation, Resources, ShimEvent, until};
use crate::manager::DescriptorStore;
use crate::measure::{self, StartHistory, Timeline, now_ns};
use crate::serve::CountedInstance;
use crate::start::{Note, PreparedContainer, Process};
use cold_start::ColdStart;
use end::{EndedInstance, TaskEnd};
use freeze::{FreezeAttempt, FreezeState, ThawedFrom, attempt_end};
pub(crate) use hibernate::MemoryUse;
use hibernate::{Hibernation, PageOutAttempt};

/// A program that speaks to the agent says hello within milliseconds of its exec, unless it loads a great deal before.
const HELLO_WAIT: Duration = Duration::from_secs(1);

/// What the node tells an instance's task to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstanceCommand {
    /// Ask the instance to stop, and kill it if it does not.
    Stop,
    /// Freeze the instance, unless it has a connection.
    Freeze,
    /// Write the memory of the frozen instance to swap.
    Hibernate,
    /// Thaw the instance, for this demand.
    Thaw(Demand),
}

/// What an instance's task reports to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InstanceReport {
    /// The instance accepts connections; also after a thaw.
    Ready,
    /// The instance reports that it has answered its first connection.
    Served,
    /// The instance runs for a while and has not said hello.
    Silent,
    /// The instance is frozen.
    Frozen,
    /// The instance is not frozen, and accepts. `error` says what went wrong, unless it is busy.
    NotFrozen { busy: bool, error: Option<String> },
    /// The memory of the frozen instance is in swap.
    Hibernated(MemoryUse),
    /// It could not be written there, and this is why.
    NotHibernated(String),
    /// The instance is gone. `error` says what went wrong, unless it was asked to stop or exited with code 0.
    Gone { end: InstanceEnd, error: Option<String> },
}

/// The receiver of the reports.
pub(crate) trait Reporter: Send + Sync {
    /// Takes one report, waiting for room if there is none.
    fn report(&self, report: InstanceReport) -> impl Future<Output = ()> + Send;
}

/// What an instance is started with.
pub(crate) struct Launch {
    pub(crate) name: String,
    pub(crate) runtime: &'static str,
    pub(crate) origin: InstanceOrigin,
    /// The page on which it counts its connections.
    pub(crate) page: OwnedFd,
    pub(crate) resources: Resources,
    /// The fingerprint of its configuration.
    pub(crate) fingerprint: String,
    /// It gives its backend connections back when it is frozen.
    pub(crate) return_backends: bool,
    pub(crate) stop_grace: Duration,
    /// Since when connections wait, in nanoseconds of `CLOCK_MONOTONIC`; 0 while none does.
    pub(crate) connected_ns: Arc<AtomicU64>,
    pub(crate) starts: Arc<StartHistory>,
    /// Where its descriptors are stored for the next agent.
    pub(crate) descriptor_store: DescriptorStore,
    /// How it gets its connections.
    pub(crate) contract: Contract,
    /// The agent counts its connections.
    pub(crate) counted: Option<CountedInstance>,
}

/// How the task comes to its instance.
pub(crate) enum InstanceOrigin {
    /// The task releases a parked container.
    New { parked: PreparedContainer, demand: Demand },
    /// An earlier agent released it; it runs.
    Adopted { process: Arc<dyn Process>, control: OwnedFd, note: Note },
}

impl InstanceOrigin {
    /// Its container.
    pub(crate) fn process(&self) -> Arc<dyn Process> {
        match self {
            Self::New { parked, .. } => Arc::clone(&parked.process),
            Self::Adopted { process, .. } => Arc::clone(process),
        }
    }
}

struct InstanceTask {
    name: String,
    function: String,
    /// Its cold start, unless that was an earlier agent's.
    cold_start: Option<ColdStart>,
    process: Arc<dyn Process>,
    counted: Option<CountedInstance>,
    page: OwnedFd,
    descriptor_store: DescriptorStore,
    note: Note,
    return_backends: bool,
    stop_grace: Duration,
    /// It has reported that it accepts.
    ready: bool,
    freeze_state: FreezeState,
    hibernation: Hibernation,
    /// Its descriptors are stored for the next agent.
    stored: bool,
    /// It was asked to stop.
    stop_requested: bool,
    /// When it is killed.
    kill_at: Option<Instant>,
    contract: Contract,
    /// By when a program of contract `headstart` should have said hello.
    hello_by: Option<Instant>,
}

/// Sends the lease, releases the container, and supervises the instance until its end; then cleans up. The last report
/// is always `Gone`.
pub(crate) async fn run(
    launch: Launch,
    mut commands: mpsc::Receiver<InstanceCommand>,
    reporter: &impl Reporter,
) {
    let (mut instance, conversation) = begin(launch);
    let (end, violation, no_backend) = match conversation {
        Ok(mut conversation) => {
            let end = instance.supervise(&mut conversation, &mut commands, reporter).await;
            let no_backend = conversation.unavailable_backend().map(str::to_owned);
            (end, conversation.violation().map(str::to_owned), no_backend)
        }
        Err(error) => (TaskEnd::NoLease(error), None, None),
    };
    if instance.stored {
        instance.descriptor_store.remove_instance(&instance.name);
    }
    // Only what an instance says that never was ready, or that ended unasked, tells what is wrong.
    let tells = !(instance.ready && instance.stop_requested) && matches!(end, TaskEnd::Exited(_));
    let last_words = if tells { instance.process.last_words().await } else { String::new() };
    let ended = EndedInstance {
        name: &instance.name,
        last_words: &last_words,
        ready: instance.ready,
        stop_requested: instance.stop_requested,
        violation: violation.as_deref(),
        no_backend: no_backend.as_deref(),
    };
    let (end, error) = ended.log(&end);
    if let Some(cold_start) = &mut instance.cold_start {
        cold_start.ended();
    }
    reporter.report(InstanceReport::Gone { end, error }).await;
    if let Err(error) = instance.process.remove().await {
        tracing::error!(instance = instance.name, "cannot be removed: {error}");
    }
}

/// Makes the task's state, and queues the lease of an instance that is new.
fn begin(launch: Launch) -> (InstanceTask, Result<Conversation, WireError>) {
    let Launch { name, resources, page, .. } = launch;
    let function = resources.function.clone();
    let (process, cold_start, note) = match &launch.origin {
        InstanceOrigin::New { parked, demand } => {
            let timeline = Timeline::new(function.clone(), name.clone(), launch.runtime, demand);
            let cold_start = ColdStart::new(timeline, launch.connected_ns, launch.starts, launch.contract);
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
    let instance = InstanceTask {
        name,
        function,
        ready: cold_start.is_none(),
        stored: cold_start.is_none(),
        cold_start,
        process,
        counted: launch.counted,
        page,
        descriptor_store: launch.descriptor_store,
        freeze_state: FreezeState::Running,
        hibernation: Hibernation::default(),
        note,
        return_backends: launch.return_backends,
        stop_grace: launch.stop_grace,
        stop_requested: false,
        kill_at: None,
        contract: launch.contract,
        hello_by: None,
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
    (instance, conversation)
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
        // A future does nothing until it is polled: an instance that runs already is not released again.
        let (mut release, mut exited) = (process.release(), process.exited());
        let (mut listening, mut freezing): (_, FreezeAttempt<'_>) = (true, None);
        let mut paging_out: PageOutAttempt = None;
        loop {
            tokio::select! {
                exec = &mut release, if !released => match exec {
                    Ok(exec_ns) => {
                        released = true;
                        self.hello_by = self.expect_hello();
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
                        paging_out = None;
                        self.control_closed(reporter).await;
                    }
                }
                exit = &mut exited => return TaskEnd::Exited(exit),
                Some(command) = commands.recv(), if !self.stop_requested => {
                    if command == InstanceCommand::Stop {
                        freezing = None;
                    }
                    let hibernates =
                        command == InstanceCommand::Hibernate && self.freeze_state == FreezeState::Frozen;
                    paging_out = hibernates
                        .then(|| self.hibernation.page_out(Arc::clone(&process)));
                    self.on_command(command, conversation, reporter).await;
                }
                hibernated = attempt_end(&mut paging_out) => {
                    let report = self.page_out_ended(hibernated);
                    reporter.report(report).await;
                }
                frozen = attempt_end(&mut freezing) => {
                    if let Some(counted) = &self.counted {
                        // A connection that was accepted before all had stopped is seen by the decision, which thaws it.
                        counted.count().await;
                    }
                    let report = self.freeze_ended(frozen, conversation);
                    reporter.report(report).await;
                }
                () = until(self.freeze_state.answer_by()) => {
                    self.freeze_unanswered(conversation, reporter).await;
                }
                () = until(self.hello_by) => {
                    self.hello_by = None;
                    reporter.report(InstanceReport::Silent).await;
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

    /// When an instance that has just been released will be late to say hello.
    fn expect_hello(&self) -> Option<Instant> {
        let said = self.cold_start.as_ref().is_some_and(ColdStart::has_said_hello);
        (self.contract.speaks() && !said).then(|| Instant::now() + HELLO_WAIT)
    }

    /// Does what the node asks for.
    async fn on_command(
        &mut self,
        command: InstanceCommand,
        conversation: &mut Conversation,
        reporter: &impl Reporter,
    ) {
        match command {
            InstanceCommand::Stop => {
                self.stop_requested = true;
                self.terminate().await;
            }
            InstanceCommand::Freeze => self.request_freeze(conversation, reporter).await,
            InstanceCommand::Hibernate => {
                // It may have been thawed to be stopped.
                if self.freeze_state == FreezeState::Frozen {
                    self.freeze_state = FreezeState::Hibernating;
                }
            }
            InstanceCommand::Thaw(demand) => {
                let state = ThawedFrom::of(self.freeze_state);
                self.hibernation.wake();
                self.freeze_state = FreezeState::Thawing(demand, state);
                self.resume(conversation).await;
            }
        }
    }

    /// The control socket is closed: the instance has ended, and its exit follows, or it has broken the protocol.
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
            // It can no longer report that it accepts.
            _ => self.terminate().await,
        }
    }

    /// Sends SIGTERM now, and kills the instance after the grace period.
    async fn terminate(&mut self) {
        self.kill_at = Some(Instant::now() + self.stop_grace);
        self.process.terminate().await;
    }

    /// Notes what the shim reports, and returns what the node must know.
    fn on_shim_event(&mut self, event: ShimEvent) -> Option<InstanceReport> {
        match event {
            ShimEvent::Busy => {
                self.freeze_state = FreezeState::Running;
                return Some(InstanceReport::NotFrozen { busy: true, error: None });
            }
            ShimEvent::Thawed { thawed_ns } => {
                // Without a thaw under way it was not frozen after all, which has been reported, or an earlier agent had
                // frozen it. The next freeze may have been asked for already.
                let FreezeState::Thawing(demand, state) = self.freeze_state else { return None };
                self.freeze_state = FreezeState::Running;
                let thawed_ns = Timeline::clamp(thawed_ns, demand.at_ns, now_ns());
                measure::record_thaw(&self.function, &demand, state.as_str(), thawed_ns);
                return Some(InstanceReport::Ready);
            }
            ShimEvent::Quiet | ShimEvent::BackendsChanged | ShimEvent::Closed => return None,
            ShimEvent::Ready { ready_ns } => {
                self.ready = true;
                self.note.ready_ns = ready_ns;
            }
            ShimEvent::Hello { .. } => self.hello_by = None,
            ShimEvent::Injected { .. } | ShimEvent::Served { .. } => {}
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
}
