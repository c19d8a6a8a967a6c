//! What was measured, as text and as JSON.

use std::fmt::Write as _;

use headstart_statistics::{mean, median_interval, percentile};
use serde_json::{Value, json};

use crate::api::{Timeline, Trigger};

/// Width of the longest bar, in characters.
const WIDTH: f64 = 40.0;

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    name: String,
    pub(super) cold: Series,
    pub(super) warm: Series,
    /// In milliseconds, of each start, by stage.
    stages: Vec<(&'static str, Vec<f64>)>,
    triggers: Vec<(Trigger, u32)>,
    /// It was interrupted.
    pub(super) partial: bool,
}

/// Answers, and what went wrong.
#[derive(Debug, Default)]
pub(super) struct Series {
    pub(super) ms: Vec<f64>,
    failed: u32,
    error: Option<String>,
}

impl Series {
    pub(super) fn add(&mut self, answer: anyhow::Result<f64>) {
        match answer {
            Ok(ms) => self.ms.push(ms),
            Err(error) => {
                self.failed += 1;
                self.error = Some(format!("{error:#}"));
            }
        }
    }

    fn sorted(&self) -> Vec<f64> {
        sorted(&self.ms)
    }
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

impl Measured {
    /// Nothing yet, of the function `name`.
    pub(super) fn of(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    /// Adds a start that followed a cold request.
    pub(super) fn add_start(&mut self, start: &Timeline) {
        debug_assert!(!start.instance.is_empty(), "a start has an instance");
        match self.triggers.iter_mut().find(|(trigger, _)| *trigger == start.trigger) {
            Some((_, count)) => *count += 1,
            None => self.triggers.push((start.trigger, 1)),
        }
        for (name, seconds) in start.stages.named() {
            let Some(seconds) = seconds else { continue };
            match self.stages.iter_mut().find(|(stage, _)| *stage == name) {
                Some((_, samples)) => samples.push(seconds * 1e3),
                None => self.stages.push((name, vec![seconds * 1e3])),
            }
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if self.partial {
            text.push_str("PARTIAL: it was interrupted\n");
        }
        text.push_str("             median   [95 % interval]      p90      p99    n  failed\n");
        for (name, series) in [("cold", &self.cold), ("warm", &self.warm)] {
            let sorted = series.sorted();
            let (low, high) = median_interval(&sorted);
            let [p50, p90, p99] = [50.0, 90.0, 99.0].map(|percent| percentile(&sorted, percent));
            let interval = format!("[{low:.2}, {high:.2}]");
            let _ = writeln!(
                text,
                "{name:<8} {p50:>7.2} ms {interval:>17} {p90:>8.2} {p99:>8.2} {:>4} {:>7}",
                sorted.len(),
                series.failed
            );
        }
        let median = |series: &Series| percentile(&series.sorted(), 50.0);
        let _ = writeln!(text, "A cold start adds {:.2} ms.", median(&self.cold) - median(&self.warm));
        let triggers: Vec<_> =
            self.triggers.iter().map(|(trigger, count)| format!("{} {count}", trigger.as_str())).collect();
        let _ = writeln!(text, "Started by: {}.", triggers.join(", "));
        let medians: Vec<_> =
            self.stages.iter().map(|(name, samples)| (name, percentile(&sorted(samples), 50.0))).collect();
        let all: f64 = medians.iter().map(|(_, ms)| ms).sum();
        for (name, ms) in medians {
            let share = ms / all.max(f64::MIN_POSITIVE);
            let _ = writeln!(text, "  {name:<18} {ms:>8.3} ms {:>3.0} % {}", share * 100.0, bar(share));
        }
        for (name, series) in [("cold", &self.cold), ("warm", &self.warm)] {
            if let Some(error) = &series.error {
                let _ = writeln!(text, "{} {name} requests failed, the last one: {error}", series.failed);
            }
        }
        text
    }

    pub(super) fn json(&self) -> anyhow::Result<Value> {
        let function = [("function", self.name.as_str())];
        let mut figures = Vec::new();
        for (name, series) in [("bench_cold_ms", &self.cold), ("bench_warm_ms", &self.warm)] {
            figures.extend(figure(name, &function, &series.ms));
        }
        for (stage, samples) in &self.stages {
            figures.extend(figure("bench_stage_ms", &[function[0], ("stage", stage)], samples));
        }
        let kernel = nix::sys::utsname::uname()?;
        let cpus = std::thread::available_parallelism()?;
        Ok(json!({
            "figures": figures,
            "failed": { "cold": self.cold.failed, "warm": self.warm.failed },
            "partial": self.partial,
            "machine": {
                "kernel": format!("{} {}", kernel.sysname().display(), kernel.release().display()),
                "architecture": kernel.machine().to_string_lossy(),
                "cpus": cpus,
                "clock": "CLOCK_MONOTONIC",
            },
        }))
    }
}

/// As in the report of `make bench`; nothing without samples.
fn figure(name: &str, labels: &[(&str, &str)], samples: &[f64]) -> Option<Value> {
    let sorted = sorted(samples);
    let (min, max) = (sorted.first()?, sorted.last()?);
    let (low, high) = median_interval(&sorted);
    let labels: serde_json::Map<_, _> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let [p50, p90, p99] = [50.0, 90.0, 99.0].map(|percent| percentile(&sorted, percent));
    Some(json!({
        "name": name, "labels": labels, "unit": "ms", "n": sorted.len(), "p50": p50, "p50_low": low, "p50_high": high,
        "p90": p90, "p99": p99, "min": min, "max": max, "mean": mean(&sorted),
    }))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most WIDTH, never negative")]
fn bar(share: f64) -> String {
    "█".repeat((share.clamp(0.0, 1.0) * WIDTH).round() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Stages;

    #[test]
    fn what_was_measured_is_told() {
        let mut measured = Measured::of("orders".into());
        for ms in [3.0, 1.0, 2.0] {
            measured.cold.add(Ok(ms + 10.0));
            measured.warm.add(Ok(ms));
        }
        measured.cold.add(Err(anyhow::anyhow!("it answers 502")));
        let stages = Stages { init: Some(0.006), first_response: Some(0.002), ..Stages::default() };
        let start = json!({
            "function": "orders", "instance": "orders-1", "runtime": "oci", "trigger": "accept", "outcome": "ready",
            "syn_ns": 1, "event_ns": 2, "start_ns": 3, "stages": stages,
        });
        measured.add_start(&serde_json::from_value(start).unwrap());
        let text = measured.text();
        for said in ["cold       12.00 ms", "adds 10.00 ms", "Started by: accept 1.", "75 %", "answers 502"] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let json = measured.json().unwrap();
        assert_eq!(json["figures"][0]["name"], "bench_cold_ms");
        assert_eq!(json["figures"][0]["p50"], 12.0);
        assert_eq!(json["figures"][2]["labels"]["stage"], "init");
        assert_eq!(json["failed"]["cold"], 1);
        measured.partial = true;
        assert!(measured.text().starts_with("PARTIAL"));
    }
}
