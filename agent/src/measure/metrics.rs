//! Every metric, declared once with unit and help. Labels are names from the
//! configuration or enums, so their number is bounded.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

pub(super) mod front;
pub mod scrape;

use super::timeline::seconds;
use super::{StartOutcome, Timeline, kernel};
use crate::decision::DecisionReason;
use crate::event::{Demand, Trigger};

pub(super) const SYN_PACKETS: &str = "headstart_syn_packets_total";
pub(super) const SYN_SUPPRESSED: &str = "headstart_syn_suppressed_total";
pub(super) const RELOADS: &str = "headstart_reloads_total";
pub(super) const SYN_LOST: &str = "headstart_syn_lost_total";
pub(super) const SYN_LOOKUPS: &str = "headstart_syn_lookups_total";
pub(super) const SYN_AUTH_FAILURES: &str = "headstart_syn_auth_failures_total";
pub(super) const KNOCKS: &str = "headstart_knocks_total";
pub(super) const GATE_REFUSED: &str = "headstart_gate_refused_total";
const SYN_EVENTS: &str = "headstart_syn_events_total";
const SYN_SENSOR: &str = "headstart_syn_sensor";
const SYN_BUDGET: &str = "headstart_syn_budget_starts";
const SYN_SPENT: &str = "headstart_syn_budget_spent_total";
const DECISIONS: &str = "headstart_decisions_total";
const STAGE: &str = "headstart_coldstart_stage_seconds";
const COLDSTART: &str = "headstart_coldstart_seconds";
const HIDDEN: &str = "headstart_coldstart_hidden_seconds";
const EXPOSED: &str = "headstart_coldstart_exposed_seconds";
const COLDSTARTS: &str = "headstart_coldstarts_total";
const UNUSED: &str = "headstart_starts_unused_total";
const INJECT: &str = "headstart_inject_seconds";
const REFUSED: &str = "headstart_inject_refused_total";
const POOL: &str = "headstart_pool_connections";
const POOL_FALLBACKS: &str = "headstart_pool_fallbacks_total";
const POOL_DISCARDS: &str = "headstart_pool_discards_total";
const INSTANCES: &str = "headstart_instances";
const HIBERNATED: &str = "headstart_hibernated_bytes";
const TRANSITIONS: &str = "headstart_instance_transitions_total";
const THAW: &str = "headstart_thaw_seconds";
const OVERLOAD: &str = "headstart_overload_answers_total";
const FRONT_HANDSHAKES: &str = "headstart_front_handshakes_total";
const FRONT_CONNECTIONS: &str = "headstart_front_connections_total";
const FRONT_REQUESTS: &str = "headstart_front_requests_total";
const FRONT_GUESSES: &str = "headstart_front_guesses_total";
const FRONT_EXPIRY: &str = "headstart_front_certificate_expiry_timestamp";
const LOG_LEFT_OUT: &str = "headstart_log_lines_left_out_total";

enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}
use MetricKind::{Counter, Gauge, Histogram};

