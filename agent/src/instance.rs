//! One instance, from its release to its end: the task that talks to it and times it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use headstart_wire::WireError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::event::Demand;
use crate::inject::{Conversation, Dowry, Said, until};
use crate::measure::{self, Outcome, Stages, Starts, Timeline, now_ns};
use crate::start::{Exit, Parked, Process, StartError};

/// What an instance's task tells the one that owns the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// It accepts connections.
    Ready,
    /// It says that it has answered its first connection.
    Served,
    /// It is gone; with what went wrong, unless it was asked to go or exited with code 0.
    Gone { wrong: Option<String> },
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
    pub(crate) parked: Parked,
    pub(crate) demand: Demand,
    pub(crate) dowry: Dowry,
    pub(crate) stop_grace: Duration,
    /// See [`crate::serve::Watch::connected_ns`].
    pub(crate) connected_ns: Arc<AtomicU64>,
    pub(crate) starts: Arc<Starts>,
}

/// Why the loop over an instance's life ended.
enum End {
    Exited(Exit),
    NotStarted(StartError),
    NoLease(WireError),
}

struct Instance {
    timeline: Timeline,
    process: Arc<dyn Process>,
    connected_ns: Arc<AtomicU64>,
    starts: Arc<Starts>,
    stop_grace: Duration,
    /// Somebody asked it to go.
    asked: bool,
    /// When it is killed.
    kill_at: Option<Instant>,
}

/// Leases, releases, listens, measures; then cleans up. The last thing that it
/// reports is always `Gone`.
pub(crate) async fn run(birth: Birth, mut stop: mpsc::Receiver<()>, report: &impl Reporter) {
    let (function, name) = (birth.dowry.function.clone(), birth.name.clone());
    let timeline = Timeline {
        function,
        instance: name.clone(),
        runtime: birth.runtime,
        trigger: birth.demand.trigger,
        outcome: Outcome::Starting,
        syn_ns: birth.demand.at_ns,
        event_ns: birth.demand.seen_ns,
        start_ns: 0,
        exec_ns: None,
        hello_ns: None,
        injected_ns: None,
        ready_ns: None,
        connected_ns: None,
        accept_ns: None,
        first_response_ns: None,
        stages: Stages::default(),
    };
    let mut instance = Instance {
        timeline,
        process: Arc::clone(&birth.parked.process),
        connected_ns: birth.connected_ns,
        starts: birth.starts,
        stop_grace: birth.stop_grace,
        asked: false,
        kill_at: None,
    };
    let end = match Conversation::begin(birth.dowry, &name, birth.parked.control) {
        Ok(mut conversation) => instance.live(&mut conversation, &mut stop, report).await,
        Err(error) => End::NoLease(error),
    };
    let wrong = instance.ended(&end);
    report.report(Report::Gone { wrong }).await;
    if let Err(error) = instance.process.remove().await {
        tracing::error!(instance = name, "cannot be removed: {error}");
    }
}

impl Instance {
    async fn live(
        &mut self,
        conversation: &mut Conversation,
        stop: &mut mpsc::Receiver<()>,
        report: &impl Reporter,
    ) -> End {
        let process = Arc::clone(&self.process);
        self.timeline.start_ns = now_ns();
        let (mut release, mut exited) = (process.release(), process.exited());
        let (mut released, mut listening) = (false, true);
        loop {
            tokio::select! {
                exec = &mut release, if !released => match exec {
                    Ok(exec_ns) => {
                        released = true;
                        self.executed(exec_ns);
                    }
                    Err(error) => return End::NotStarted(error),
                },
                said = conversation.next(&*process), if listening => {
                    listening = said != Said::Closed;
                    if self.heard(said) {
                        report.report(Report::Ready).await;
                    } else if matches!(said, Said::Served { .. }) {
                        report.report(Report::Served).await;
                    } else if !listening && self.timeline.ready_ns.is_none() && self.kill_at.is_none() {
                        // It exited (which we are about to see) or broke the protocol.
                        self.terminate().await;
                    }
                }
                exit = &mut exited => return End::Exited(exit),
                Some(()) = stop.recv(), if !self.asked => {
                    self.asked = true;
                    self.terminate().await;
                }
                () = until(self.kill_at) => {
                    self.kill_at = None;
                    tracing::warn!(instance = self.timeline.instance, "did not stop in time: killed");
                    if let Err(error) = process.remove().await {
                        tracing::error!(instance = self.timeline.instance, "cannot be killed: {error}");
                    }
                }
            }
        }
    }

