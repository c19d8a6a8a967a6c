//! The report of the benches: `report.json` for machines, `report.md` for people.
//!
//! ```json
//! {"figures":[{"name","labels":{..},"unit","n","p50","p50_low","p50_high","p90","p95","p99","min","max","mean",
//!              "variance","basis":{"n","needs"}}],"machine":{..},"notes":{..},"seed","partial","quick"}
//! ```
//!
//! `p50_low` and `p50_high` are the 95 % interval of the median (bootstrap); `variance` is that of a sample (n - 1), `null`
//! for a single one. What `partial` marks has not measured everything, or not often enough. `basis` is there where a figure
//! was computed from the samples of others: how many those are, and how many it takes before the figure says anything.
//!
//! Percentiles are by nearest rank: the smallest sample that at least that part of all samples do not exceed.
//! So each is a value that was measured; with n samples the highest percentile that is not simply the maximum
//! is 100 (n - 1) / n.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use headstart_statistics as statistics;
use serde_json::{Value, json};

pub mod levene;
pub mod plot;
pub mod promise;

/// The columns of a figure that are numbers, in their order.
const COLUMNS: [&str; 8] = ["n", "p50 [low, high]", "p90", "p95", "p99", "min", "max", "mean"];

/// The samples that a figure was computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basis {
    /// How many there are; of several series, in the smallest.
    pub samples: usize,
    /// How many it takes before the figure says anything.
    pub needs: usize,
}

/// How many samples there must be before the percentile `percent` is not simply the maximum.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
pub fn samples_needed(percent: f64) -> usize {
    // By nearest rank it is the maximum as long as ceil(n percent / 100) = n.
    (100.0 / (100.0 - percent)).ceil() as usize
}

/// What one series of samples says.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Stem and unit, `cold_ms` for instance.
    pub name: String,
    /// What tells it from others of its name.
    pub labels: BTreeMap<String, String>,
    /// As in the name.
    pub unit: String,
    /// The samples, ascending; at least one.
    sorted: Vec<f64>,
    basis: Option<Basis>,
}

impl Figure {
    /// The figure of these samples, of which there must be some, and all finite.
    pub fn new(name: &str, labels: &[(&str, &str)], unit: &str, samples: &[f64]) -> Result<Self> {
        ensure!(!samples.is_empty(), "{name} {labels:?}: no samples");
        ensure!(samples.iter().all(|sample| sample.is_finite()), "{name} {labels:?}: {samples:?}");
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Ok(Self {
            name: name.to_owned(),
            labels: labels.collect(),
            unit: unit.to_owned(),
            sorted,
            basis: None,
        })
    }

    /// The same, computed from the samples of others.
    pub fn based_on(self, basis: Option<Basis>) -> Self {
        Self { basis, ..self }
    }

    /// The percentile `percent`, by nearest rank.
    pub fn percentile(&self, percent: f64) -> f64 {
        statistics::percentile(&self.sorted, percent)
    }

    /// As it stands in the report.
    pub fn value(&self) -> Value {
        let (low, high) = statistics::median_interval(&self.sorted);
        let mut value = json!({
            "name": self.name,
            "labels": self.labels,
            "unit": self.unit,
            "n": self.sorted.len(),
            "p50": round(self.percentile(50.0)),
            "p50_low": round(low),
            "p50_high": round(high),
            "p90": round(self.percentile(90.0)),
            "p95": round(self.percentile(95.0)),
            "p99": round(self.percentile(99.0)),
            "min": round(self.percentile(0.0)),
            "max": round(self.percentile(100.0)),
            "mean": round(statistics::mean(&self.sorted)),
            "variance": variance(&self.sorted),
        });
        if let Some(Basis { samples, needs }) = self.basis {
            value["basis"] = json!({ "n": samples, "needs": needs });
        }
        value
    }
}

/// All figures of one run on one machine.
#[derive(Clone, Debug)]
pub struct BenchReport {
    figures: Vec<Value>,
    machine: Value,
    notes: BTreeMap<String, String>,
    seed: Option<u64>,
    partial: bool,
    quick: bool,
}

impl BenchReport {
    /// An empty one, of this machine.
    pub fn new() -> Result<Self> {
        Ok(Self {
            figures: Vec::new(),
            machine: machine()?,
            notes: BTreeMap::new(),
            seed: None,
            partial: false,
            quick: false,
        })
    }

    /// Adds a figure.
    pub fn add(&mut self, figure: &Figure) {
        self.figures.push(figure.value());
    }

    /// Records what figures depend on beside the machine, a version for instance.
    pub fn note(&mut self, key: &str, value: &str) {
        self.notes.insert(key.to_owned(), value.to_owned());
    }

    /// Records what the order of the measurements was drawn from.
    pub const fn set_seed(&mut self, seed: u64) {
        self.seed = Some(seed);
    }

    /// Marks what has not measured everything.
    pub const fn set_partial(&mut self, partial: bool) {
        self.partial = partial;
    }

    /// Whether it has not measured everything.
    pub const fn is_partial(&self) -> bool {
        self.partial
    }

    /// Whether a part of it was a quick run, which has too few samples for some statistics.
    pub const fn is_quick(&self) -> bool {
        self.quick
    }