/// Name, kind, unit and help of every metric.
const DECLARED: [(&str, MetricKind, Unit, &str); 35] = [
    (
        SYN_EVENTS,
        Counter,
        Unit::Count,
        "Demand seen, by the kind of sensor: syn, lookup, knock, accept or api; duplicates are left out",
    ),
    (
        SYN_SUPPRESSED,
        Counter,
        Unit::Count,
        "Demand that needed no start of its own, and SYNs that may cause no early one, by reason",
    ),
    (
        LOG_LEFT_OUT,
        Counter,
        Unit::Count,
        "Lines that the log lacks: functions print too many, or the log is read too slowly",
    ),
    (RELOADS, Counter, Unit::Count, "Times that the configuration was to be read again, by outcome"),
    (SYN_LOST, Counter, Unit::Count, "Events that the agent did not learn of; the accept queue starts those"),
    (
        SYN_PACKETS,
        Counter,
        Unit::Count,
        "Packets that the kernel half was given on interfaces, by what it made of them; each counts once",
    ),
    (SYN_LOOKUPS, Counter, Unit::Count, "Connections in the socket lookup, by what it made of them"),
    (SYN_AUTH_FAILURES, Counter, Unit::Count, "SYNs whose option vouches for nothing, by reason"),
    (KNOCKS, Counter, Unit::Count, "Packets to the port of knocks: valid, invalid or replayed"),
    (GATE_REFUSED, Counter, Unit::Count, "SYNs without a key that the listener of a closed function refused"),
    (
        SYN_SENSOR,
        Gauge,
        Unit::Count,
        "1 for each interface and the mode its sensor works in, 0 once it is gone",
    ),
    (
        SYN_BUDGET,
        Gauge,
        Unit::Count,
        "Starts per second that SYNs without a key may cause at present: on the node, and of each function",
    ),
    (SYN_SPENT, Counter, Unit::Count, "Starts that SYNs without a key took from the budgets"),
    (DECISIONS, Counter, Unit::Count, "Actions that were decided, with their reason"),
    (STAGE, Histogram, Unit::Seconds, "Duration of each stage of a cold start"),
    (COLDSTART, Histogram, Unit::Seconds, "Cold start from SYN to ready"),
    (
        HIDDEN,
        Histogram,
        Unit::Seconds,
        "Part of a cold start that ran before a connected client could wait for it",
    ),
    (EXPOSED, Histogram, Unit::Seconds, "Part of a cold start during which a connected client waited"),
    (COLDSTARTS, Counter, Unit::Count, "Cold starts, by trigger and outcome"),
    (
        UNUSED,
        Counter,
        Unit::Count,
        "Starts for a SYN or a knock that no connection followed within unused_after",
    ),
    (INJECT, Histogram, Unit::Seconds, "From wanting a backend connection to having sent it to the function"),
    (REFUSED, Counter, Unit::Count, "Control sockets closed because of what came through them, by reason"),
    (POOL, Gauge, Unit::Count, "Backend connections, by state: idle, connecting or leased"),
    (POOL_FALLBACKS, Counter, Unit::Count, "Leases that no idle connection could serve, by reason"),
    (POOL_DISCARDS, Counter, Unit::Count, "Pooled connections that were thrown away, by reason"),
    (INSTANCES, Gauge, Unit::Count, "Instances, by state"),
    (HIBERNATED, Gauge, Unit::Bytes, "Memory of hibernated instances, by kind: resident or swapped"),
    (
        TRANSITIONS,
        Counter,
        Unit::Count,
        "Instances that came into a state, with the reason; gone is the last",
    ),
    (
        THAW,
        Histogram,
        Unit::Seconds,
        "From the demand that thawed an instance until it accepts, by the state that it was in: frozen or hibernated",
    ),
    (
        OVERLOAD,
        Counter,
        Unit::Count,
        "Clients that the agent told that no instance serves them, by reason: queue_timeout, cooldown or off",
    ),
    (FRONT_HANDSHAKES, Counter, Unit::Count, "TLS handshakes with clients of fronts, by outcome"),
    (
        FRONT_CONNECTIONS,
        Counter,
        Unit::Count,
        "Connections that the agent carries for a front or has closed there, by reason",
    ),
    (FRONT_REQUESTS, Counter, Unit::Count, "Requests that came to fronts, by outcome"),
    (
        FRONT_GUESSES,
        Counter,
        Unit::Count,
        "Functions that were asked for at the SYN of a front's client, by whether the client then named them",
    ),
    (
        FRONT_EXPIRY,
        Gauge,
        Unit::Seconds,
        "Until when a certificate of a front is valid, in seconds since 1970",
    ),
];

/// The reasons of [`REFUSED`]: those of `inject::ProtocolViolation` except a closed socket, and a peer outside the
/// instance.
const REFUSED_REASONS: [&str; 11] = [
    "peer",
    "oversized",
    "header",
    "version",
    "body",
    "descriptors",
    "io",
    "out_of_order",
    "not_configured",
    "too_many",
    "no_ack",
];

