//! One instance, from its release to its end: the task that talks to it and times it.

mod cold_start;

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use headstart_wire::WireError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::event::{self, Demand};
use crate::inject::{Conversation, Resources, ShimEvent, until};
use crate::manager::Keeper;
use crate::measure::{self, Starts, Timeline, now_ns};
use crate::start::{BoxFuture, Exit, Note, Parked, Process, StartError};
use cold_start::ColdStart;

/// How long an instance may take to say whether it can be frozen. Above what the shim gives to its hooks.
const QUIET_WAIT: Duration = Duration::from_secs(5);

/// What the owner of the state tells an instance's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Ask it to go; kill it when it does not.
    Stop,
    /// Freeze it, unless somebody is connected.
    Freeze,
    /// Let it run again, for this demand.
    Thaw(Demand),
}

/// What an instance's task tells the one that owns the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// It accepts connections; also after a thaw.
    Ready,
    /// It says that it has answered its first connection.
    Served,
    /// It is frozen.
    Frozen,
    /// It is not, and accepts; with what went wrong, unless somebody is connected.
    NotFrozen { busy: bool, wrong: Option<String> },
    /// It is gone; with what went wrong, unless it was asked to go or exited with code 0.
    Gone { end: event::End, wrong: Option<String> },
}

/// Who is told.
pub(crate) trait Reporter: Send + Sync {
    /// Takes one report, waiting for room if there is none.
    fn report(&self, report: Report) -> impl Future<Output = ()> + Send;
}

/// What an instance is started with.
pub(crate) struct Birth {
    pub(crate) name: String,
    pub(crate) runtime: &'static str,
    pub(crate) life: Life,
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
    pub(crate) starts: Arc<Starts>,
    /// Who keeps its descriptors for the next agent.
    pub(crate) keeper: Keeper,
}

/// Where its life begins.
pub(crate) enum Life {
    /// A parked container is let go.
    New { parked: Parked, demand: Demand },
    /// An earlier agent let it go; it runs.
    Adopted { process: Arc<dyn Process>, control: OwnedFd, note: Note },
}

/// Why the loop over an instance's life ended.
enum End {
    Exited(Exit),
    NotStarted(StartError),
    NoLease(WireError),
}

/// Where it is between running and frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It runs.
    Awake,
    /// It was told that it is to be frozen, and has to answer until then.
    Told(Instant),
    /// It has answered, and its processes are being stopped.
    Stopping,
    /// They are stopped.
    Frozen,
    /// It runs again and has not said that it accepts.
    Woken(Demand),
}

type Freezing<'a> = Option<BoxFuture<'a, Result<(), StartError>>>;

struct Instance {
    name: String,
    function: String,
    /// Its cold start, unless that was an earlier agent's.
    cold_start: Option<ColdStart>,
    process: Arc<dyn Process>,
    page: OwnedFd,
    keeper: Keeper,
    note: Note,
    return_backends: bool,
    stop_grace: Duration,
    /// It has said that it accepts.
    ready: bool,
    rest: Rest,
    /// Its descriptors are kept for the next agent.
    kept: bool,
    /// Somebody asked it to go.
    asked: bool,
    /// When it is killed.
    kill_at: Option<Instant>,
}

/// Leases, releases, listens, measures; then cleans up. The last thing that it
/// reports is always `Gone`.
pub(crate) async fn run(birth: Birth, mut orders: mpsc::Receiver<Order>, report: &impl Reporter) {
    let Birth { name, resources, page, .. } = birth;
    let function = resources.function.clone();
    let (process, cold_start, note) = match &birth.life {
        Life::New { parked, demand } => {
            let timeline = Timeline::begun(function.clone(), name.clone(), birth.runtime, demand);
            let cold_start = ColdStart::new(timeline, birth.connected_ns, birth.starts);
            let note = Note {
                function: function.clone(),
                fingerprint: birth.fingerprint,
                trigger: demand.trigger,
                ready_ns: 0,
                backends: Vec::new(),
            };
            (Arc::clone(&parked.process), Some(cold_start), note)
        }
        Life::Adopted { process, note, .. } => (Arc::clone(process), None, note.clone()),
    };
    let mut instance = Instance {
        name,
        function,
        ready: cold_start.is_none(),
        kept: cold_start.is_none(),
        cold_start,
        process,
        page,
        keeper: birth.keeper,
        rest: Rest::Awake,
        note,
        return_backends: birth.return_backends,
        stop_grace: birth.stop_grace,
        asked: false,
        kill_at: None,
    };
    let conversation = match birth.life {
        Life::New { parked, .. } => match instance.page.try_clone() {
            Ok(page) => Conversation::begin(resources, &instance.name, parked.control, page),
            Err(error) => Err(error.into()),
        },
        Life::Adopted { control, .. } => {
            Conversation::resume(resources, &instance.name, control, &instance.note.backends)
        }
    };
    let (end, violation) = match conversation {
        Ok(mut conversation) => {
            let end = instance.live(&mut conversation, &mut orders, report).await;
            (end, conversation.violation().map(str::to_owned))
        }
        Err(error) => (End::NoLease(error), None),
    };
    if instance.kept {
        instance.keeper.forget_instance(&instance.name);
    }
    let (end, wrong) = instance.ended(&end, violation);
    report.report(Report::Gone { end, wrong }).await;
    if let Err(error) = instance.process.remove().await {
        tracing::error!(instance = instance.name, "cannot be removed: {error}");
    }
}

