//! One cold start, step by step.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::event::{Demand, Trigger};

/// How a cold start ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartOutcome {
    /// Not ended yet.
    Starting,
    /// The instance said that it is ready.
    Ready,
    /// It went away, or was killed, before that.
    Failed,
}

impl StartOutcome {
    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

/// The times of one cold start, in nanoseconds of `CLOCK_MONOTONIC`; `None`
/// until the step was reached. What a function reports is clamped to what the
/// agent saw itself, so that a lying function can only spoil its own figures
/// within those bounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Timeline {
    /// Configured name of the function.
    pub function: String,
    /// Name of the instance, unique on the node.
    pub instance: String,
    /// The runtime, as the configuration names it.
    pub runtime: Cow<'static, str>,
    /// What asked for the start.
    pub trigger: Trigger,
    /// How it ended.
    pub outcome: StartOutcome,
    /// The SYN or the knock passed the kernel half; or the accept queue became readable; or the API was called.
    pub syn_ns: u64,
    /// The agent learned of it.
    pub event_ns: u64,
    /// The lease is queued and the runtime is told to release the container.
    pub start_ns: u64,
    /// The container exec'd the function.
    pub exec_ns: Option<u64>,
    /// The shim was entered.
    pub hello_ns: Option<u64>,
    /// The function holds its listener and connections.
    pub injected_ns: Option<u64>,
    /// The function accepts.
    pub ready_ns: Option<u64>,
    /// A completed connection was first seen in the accept queue during the start.
    pub connected_ns: Option<u64>,
    /// The function accepted its first connection.
    pub accept_ns: Option<u64>,
    /// The first bytes of its first response were written.
    pub first_response_ns: Option<u64>,
    /// The stages, in seconds, as on `/metrics`.
    pub stages: Stages,
}

/// Durations of the stages in seconds; `None` until a stage is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// From the SYN to the agent.
    pub syn_to_event: Option<f64>,
    /// From the agent's knowledge to the order to start: decision and lease.
    pub event_to_start: Option<f64>,
    /// From the order to the function's exec.
    pub start_to_exec: Option<f64>,
    /// From exec to the shim's first line: loader and language runtime.
    pub exec_to_hello: Option<f64>,
    /// From there to holding the listener and the connections.
    pub hello_to_injected: Option<f64>,
    /// The function's own initialisation.
    pub init: Option<f64>,
    /// From ready to the first accepted connection.
    pub ready_to_accept: Option<f64>,
    /// From that to the first response.
    pub first_response: Option<f64>,
    /// SYN to ready.
    pub total: Option<f64>,
    /// The part of `total` that ran before a connected client could wait for it.
    pub hidden: Option<f64>,
    /// The part of `total` during which a connected client waited.
    pub exposed: Option<f64>,
}

impl Stages {
    /// The stages that share the metric `headstart_coldstart_stage_seconds`, in path order.
    #[must_use]
    pub fn named(&self) -> [(&'static str, Option<f64>); 8] {
        [
            ("syn_to_event", self.syn_to_event),
            ("event_to_start", self.event_to_start),
            ("start_to_exec", self.start_to_exec),
            ("exec_to_hello", self.exec_to_hello),
            ("hello_to_injected", self.hello_to_injected),
            ("init", self.init),
            ("ready_to_accept", self.ready_to_accept),
            ("first_response", self.first_response),
        ]
    }
}

impl Timeline {
    /// The timeline of a start that is about to begin.
    #[must_use]
    pub fn new(function: String, instance: String, runtime: &'static str, demand: &Demand) -> Self {
        Self {
            function,
            instance,
            runtime: runtime.into(),
            trigger: demand.trigger,
            outcome: StartOutcome::Starting,
            syn_ns: demand.at_ns,
            event_ns: demand.seen_ns,
            start_ns: 0,
            exec_ns: None,
            hello_ns: None,
            injected_ns: None,
            ready_ns: None,
            connected_ns: None,
            accept_ns: None,
            first_response_ns: None,
            stages: Stages::default(),
        }
    }

    /// Limits a time that the function reports: not before `after_ns`, and not
    /// after `now_ns`, when the report arrived.
    #[must_use]
    pub fn clamp(reported_ns: u64, after_ns: u64, now_ns: u64) -> u64 {
        reported_ns.min(now_ns).max(after_ns)
    }