/// The reasons of [`SYN_LOST`] that are found in user space.
const LOST_REASONS: [&str; 4] = ["inbox_full", "record_length", "record_kind", "stale"];

/// Whose lines [`LOG_LEFT_OUT`] counts.
const LOG_SOURCES: [&str; 2] = ["agent", "functions"];

/// The outcomes of [`RELOADS`].
const RELOAD_OUTCOMES: [&str; 2] = ["applied", "refused"];

/// Histogram bounds in seconds: 50 us to 30 s, about three to a decade.
const BUCKETS: [f64; 18] = [
    50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    30.0,
];

/// What `/metrics` renders.
#[derive(Clone)]
pub struct Export(PrometheusHandle);

/// Each sample of a histogram is kept until it is added to its bucket, so that is done without a scrape too.
const UPKEEP: Duration = Duration::from_secs(60);

impl Export {
    /// The metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }

    /// Keeps what the metrics use bounded, for ever.
    pub async fn keep_up(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.0.run_upkeep();
        }
    }
}

/// Installs the process-wide recorder and describes every metric.
///
/// # Errors
/// When a recorder is installed already.
pub fn install() -> Result<Export, BuildError> {
    let handle = PrometheusBuilder::new().set_buckets(&BUCKETS)?.install_recorder()?;
    for (name, kind, unit, help) in DECLARED {
        match kind {
            Counter => describe_counter!(name, unit, help),
            Gauge => describe_gauge!(name, unit, help),
            Histogram => describe_histogram!(name, unit, help),
        }
    }
    for reason in REFUSED_REASONS {
        counter!(REFUSED, "reason" => reason).increment(0);
    }
    for reason in DecisionReason::SUPPRESS {
        counter!(SYN_SUPPRESSED, "reason" => reason.as_str()).increment(0);
    }
    for outcome in RELOAD_OUTCOMES {
        counter!(RELOADS, "outcome" => outcome).increment(0);
    }
    for of in LOG_SOURCES {
        counter!(LOG_LEFT_OUT, "of" => of).increment(0);
    }
    for reason in LOST_REASONS {
        counter!(SYN_LOST, "reason" => reason).increment(0);
    }
    kernel::declare();
    Ok(Export(handle))
}

/// Shows a function's counters before they count: an alert on an absent series never fires.
pub fn declare(function: &str) {
    for name in [SYN_SPENT, UNUSED] {
        counter!(name, "function" => function.to_owned()).increment(0);
    }
    for trigger in Trigger::ALL {
        for outcome in [StartOutcome::Ready, StartOutcome::Failed] {
            let labels = [
                ("function", function.to_owned()),
                ("trigger", trigger.as_str().into()),
                ("outcome", outcome.as_str().into()),
            ];
            counter!(COLDSTARTS, &labels).increment(0);
        }
    }
}

/// A demand arrived.
pub fn record_syn(function: &str, demand: &Demand) {
    counter!(SYN_EVENTS, "function" => function.to_owned(), "kind" => demand.trigger.as_str()).increment(1);
}

/// A demand needed nothing new.
pub fn record_suppressed(reason: DecisionReason) {
    counter!(SYN_SUPPRESSED, "reason" => reason.as_str()).increment(1);
}

/// An action was decided.
pub fn record_decision(function: &str, action: &'static str, reason: &'static str) {
    let labels = [("function", function.to_owned()), ("action", action.into()), ("reason", reason.into())];
    counter!(DECISIONS, &labels).increment(1);
}

/// An instance came into a state.
pub fn record_transition(function: &str, state: &'static str, reason: &'static str) {
    let labels = [("function", function.to_owned()), ("state", state.into()), ("reason", reason.into())];
    counter!(TRANSITIONS, &labels).increment(1);
}

/// An instance accepts again that was thawed for this demand.
pub fn record_thaw(function: &str, demand: &Demand, state: &'static str, thawed_ns: u64) {
    let trigger = demand.trigger.as_str();
    histogram!(THAW, "function" => function.to_owned(), "trigger" => trigger, "state" => state)
        .record(seconds(thawed_ns.saturating_sub(demand.at_ns)));
}

