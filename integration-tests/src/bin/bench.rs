//! `make bench`: runs its parts one after the other, puts what they measured into `target/bench/report.json`, `report.md`
//! and plots, and compares it with SPECIFICATION.md. A part that fails, or is interrupted, leaves what it has.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use headstart_integration_tests::evidence::interrupt::Interrupt;
use headstart_integration_tests::evidence::report::promise::{Verdict, promises};
use headstart_integration_tests::evidence::report::{BenchReport, plot};
use headstart_integration_tests::lab;

/// Every part: its program and file, and the seconds it takes on two cores, in full and quickly.
const PARTS: [(&str, [u32; 2]); 10] = [
    ("xdp_ns", [30, 30]),
    ("syn", [840, 60]),
    ("both", [240, 40]),
    ("peers", [180, 50]),
    ("inject", [670, 50]),
    ("lifecycle", [90, 25]),
    ("flood", [45, 10]),
    ("relay_load", [180, 20]),
    ("stall", [120, 25]),
    ("handlers", [60, 15]),
];

#[derive(Debug, Parser)]
#[command(about = "Measures Headstart, and what others use, on this machine")]
struct BenchArguments {
    /// Fewer rounds and cases: about four minutes instead of forty. What needs more samples is not judged
    #[arg(long)]
    quick: bool,
    /// Repeats the order of an earlier run, which has printed it
    #[arg(long)]
    seed: Option<u64>,
    /// Only these parts, and the report of them and of what earlier runs have left
    #[arg(long, value_name = "PART", value_parser = PARTS.map(|(name, _)| name))]
    only: Vec<String>,
    /// Measures nothing: the report of what earlier runs have left
    #[arg(long)]
    report: bool,
}

fn main() -> ExitCode {
    match bench(&BenchArguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was measured, and every promise is kept.
fn bench(arguments: &BenchArguments) -> Result<bool> {
    ensure!(
        arguments.report || nix::unistd::geteuid().is_root(),
        "it needs root: it makes network namespaces, attaches an XDP program and starts containers. Run `sudo make \
         bench`; it touches nothing outside of namespaces of its own and loopback, and cleans up"
    );
    let interrupt = Interrupt::new()?;
    let directory = lab::target_dir().join("bench");
    fs::create_dir_all(&directory)?;
    let chosen: Vec<_> = PARTS
        .into_iter()
        .filter(|(name, _)| {
            !arguments.report && (arguments.only.is_empty() || arguments.only.iter().any(|only| only == name))
        })
        .map(|(name, seconds)| (name, Duration::from_secs(seconds[usize::from(arguments.quick)].into())))
        .collect();
    let mut failed = Vec::new();
    for (number, (name, _)) in chosen.iter().enumerate() {
        let left: Duration = chosen[number..].iter().map(|(_, time)| *time).sum();
        let (number, all) = (number + 1, chosen.len());
        println!("\n== Part {number} of {all}: {name}; about {} min are left", left.as_secs().div_ceil(60));
        // What an earlier run has left is not this one's.
        let file = directory.join(format!("{name}.json"));
        if file.exists() {
            fs::remove_file(&file)?;
        }
        let began = Instant::now();
        let status = part(name, arguments)?.status().with_context(|| format!("running {name}"))?;
        println!("{name} took {} s", began.elapsed().as_secs());
        if !status.success() {
            failed.push(*name);
        }
        if interrupt.came() {
            break;
        }
    }

    let mut report = BenchReport::new()?;
    for (name, _) in PARTS {
        if !report.merge(&directory.join(format!("{name}.json")))? {
            report.note(name, "NOT MEASURED");
            report.set_partial(true);
        }
    }
    report.note("quick", if report.is_quick() { "yes: few samples" } else { "no" });
    report.write(&directory)?;
    let plots = plot::draw(&report.value(), &directory)?;
    println!("\n== {} and {} plots", directory.join("report.md").display(), plots.len());
    let kept = compare(&report)?;
    ensure!(!interrupt.came(), "interrupted: what was measured is kept, and marked partial");
    ensure!(failed.is_empty(), "these parts failed: {}", failed.join(", "));
    Ok(kept)
}

/// The program of a part.
fn part(name: &str, arguments: &BenchArguments) -> Result<Command> {
    if name == "xdp_ns" {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(lab::workspace()).args(["bench", "--locked", "--quiet", "-p", "headstart-ebpf"]);
        return Ok(command);
    }
    let own: PathBuf = env::current_exe()?;
    let mut command = Command::new(own.parent().unwrap_or(Path::new(".")).join(name));
    command.args(arguments.quick.then_some("--quick"));
    if let Some(seed) = arguments.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    Ok(command)
}

/// What SPECIFICATION.md promises, and what was measured.
fn compare(report: &BenchReport) -> Result<bool> {
    let file = lab::workspace().join("SPECIFICATION.md");
    let promises = promises(&fs::read_to_string(&file).with_context(|| file.display().to_string())?)?;
    println!("\n== SPECIFICATION.md\n");
    let (mut kept, mut not_judged) = (true, 0);
    for promise in promises {
        let verdict = promise.verdict(&report.value());
        println!("{:<84} {verdict}", promise.text);
        // What a part of a run did not measure, it has not broken.
        kept &= match verdict {
            Verdict::Held(_) => true,
            Verdict::Broken(_) => false,
            Verdict::NotMeasured => report.is_partial(),
            Verdict::NotJudged(_) => {
                not_judged += 1;
                report.is_quick() || report.is_partial()
            }
        };
    }
    if not_judged > 0 {
        println!(
            "\n{not_judged} of these were not judged: too few samples, as in a quick run. `make bench` without QUICK has them."
        );
    }
    Ok(kept)
}
