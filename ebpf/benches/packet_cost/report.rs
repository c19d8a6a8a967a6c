//! Figures: printed, written for the bench report, and held against what was recorded.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How far above its record a case may be: by this share of it, and by noise that is there however cheap it is.
const REGRESSION: f64 = 0.30;
const NOISE_NS: f64 = 3.0;

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
}

/// A table, nanoseconds.
pub(crate) fn print(figures: &[Figure]) {
    println!("{:<24}{:>7}{:>7}{:>7}{:>7}{:>7}", "ns above the floor", "min", "p50", "p90", "max", "floor");
    for figure in figures {
        let (min, p50, p90, max) = (figure.min(), figure.percentile(50), figure.percentile(90), figure.max());
        let (case, floor) = (figure.case, figure.floor_ns);
        println!("{case:<24}{min:>7}{p50:>7}{p90:>7}{max:>7}{floor:>7}");
    }
}

/// Writes `target/bench/xdp_ns.json` beside the build's other output.
pub(crate) fn write<'a>(figures: impl IntoIterator<Item = &'a Figure>) {
    let mut json = String::from("[");
    for (index, figure) in figures.into_iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        let (p50, p90, p99) = (figure.percentile(50), figure.percentile(90), figure.percentile(99));
        let (case, n) = (figure.case, figure.above_ns.len());
        let (min, max, mean) = (figure.min(), figure.max(), figure.mean());
        write!(
            json,
            "{separator}\n  {{\"name\":\"xdp_ns\",\"labels\":{{\"case\":\"{case}\"}},\"unit\":\"ns\",\"n\":{n},\"p50\":{p50},\
             \"p90\":{p90},\"p99\":{p99},\"min\":{min},\"max\":{max},\"mean\":{mean:.1}}}",
        )
        .expect("a string takes what is written");
    }
    json.push_str("\n]\n");
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let directory = target.join("bench");
    fs::create_dir_all(&directory).expect("target/bench can be made");
    fs::write(directory.join("xdp_ns.json"), json).expect("target/bench can be written");
}

/// Whether every case is within its bar and near its record.
pub(crate) fn judge(figures: &[Figure]) -> ExitCode {
    let recorded: toml::Table = include_str!("../recorded.toml").parse().expect("recorded.toml is TOML");
    let mut verdict = ExitCode::SUCCESS;
    for figure in figures {
        let number = |key: &str| {
            let value =
                recorded.get(figure.case).and_then(|case| case.get(key)).and_then(toml::Value::as_integer);
            value.unwrap_or_else(|| panic!("recorded.toml lacks {key} of {}", figure.case)) as f64
        };
        let (recorded_ns, bar_ns) = (number("recorded_ns"), number("bar_ns"));
        let regressed_ns = (recorded_ns * (1.0 + REGRESSION)).max(recorded_ns + NOISE_NS);
        let best_ns = figure.min();
        if best_ns > bar_ns {
            eprintln!("FAILED: {}: {best_ns} ns, above its bar of {bar_ns} ns", figure.case);
            verdict = ExitCode::FAILURE;
        } else if best_ns > regressed_ns {
            eprintln!("FAILED: {}: {best_ns} ns, recorded were {recorded_ns} ns", figure.case);
            verdict = ExitCode::FAILURE;
        }
    }
    verdict
}
