//! Every metric, declared once with unit and help. Labels are names from the
//! configuration or enums, so their number is bounded.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use super::{Outcome, Timeline};
use crate::decision::Reason;
use crate::event::{Demand, Trigger};

const SYN_EVENTS: &str = "headstart_syn_events_total";
const SYN_SUPPRESSED: &str = "headstart_syn_suppressed_total";
const SYN_LOST: &str = "headstart_syn_lost_total";
const SYN_PACKETS: &str = "headstart_syn_packets_total";
const SYN_SENSOR: &str = "headstart_syn_sensor";
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

enum Kind {
    Counter,
    Gauge,
    Histogram,
}
use Kind::{Counter, Gauge, Histogram};

/// Name, kind, unit and help of every metric there is.
const DECLARED: [(&str, Kind, Unit, &str); 18] = [
    (SYN_EVENTS, Counter, Unit::Count, "Demand seen, by the kind of sensor: syn, accept or api"),
    (SYN_SUPPRESSED, Counter, Unit::Count, "Demand that needed no start of its own, by reason"),
    (
        SYN_LOST,
        Counter,
        Unit::Count,
        "SYN events that the kernel half could not queue; the accept queue starts those",
    ),
    (SYN_PACKETS, Counter, Unit::Count, "Packets that the kernel half counted, by what it made of them"),
    (SYN_SENSOR, Gauge, Unit::Count, "1 for each interface and the mode its XDP program is attached in"),
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
        "Instances started by a SYN that ended without having served a connection",
    ),
    (INJECT, Histogram, Unit::Seconds, "From wanting a backend connection to having sent it to the function"),
    (REFUSED, Counter, Unit::Count, "Control sockets closed because of what came through them, by reason"),
    (POOL, Gauge, Unit::Count, "Backend connections, by state: idle, connecting or leased"),
    (POOL_FALLBACKS, Counter, Unit::Count, "Leases that no idle connection could serve, by reason"),
    (POOL_DISCARDS, Counter, Unit::Count, "Pooled connections that were thrown away, by reason"),
    (INSTANCES, Gauge, Unit::Count, "Instances, by state"),
];

/// The reasons of [`REFUSED`] beside a closed socket: those of `inject::Refusal`, and a strange peer.
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

/// The reasons of [`SYN_LOST`].
const LOST_REASONS: [&str; 3] = ["ring_full", "inbox_full", "record_length"];

/// Histogram bounds in seconds: 50 us to 30 s, about three to a decade.
const BUCKETS: [f64; 18] = [
    50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    30.0,
];

/// What `/metrics` renders.
#[derive(Clone)]
pub struct Export(PrometheusHandle);

impl Export {
    /// The metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
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
    for reason in [Reason::Starting, Reason::Ready, Reason::Stopping, Reason::Backoff, Reason::Closed] {
        counter!(SYN_SUPPRESSED, "reason" => reason.as_str()).increment(0);
    }
    for reason in LOST_REASONS {
        counter!(SYN_LOST, "reason" => reason).increment(0);
    }
    Ok(Export(handle))
}

/// Shows a function's counters before they count: an alert on what is absent never fires.
pub fn declare(function: &str) {
    counter!(UNUSED, "function" => function.to_owned()).increment(0);
    for trigger in Trigger::ALL {
        for outcome in [Outcome::Ready, Outcome::Failed] {
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
pub fn record_suppressed(reason: Reason) {
    counter!(SYN_SUPPRESSED, "reason" => reason.as_str()).increment(1);
}

/// An action was decided.
pub fn record_decision(function: &str, action: &'static str, reason: &'static str) {
    let labels = [("function", function.to_owned()), ("action", action.into()), ("reason", reason.into())];
    counter!(DECISIONS, &labels).increment(1);
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
            histogram!(STAGE, "function" => function, "runtime" => timeline.runtime, "stage" => *stage)
                .record(*seconds);
        }
    }
}

/// A started instance ended without ever having accepted a connection.
pub fn record_unused(function: &str) {
    counter!(UNUSED, "function" => function.to_owned()).increment(1);
}

/// A backend connection was sent to a function, this long after it was wanted.
pub fn record_inject(backend: &str, seconds: f64) {
    histogram!(INJECT, "backend" => backend.to_owned()).record(seconds);
}

/// A control socket was closed because of what came through it.
pub fn record_refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

/// Values that are read when somebody looks, not counted as they happen.
pub mod scrape {
    use headstart_ebpf::event::Stat;

    use super::{
        INSTANCES, POOL, POOL_DISCARDS, POOL_FALLBACKS, SYN_LOST, SYN_PACKETS, SYN_SENSOR, counter, float,
        gauge,
    };

    /// Connections of a backend in a state.
    pub fn pool(backend: &str, state: &'static str, connections: usize) {
        gauge!(POOL, "backend" => backend.to_owned(), "state" => state).set(float(connections));
    }

    /// Connections of a backend that were thrown away so far.
    pub fn pool_discards(backend: &str, reason: &'static str, total: u64) {
        counter!(POOL_DISCARDS, "backend" => backend.to_owned(), "reason" => reason).absolute(total);
    }

    /// Leases of a backend that no idle connection could serve so far.
    pub fn pool_fallbacks(backend: &str, reason: &'static str, total: u64) {
        counter!(POOL_FALLBACKS, "backend" => backend.to_owned(), "reason" => reason).absolute(total);
    }

    /// Instances of a function in a state.
    pub fn instances(function: &str, state: &'static str, instances: usize) {
        gauge!(INSTANCES, "function" => function.to_owned(), "state" => state).set(float(instances));
    }

    /// What the kernel half has counted so far.
    pub fn syn_counters(counters: &[(Stat, u64)]) {
        for (stat, total) in counters {
            let kind = match stat {
                Stat::Packets => continue,
                Stat::Malformed => "malformed",
                Stat::NotSyn => "not_syn",
                Stat::Unowned => "unowned",
                Stat::Warm => "warm",
                Stat::Event => "event",
                Stat::RingFull => {
                    counter!(SYN_LOST, "reason" => "ring_full").absolute(*total);
                    continue;
                }
            };
            counter!(SYN_PACKETS, "kind" => kind).absolute(*total);
        }
    }

    /// The mode of the sensor on an interface.
    pub fn syn_sensor(interface: &str, mode: &'static str) {
        gauge!(SYN_SENSOR, "interface" => interface.to_owned(), "mode" => mode).set(1.0);
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of what one node holds are far below 2^53")]
fn float(count: usize) -> f64 {
    count as f64
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
    fn buckets_rise_from_50_us_to_30_s() {
        assert!(BUCKETS.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((BUCKETS[0], BUCKETS[17]), (50e-6, 30.0));
    }
}
