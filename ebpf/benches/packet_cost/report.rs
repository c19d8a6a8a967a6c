//! Figures: printed, and written for the bench report.

use std::fs;
use std::path::{Path, PathBuf};

/// One case: nanoseconds per packet above the floor, sorted.
pub(crate) struct Figure {
    case: &'static str,
    floor_ns: f64,
    above_ns: Vec<f64>,
}

impl Figure {
    /// From rounds of (program, floor). What else the machine does only adds, so the floor is its best round.
    pub(crate) fn new(case: &'static str, rounds: &[(f64, f64)]) -> Self {
        let floor_ns = rounds.iter().map(|(_, floor_ns)| *floor_ns).fold(f64::INFINITY, f64::min);
        let mut above_ns: Vec<f64> = rounds.iter().map(|(ns, _)| ns - floor_ns).collect();
        above_ns.sort_by(f64::total_cmp);
        Self { case, floor_ns, above_ns }
    }

    /// The floor itself, as a case of its own.
    pub(crate) fn of_floor(rounds: &[(f64, f64)]) -> Self {
        let rounds: Vec<_> = rounds.iter().map(|(_, floor_ns)| (*floor_ns, 0.0)).collect();
        Self::new("floor", &rounds)
    }

    fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.above_ns.len() * percent).div_ceil(100).max(1) - 1;
        self.above_ns[rank]
    }

    fn min(&self) -> f64 {
        self.above_ns[0]
    }

    fn max(&self) -> f64 {
        self.above_ns[self.above_ns.len() - 1]
    }

    fn mean(&self) -> f64 {
        self.above_ns.iter().sum::<f64>() / self.above_ns.len() as f64
    }

    /// As a figure of the bench report, in multiples of `one` nanoseconds.
    fn json(&self, name: &str, unit: &str, one: f64) -> String {
        let (case, n) = (self.case, self.above_ns.len());
        let values = [
            ("p50", self.percentile(50)),
            ("p90", self.percentile(90)),
            ("p99", self.percentile(99)),
            ("min", self.min()),
            ("max", self.max()),
            ("mean", self.mean()),
        ];
        let values = values.map(|(key, ns)| format!("\"{key}\":{:.3}", ns / one)).join(",");
        format!(
            "{{\"name\":\"{name}\",\"labels\":{{\"case\":\"{case}\"}},\"unit\":\"{unit}\",\"n\":{n},{values}}}"
        )
    }
}

/// A table: nanoseconds, and the best as a multiple of the reference's best.
pub(crate) fn print(figures: &[Figure], reference: &Figure) {
    println!(
        "{:<24}{:>7}{:>7}{:>7}{:>7}{:>7}{:>7}",
        "ns above the floor", "min", "p50", "p90", "max", "floor", "ratio"
    );
    for figure in figures.iter().chain([reference]) {
        let (min, p50, p90, max) = (figure.min(), figure.percentile(50), figure.percentile(90), figure.max());
        let (case, floor, ratio) = (figure.case, figure.floor_ns, min / reference.min());
        println!("{case:<24}{min:>7}{p50:>7}{p90:>7}{max:>7}{floor:>7}{ratio:>7.2}");
    }
}

/// Writes `target/bench/xdp_ns.json` beside the build's other output.
pub(crate) fn write(figures: &[Figure], reference: &Figure, floor: &Figure) {
    let best = reference.min();
    let ns = figures.iter().chain([reference, floor]).map(|figure| figure.json("xdp_ns", "ns", 1.0));
    let ratios = figures.iter().map(|figure| figure.json("xdp_ratio", "1", best));
    let lines: Vec<_> = ns.chain(ratios).collect();
    let json = format!("[\n  {}\n]\n", lines.join(",\n  "));
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let directory = target.join("bench");
    fs::create_dir_all(&directory).expect("target/bench can be made");
    fs::write(directory.join("xdp_ns.json"), json).expect("target/bench can be written");
}