    /// SIGTERM now, the end after the grace period.
    async fn terminate(&mut self) {
        self.kill_at = Some(Instant::now() + self.stop_grace);
        self.process.terminate().await;
    }

    /// The runtime saw the exec, perhaps only after the function has spoken: that it speaks shows it too.
    fn executed(&mut self, exec_ns: u64) {
        let timeline = &mut self.timeline;
        let exec_ns = Timeline::clamp(exec_ns, timeline.start_ns, now_ns());
        timeline.exec_ns = Some(timeline.exec_ns.map_or(exec_ns, |shown_ns| exec_ns.min(shown_ns)));
    }

    /// Notes what the instance said. True when it has just become ready.
    fn heard(&mut self, said: Said) -> bool {
        let timeline = &mut self.timeline;
        let now = now_ns();
        let after = |step: Option<u64>| step.unwrap_or(timeline.start_ns);
        match said {
            Said::Hello { hello_ns } => {
                let hello_ns = Timeline::clamp(hello_ns, after(timeline.exec_ns), now);
                timeline.hello_ns = Some(hello_ns);
                timeline.exec_ns.get_or_insert(hello_ns);
            }
            Said::Injected { injected_ns } => {
                timeline.injected_ns = Some(Timeline::clamp(injected_ns, after(timeline.hello_ns), now));
            }
            Said::Ready { ready_ns } => {
                timeline.ready_ns = Some(Timeline::clamp(ready_ns, after(timeline.injected_ns), now));
                let connected_ns = self.connected_ns.load(Ordering::Relaxed);
                timeline.connected_ns = (connected_ns > 0).then_some(connected_ns);
                timeline.outcome = Outcome::Ready;
                timeline.update();
                measure::record_outcome(timeline);
                measure::record_stages(timeline, &timeline.stages.named()[..6]);
                self.starts.put(timeline);
                return true;
            }
            Said::Served { accept_ns, first_response_ns } => {
                let accept_ns = Timeline::clamp(accept_ns, after(timeline.ready_ns), now);
                timeline.accept_ns = Some(accept_ns);
                timeline.first_response_ns = Some(Timeline::clamp(first_response_ns, accept_ns, now));
                timeline.update();
                measure::record_stages(timeline, &timeline.stages.named()[6..]);
                timeline.log();
                self.starts.put(timeline);
            }
            Said::Closed => {}
        }
        false
    }

    /// Says how it ended, and returns what was wrong with that.
    fn ended(&mut self, end: &End) -> Option<String> {
        let (asked, instance) = (self.asked, &self.timeline.instance);
        let early = if self.timeline.ready_ns.is_none() { " before it was ready" } else { "" };
        let wrong = match end {
            End::Exited(exit) if asked || exit.code == Some(0) => {
                tracing::info!(instance, asked, "instance ended{early}: {exit}");
                None
            }
            End::Exited(exit) => Some(("exit", format!("instance ended{early}: {exit}"))),
            End::NotStarted(error) => Some((error.reason(), format!("instance not started: {error}"))),
            End::NoLease(error) => Some((error.reason(), format!("instance not started: {error}"))),
        };
        match &wrong {
            // The function's own doing.
            Some((reason @ "exit", text)) => tracing::warn!(instance, reason, "{text}"),
            Some((reason, text)) => tracing::error!(instance, reason, "{text}"),
            None => {}
        }
        let timeline = &mut self.timeline;
        if timeline.ready_ns.is_none() {
            timeline.outcome = Outcome::Failed;
            timeline.update();
            measure::record_outcome(timeline);
            measure::record_stages(timeline, &timeline.stages.named()[..6]);
            self.starts.put(timeline);
        }
        if timeline.accept_ns.is_none() {
            timeline.log();
        }
        wrong.map(|(_, text)| text)
    }
}
