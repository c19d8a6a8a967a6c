//! The times of one instance's cold start: measured, logged and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use headstart_config::Contract;

use crate::inject::ShimEvent;
use crate::measure::{self, StartHistory, StartOutcome, Timeline, now_ns};

pub(super) struct ColdStart {
    timeline: Timeline,
    /// Since when connections wait, in nanoseconds of `CLOCK_MONOTONIC`; 0 while none does.
    connected_ns: Arc<AtomicU64>,
    starts: Arc<StartHistory>,
    /// It reports its first answer.
    reports_answer: bool,
}

impl ColdStart {
    pub(super) fn new(
        timeline: Timeline,
        connected_ns: Arc<AtomicU64>,
        starts: Arc<StartHistory>,
        contract: Contract,
    ) -> Self {
        Self { timeline, connected_ns, starts, reports_answer: contract.speaks() }
    }

    pub(super) fn has_said_hello(&self) -> bool {
        self.timeline.hello_ns.is_some()
    }

    /// The lease is queued, and the container is released next.
    pub(super) fn lease_queued(&mut self) {
        self.timeline.start_ns = now_ns();
    }

    /// The runtime saw the exec. The first message of the shim may have come before that, and shows the exec too.
    pub(super) fn executed(&mut self, exec_ns: u64) {
        let timeline = &mut self.timeline;
        let exec_ns = Timeline::clamp(exec_ns, timeline.start_ns, now_ns());
        timeline.exec_ns = Some(timeline.exec_ns.map_or(exec_ns, |shown_ns| exec_ns.min(shown_ns)));
    }

    /// Notes what the shim reports.
    pub(super) fn on_shim_event(&mut self, event: ShimEvent) {
        let timeline = &mut self.timeline;
        let now = now_ns();
        let after = |step: Option<u64>| step.unwrap_or(timeline.start_ns);
        match event {
            ShimEvent::Hello { hello_ns } => {
                let hello_ns = Timeline::clamp(hello_ns, after(timeline.exec_ns), now);
                timeline.hello_ns = Some(hello_ns);
                timeline.exec_ns.get_or_insert(hello_ns);
            }
            ShimEvent::Injected { injected_ns } => {
                timeline.injected_ns = Some(Timeline::clamp(injected_ns, after(timeline.hello_ns), now));
            }
            ShimEvent::Ready { ready_ns } => {
                timeline.ready_ns = Some(Timeline::clamp(ready_ns, after(timeline.injected_ns), now));
                let connected_ns = self.connected_ns.load(Ordering::Relaxed);
                timeline.connected_ns = (connected_ns > 0).then_some(connected_ns);
                self.conclude(StartOutcome::Ready);
                if !self.reports_answer {
                    self.timeline.log();
                }
            }
            ShimEvent::Served { accept_ns, first_response_ns } => {
                let accept_ns = Timeline::clamp(accept_ns, after(timeline.ready_ns), now);
                timeline.accept_ns = Some(accept_ns);
                timeline.first_response_ns = Some(Timeline::clamp(first_response_ns, accept_ns, now));
                timeline.update();
                measure::record_stages(timeline, &timeline.stages.named()[6..]);
                timeline.log();
                self.starts.put(timeline);
            }
            ShimEvent::Quiet
            | ShimEvent::Busy
            | ShimEvent::Thawed { .. }
            | ShimEvent::BackendsChanged
            | ShimEvent::Closed => {}
        }
    }

    /// The instance is gone.
    pub(super) fn ended(&mut self) {
        if self.timeline.ready_ns.is_none() {
            self.conclude(StartOutcome::Failed);
        }
        let logged = self.timeline.ready_ns.is_some() && !self.reports_answer;
        if self.timeline.accept_ns.is_none() && !logged {
            self.timeline.log();
        }
    }

    fn conclude(&mut self, outcome: StartOutcome) {
        let timeline = &mut self.timeline;
        timeline.outcome = outcome;
        timeline.update();
        measure::record_outcome(timeline);
        measure::record_stages(timeline, &timeline.stages.named()[..6]);
        self.starts.put(timeline);
    }
}