/// The agent answered clients that no instance serves.
pub fn record_overload(function: &str, reason: DecisionReason, clients: u32) {
    counter!(OVERLOAD, "function" => function.to_owned(), "reason" => reason.as_str())
        .increment(clients.into());
}

/// An instance became ready, or failed to.
pub fn record_outcome(timeline: &Timeline) {
    let function = || timeline.function.clone();
    let trigger = timeline.trigger.as_str();
    let outcome = timeline.outcome.as_str();
    counter!(COLDSTARTS, "function" => function(), "trigger" => trigger, "outcome" => outcome).increment(1);
    if let (Some(total), Some(hidden), Some(exposed)) =
        (timeline.stages.total, timeline.stages.hidden, timeline.stages.exposed)
    {
        histogram!(COLDSTART, "function" => function(), "trigger" => trigger).record(total);
        histogram!(HIDDEN, "function" => function(), "trigger" => trigger).record(hidden);
        histogram!(EXPOSED, "function" => function(), "trigger" => trigger).record(exposed);
    }
}

/// Some stages of a cold start are over.
pub fn record_stages(timeline: &Timeline, stages: &[(&'static str, Option<f64>)]) {
    for (stage, seconds) in stages {
        if let Some(seconds) = seconds {
            let function = timeline.function.clone();
            histogram!(STAGE, "function" => function, "runtime" => timeline.runtime.clone(), "stage" => *stage)
                .record(*seconds);
        }
    }
}

/// A SYN without a key took a start from the budgets.
pub fn record_spent(function: &str) {
    counter!(SYN_SPENT, "function" => function.to_owned()).increment(1);
}

/// No connection followed the SYN or knock that started the function.
pub fn record_unused(function: &str) {
    counter!(UNUSED, "function" => function.to_owned()).increment(1);
}

/// A backend connection was sent to a function, this long after it was wanted.
pub fn record_inject(backend: &str, seconds: f64) {
    histogram!(INJECT, "backend" => backend.to_owned()).record(seconds);
}

/// A control socket was closed because its peer broke the protocol.
pub fn record_refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "counts of what one node holds are far below 2^53")]
fn size(bytes: u64) -> f64 {
    bytes as f64
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn float(count: usize) -> f64 {
    count as f64
}

/// A configuration was read again, and taken or not.
pub fn record_reload(applied: bool) {
    let [taken, refused] = RELOAD_OUTCOMES;
    counter!(RELOADS, "outcome" => if applied { taken } else { refused }).increment(1);
}

/// Lines of the agent or of functions that the log lacks.
pub fn record_log_left_out(of: &'static str, lines: u64) {
    counter!(LOG_LEFT_OUT, "of" => of).increment(lines);
}

/// A SYN event that the agent could not take, by reason.
pub fn record_lost(reason: &'static str) {
    counter!(SYN_LOST, "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_declared_once_with_prefix_and_help() {
        let mut names: Vec<_> = DECLARED.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DECLARED.len());
        for (name, kind, _, help) in DECLARED {
            assert!(name.starts_with("headstart_"), "{name}");
            assert_eq!(name.ends_with("_total"), matches!(kind, Counter), "{name}");
            assert_eq!(name.ends_with("_seconds"), matches!(kind, Histogram), "{name}");
            assert!(!help.is_empty(), "{name}");
        }
    }

    #[test]
    fn every_metric_is_in_the_guide() {
        let guide = include_str!("../../../docs/operating.md");
        for (name, ..) in DECLARED {
            assert!(guide.contains(&format!("\n| `{name}` | ")), "docs/operating.md does not tell of {name}");
        }
    }

    #[test]
    fn buckets_rise_from_50_us_to_30_s() {
        assert!(BUCKETS.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((BUCKETS[0], BUCKETS[17]), (50e-6, 30.0));
    }
}