impl Instance {
    async fn live(
        &mut self,
        conversation: &mut Conversation,
        orders: &mut mpsc::Receiver<Order>,
        report: &impl Reporter,
    ) -> End {
        let process = Arc::clone(&self.process);
        let mut released = self.cold_start.is_none();
        match &mut self.cold_start {
            Some(cold_start) => cold_start.begun(),
            None => self.awaken(conversation).await,
        }
        // Lazy: nothing is let go that runs already.
        let (mut release, mut exited) = (process.release(), process.exited());
        let (mut listening, mut freezing): (_, Freezing<'_>) = (true, None);
        loop {
            let unanswered = if let Rest::Told(until) = self.rest { Some(until) } else { None };
            tokio::select! {
                exec = &mut release, if !released => match exec {
                    Ok(exec_ns) => {
                        released = true;
                        if let Some(cold_start) = &mut self.cold_start {
                            cold_start.executed(exec_ns);
                        }
                    }
                    Err(error) => return End::NotStarted(error),
                },
                event = conversation.next(&*process), if listening => {
                    listening = event != ShimEvent::Closed;
                    if event == ShimEvent::BackendsChanged {
                        if self.ready {
                            self.keep(conversation);
                        }
                    } else if event == ShimEvent::Quiet && matches!(self.rest, Rest::Told(_)) {
                        self.rest = Rest::Stopping;
                        freezing = Some(process.freeze());
                    } else if let Some(told) = self.heard(event) {
                        report.report(told).await;
                        self.keep(conversation);
                    } else if !listening {
                        self.unheard(report).await;
                    }
                }
                exit = &mut exited => return End::Exited(exit),
                Some(order) = orders.recv(), if !self.asked => match order {
                    Order::Stop => {
                        self.asked = true;
                        freezing = None;
                        self.terminate().await;
                    }
                    Order::Freeze => {
                        if let Err(error) = conversation.freeze(self.return_backends) {
                            let wrong = Some(format!("not frozen: it cannot be told: {error}"));
                            report.report(Report::NotFrozen { busy: false, wrong }).await;
                        } else {
                            self.rest = Rest::Told(Instant::now() + QUIET_WAIT);
                        }
                    }
                    Order::Thaw(demand) => self.thaw(demand, conversation).await,
                },
                frozen = done(&mut freezing) => {
                    let told = self.froze(frozen, conversation);
                    report.report(told).await;
                }
                () = until(unanswered) => {
                    // Whatever it says later is out of order, and it goes on.
                    self.rest = Rest::Awake;
                    let _ = conversation.thaw();
                    let wrong = format!("not frozen: no answer within {} s", QUIET_WAIT.as_secs());
                    tracing::warn!(instance = self.name, "{wrong}");
                    report.report(Report::NotFrozen { busy: false, wrong: Some(wrong) }).await;
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
    fn froze(&mut self, frozen: Result<(), StartError>, conversation: &mut Conversation) -> Report {
        match frozen {
            Ok(()) => {
                self.rest = Rest::Frozen;
                Report::Frozen
            }
            Err(error) => {
                self.rest = Rest::Awake;
                // It has been thawed, and waits to be told so.
                let _ = conversation.thaw();
                tracing::error!(instance = self.name, reason = error.reason(), "not frozen: {error}");
                Report::NotFrozen { busy: false, wrong: Some(format!("not frozen: {error}")) }
            }
        }
    }

    async fn thaw(&mut self, demand: Demand, conversation: &mut Conversation) {
        self.rest = Rest::Woken(demand);
        self.awaken(conversation).await;
    }

    /// Has it run and accept, also when it does already: how far an earlier agent was with a freeze or a thaw nobody
    /// knows.
    async fn awaken(&mut self, conversation: &mut Conversation) {
        // Queued first: it is there when the first instruction runs.
        let told = conversation.thaw().map_err(|error| error.to_string());
        let thawed = self.process.thaw().await.map_err(|error| error.to_string());
        if let Err(error) = told.and(thawed) {
            tracing::error!(instance = self.name, "not thawed: {error}");
            self.terminate().await;
        }
    }

    /// The control socket is closed: it ended, which we are about to see, or broke the protocol.
    async fn unheard(&mut self, report: &impl Reporter) {
        if self.kill_at.is_some() {
            return;
        }
        match self.rest {
            Rest::Awake if self.ready => {}
            Rest::Told(_) => {
                self.rest = Rest::Awake;
                report.report(Report::NotFrozen { busy: false, wrong: None }).await;
            }
            // Nobody would ever learn that it accepts.
            _ => self.terminate().await,
        }
    }

    /// Has it kept for the next agent, as it is now.
    fn keep(&mut self, conversation: &Conversation) {
        if !self.kept
            && let Some(control) = conversation.control()
        {
            self.kept = self.keeper.keep_instance(&self.name, control, self.page.as_fd()).is_ok();
        }
        if !self.kept {
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
    fn heard(&mut self, event: ShimEvent) -> Option<Report> {
        match event {
            ShimEvent::Busy => {
                self.rest = Rest::Awake;
                return Some(Report::NotFrozen { busy: true, wrong: None });
            }
            ShimEvent::Thawed { thawed_ns } => {
                let rest = std::mem::replace(&mut self.rest, Rest::Awake);
                // Otherwise it was not frozen after all, and that has been reported.
                let Rest::Woken(demand) = rest else { return None };
                let thawed_ns = Timeline::clamp(thawed_ns, demand.at_ns, now_ns());
                measure::record_thaw(&self.function, &demand, thawed_ns);
                return Some(Report::Ready);
            }
            ShimEvent::Quiet | ShimEvent::BackendsChanged | ShimEvent::Closed => return None,
            ShimEvent::Ready { ready_ns } => {
                self.ready = true;
                self.note.ready_ns = ready_ns;
            }
            ShimEvent::Hello { .. } | ShimEvent::Injected { .. } | ShimEvent::Served { .. } => {}
        }
        if let Some(cold_start) = &mut self.cold_start {
            cold_start.heard(event);
        }
        match event {
            ShimEvent::Ready { .. } => Some(Report::Ready),
            ShimEvent::Served { .. } => Some(Report::Served),
            _ => None,
        }
    }

    /// Says how it ended, and what was wrong with that.
    fn ended(&mut self, end: &End, violation: Option<String>) -> (event::End, Option<String>) {
        let (asked, instance) = (self.asked, &self.name);
        let early = if self.ready { "" } else { " before it was ready" };
        let (end, reason, wrong) = match end {
            End::Exited(exit) if asked => {
                tracing::info!(instance, asked, "instance ended{early}: {exit}");
                (event::End::Asked, "", None)
            }
            End::Exited(exit) if exit.code == Some(0) && self.ready => {
                tracing::info!(instance, asked, "instance ended: {exit}");
                (event::End::Exited, "", None)
            }
            End::Exited(exit) => {
                let end = match exit {
                    Exit { oom: true, .. } => event::End::OutOfMemory,
                    Exit { code: Some(0), .. } => event::End::Exited,
                    Exit { code: None, signal: None, .. } => event::End::Unknown,
                    _ => event::End::Crashed,
                };
                let because = violation.map(|why| format!("; its control socket was closed: {why}"));
                (end, "exit", Some(format!("instance ended{early}: {exit}{}", because.unwrap_or_default())))
            }
            End::NotStarted(error) => {
                (event::End::NotStarted, error.reason(), Some(format!("instance not started: {error}")))
            }
            End::NoLease(error) => {
                (event::End::NotStarted, error.reason(), Some(format!("instance not started: {error}")))
            }
        };
        match &wrong {
            // The function's own doing.
            Some(text) if reason == "exit" => tracing::warn!(instance, reason, "{text}"),
            Some(text) => tracing::error!(instance, reason, "{text}"),
            None => {}
        }
        if let Some(cold_start) = &mut self.cold_start {
            cold_start.ended();
        }
        (end, wrong)
    }
}

/// The end of an attempt to freeze, when one is under way; then there is none any more.
async fn done(freezing: &mut Freezing<'_>) -> Result<(), StartError> {
    match freezing {
        Some(attempt) => {
            let outcome = attempt.await;
            *freezing = None;
            outcome
        }
        None => std::future::pending().await,
    }
}
