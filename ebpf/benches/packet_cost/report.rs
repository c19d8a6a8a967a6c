//! CaseFigures: printed, and written for the bench report.

use std::fs;
use std::path::{Path, PathBuf};

/// Rounds that a best one needs: of fewer, other load may have slowed each.
const JUDGED_MIN: usize = 20;

/// One case: nanoseconds per packet above the floor, sorted.
pub(crate) struct CaseFigure {
    case: &'static str,
    floor_ns: f64,
    above_ns: Vec<f64>,
}

impl CaseFigure {
    /// From rounds of (program, floor). Other load of the machine only adds, so the floor is its best round.
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

    pub(crate) fn min(&self) -> f64 {
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

/// A case, and what one unit of its ratio costs: the best times of the work that it is compared with.
pub(crate) struct Row {
    pub(crate) figure: CaseFigure,
    pub(crate) one_ns: f64,
}

/// A table: nanoseconds, and the best as a multiple of the same work alone.
pub(crate) fn print(rows: &[Row], of_work: &[CaseFigure]) {
    println!(
        "{:<24}{:>7}{:>7}{:>7}{:>7}{:>7}{:>7}",
        "ns above the floor", "min", "p50", "p90", "max", "floor", "ratio"
    );
    let line = |figure: &CaseFigure, ratio: &str| {
        let (min, p50, p90, max) = (figure.min(), figure.percentile(50), figure.percentile(90), figure.max());
        let (case, floor) = (figure.case, figure.floor_ns);
        println!("{case:<24}{min:>7.1}{p50:>7.1}{p90:>7.1}{max:>7.1}{floor:>7.1}{ratio:>7}");
    };
    for row in rows {
        let samples = row.figure.above_ns.len();
        let ratio = if samples < JUDGED_MIN {
            format!("  not judged: {samples} samples, needs {JUDGED_MIN}")
        } else {
            format!("{:.2}", row.figure.min() / row.one_ns)
        };
        line(&row.figure, &ratio);
    }
    for figure in of_work {
        line(figure, "");
    }
}

/// Writes `target/bench/xdp_ns.json` beside the build's other output.
pub(crate) fn write(rows: &[Row], of_work: &[CaseFigure], floor: &CaseFigure) {
    let figures = rows.iter().map(|row| &row.figure).chain(of_work).chain([floor]);
    let ns = figures.map(|figure| figure.json("xdp_ns", "ns", 1.0));
    let ratios = rows.iter().map(|row| row.figure.json("xdp_ratio", "1", row.one_ns));
    let lines: Vec<_> = ns.chain(ratios).collect();
    let json = format!("[\n  {}\n]\n", lines.join(",\n  "));
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let directory = target.join("bench");
    fs::create_dir_all(&directory).expect("target/bench can be made");
    fs::write(directory.join("xdp_ns.json"), json).expect("target/bench can be written");
}