    /// Brings `stages` up to date with the times.
    pub fn update(&mut self) {
        let started = Some(self.start_ns);
        let total = between(Some(self.syn_ns), self.ready_ns);
        // A client can wait from the moment its connection is complete.
        // If none is complete when the function is ready, the whole start was hidden.
        let exposed = self.ready_ns.map(|ready| match self.connected_ns {
            Some(connected) => seconds(ready.saturating_sub(connected.max(self.syn_ns))),
            None => 0.0,
        });
        self.stages = Stages {
            syn_to_event: between(Some(self.syn_ns), Some(self.event_ns)),
            event_to_start: between(Some(self.event_ns), started),
            start_to_exec: between(started, self.exec_ns),
            exec_to_hello: between(self.exec_ns, self.hello_ns),
            hello_to_injected: between(self.hello_ns, self.injected_ns),
            init: between(self.injected_ns, self.ready_ns),
            ready_to_accept: between(self.ready_ns, self.accept_ns),
            first_response: between(self.accept_ns, self.first_response_ns),
            total,
            hidden: total.zip(exposed).map(|(total, exposed)| (total - exposed).max(0.0)),
            exposed,
        };
    }

    /// Writes the one log line of this cold start.
    pub fn log(&self) {
        let ms = |stage: Option<f64>| stage.map(|seconds| (seconds * 1e6).round() / 1e3);
        let stages = &self.stages;
        tracing::info!(
            function = self.function,
            instance = self.instance,
            runtime = &*self.runtime,
            trigger = self.trigger.as_str(),
            outcome = self.outcome.as_str(),
            total_ms = ms(stages.total),
            hidden_ms = ms(stages.hidden),
            exposed_ms = ms(stages.exposed),
            syn_to_event_ms = ms(stages.syn_to_event),
            event_to_start_ms = ms(stages.event_to_start),
            start_to_exec_ms = ms(stages.start_to_exec),
            exec_to_hello_ms = ms(stages.exec_to_hello),
            hello_to_injected_ms = ms(stages.hello_to_injected),
            init_ms = ms(stages.init),
            ready_to_accept_ms = ms(stages.ready_to_accept),
            first_response_ms = ms(stages.first_response),
            "cold start"
        );
    }
}

fn between(from_ns: Option<u64>, to_ns: Option<u64>) -> Option<f64> {
    Some(seconds(to_ns?.saturating_sub(from_ns?)))
}

#[expect(clippy::cast_precision_loss, reason = "2^53 ns are 104 days")]
pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A whole cold start, for tests.
#[cfg(test)]
pub(super) fn example(instance: &str) -> Timeline {
    Timeline {
        function: "orders".into(),
        instance: instance.into(),
        runtime: "oci".into(),
        trigger: Trigger::Syn,
        outcome: StartOutcome::Ready,
        syn_ns: 1_000_000,
        event_ns: 1_100_000,
        start_ns: 1_200_000,
        exec_ns: Some(3_200_000),
        hello_ns: Some(4_200_000),
        injected_ns: Some(4_300_000),
        ready_ns: Some(6_000_000),
        connected_ns: None,
        accept_ns: Some(7_000_000),
        first_response_ns: Some(9_000_000),
        stages: Stages::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_add_up_to_the_whole() {
        let mut timeline = example("orders-1");
        timeline.update();
        let sum: f64 = timeline.stages.named()[..6].iter().filter_map(|(_, seconds)| *seconds).sum();
        assert!((sum - timeline.stages.total.unwrap()).abs() < 1e-12);
        assert_eq!(timeline.stages.exposed, Some(0.0), "no client was connected yet");
        assert_eq!(timeline.stages.hidden, timeline.stages.total);
    }

    #[test]
    fn what_ran_while_a_client_was_connected_is_exposed() {
        let mut timeline = example("orders-1");
        timeline.connected_ns = Some(5_000_000);
        timeline.update();
        assert_eq!(timeline.stages.exposed, Some(0.001));
        assert_eq!(timeline.stages.hidden, Some(0.004));
        timeline.connected_ns = Some(8_000_000);
        timeline.update();
        assert_eq!(timeline.stages.exposed, Some(0.0));
    }

    #[test]
    fn a_function_cannot_report_the_future_or_the_past() {
        assert_eq!(Timeline::clamp(5, 10, 20), 10);
        assert_eq!(Timeline::clamp(u64::MAX, 10, 20), 20);
        assert_eq!(Timeline::clamp(15, 10, 20), 15);
    }
}