    /// Adds the figures that another bench has written to `file`: a list, or an object that has it as `figures`, with
    /// its `notes`, `seed` and whether it is `partial` or `quick`. The first seed counts; another is noted with its file.
    /// False when there is no such file.
    pub fn merge(&mut self, file: &Path) -> Result<bool> {
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            text => text.with_context(|| format!("reading {}", file.display()))?,
        };
        let found: Value = serde_json::from_str(&text).with_context(|| format!("in {}", file.display()))?;
        let list = if found.is_array() { &found } else { &found["figures"] };
        let figures =
            list.as_array().with_context(|| format!("{} has no list of figures", file.display()))?;
        self.figures.extend(figures.iter().cloned());
        for (key, value) in found["notes"].as_object().into_iter().flatten() {
            self.note(key, &plain(value));
        }
        if let Some(seed) = found["seed"].as_u64()
            && *self.seed.get_or_insert(seed) != seed
        {
            self.note(
                &format!("seed of {}", file.file_name().unwrap_or_default().display()),
                &seed.to_string(),
            );
        }
        self.partial |= found["partial"] == true;
        self.quick |= found["quick"] == true;
        Ok(true)
    }

    /// As it stands in `report.json`.
    pub fn value(&self) -> Value {
        json!({
            "figures": self.figures,
            "machine": self.machine,
            "notes": self.notes,
            "seed": self.seed,
            "partial": self.partial,
            "quick": self.quick,
        })
    }

    /// Writes `report.json` and `report.md` to `directory`.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        let all = self.value();
        fs::write(directory.join("report.json"), serde_json::to_string_pretty(&all)? + "\n")?;
        fs::write(directory.join("report.md"), self.markdown()?)?;
        Ok(())
    }

    /// A table for each name, in the order in which they came.
    pub fn markdown(&self) -> Result<String> {
        let mut text = "# Bench report\n\n".to_owned();
        if self.partial {
            text.push_str("# PARTIAL: NOT EVERYTHING WAS MEASURED, OR NOT OFTEN ENOUGH\n\n");
        }
        text.push_str(
            "Percentiles are by nearest rank; n is the number of samples; low and high are the 95 % interval of p50.\n",
        );
        for (key, value) in self.machine.as_object().into_iter().flatten() {
            write!(text, "\n- {key}: {}", plain(value))?;
        }
        for (key, value) in &self.notes {
            write!(text, "\n- {key}: {value}")?;
        }
        if let Some(seed) = self.seed {
            write!(text, "\n- seed: {seed}")?;
        }
        text.push('\n');
        let mut names: Vec<&Value> = Vec::new();
        for figure in &self.figures {
            if !names.contains(&&figure["name"]) {
                names.push(&figure["name"]);
            }
        }
        for name in names {
            let of_name: Vec<_> = self.figures.iter().filter(|figure| figure["name"] == *name).collect();
            write!(text, "\n## {} ({})\n\n", plain(name), plain(&of_name[0]["unit"]))?;
            writeln!(
                text,
                "| labels | {} |\n| --- |{}",
                COLUMNS.join(" | "),
                " ---: |".repeat(COLUMNS.len())
            )?;
            for figure in of_name {
                write!(text, "| {} |", labels(&figure["labels"]))?;
                COLUMNS.iter().try_for_each(|column| write!(text, " {} |", cell(figure, column)))?;
                text.push('\n');
            }
        }
        Ok(text)
    }
}

fn labels(labels: &Value) -> String {
    let pairs = labels.as_object().into_iter().flatten();
    pairs.map(|(key, value)| format!("{key}={}", plain(value))).collect::<Vec<_>>().join(", ")
}

/// What stands in this column.
fn cell(figure: &Value, column: &str) -> String {
    let key = column.split(' ').next().unwrap_or(column);
    let value = plain(&figure[key]);
    match (&figure["p50_low"], &figure["p50_high"]) {
        (Value::Number(low), Value::Number(high)) if key == "p50" => format!("{value} [{low}, {high}]"),
        _ => value,
    }
}

/// A value without quotes; a missing one is a dash.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// To six places: more would only look precise.
fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// The variance of a sample; none of a single one.
#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn variance(samples: &[f64]) -> Option<f64> {
    let mean = statistics::mean(samples);
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    (samples.len() > 1).then(|| round(squares / (samples.len() - 1) as f64))
}

/// What figures depend on.
fn machine() -> Result<Value> {
    let kernel = nix::sys::utsname::uname()?;
    let (cpus, memory) = (fs::read_to_string("/proc/cpuinfo")?, fs::read_to_string("/proc/meminfo")?);
    let after = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.split_once(':'));
        line.map(|(_, value)| value.trim().to_owned())
    };
    Ok(json!({
        "kernel": format!("{} {}", kernel.sysname().display(), kernel.release().display()),
        "architecture": kernel.machine().to_string_lossy(),
        "cpu": after(&cpus, "model name"),
        "cpus": cpus.lines().filter(|line| line.starts_with("processor")).count(),
        "memory": after(&memory, "MemTotal"),
        // What `std::time::Instant` reads on Linux.
        "clock": "CLOCK_MONOTONIC",
    }))
}

#[cfg(test)]
mod tests;
