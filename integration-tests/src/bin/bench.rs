//! `make bench`, its last part: what a flood of SYNs does to cold starts of clients with a key. It adds what the others
//! measured (`xdp_ns.json`, `lifecycle.json`, `inject.json`), writes `target/bench/report.json` and `report.md`, and fails
//! when a promise of SPECIFICATION.md is broken.
//!
//! Blocks of requests without a flood, with one elsewhere, and with one here take turns in one run, so that noise
//! meets all. A flood is what one core can send, and that core is the flood's own: agent, functions and client
//! have the others, in all blocks. The flood elsewhere, which no agent sees, tells what the sender alone costs.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use headstart_integration_tests::asker::{self, Asker};
use headstart_integration_tests::lab::{self, Lease};
use headstart_integration_tests::node::{headstart, trigger};
use headstart_integration_tests::report::{Figure, Report};
use headstart_integration_tests::siege::{CLOSED, CLOSED_ID, Siege, last_cpu};
use headstart_integration_tests::usage;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Functions that the flood is aimed at, beside the one that is measured.
const OPEN: u16 = 100;
/// Blocks of each kind, after one that warms caches.
const BLOCKS: usize = 30;
/// Requests of a block: 300 of each kind in all.
const REQUESTS: usize = 10;
/// A block is over long before.
const FLOOD_LIMIT: Duration = Duration::from_secs(60);
/// The promise: p99 of a client with a key under flood, compared with none.
const MOST_RATIO: f64 = 1.5;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if let (Some(asker::MODE), Some(target)) = (arguments.next().as_deref(), arguments.next()) {
        return asker::main(&target);
    }
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and reports; whether the promise is kept.
fn bench() -> Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "it needs root: network namespaces, eBPF, containers");
    let _lease = Lease::take()?;
    leave_a_core()?;
    println!("An agent with {OPEN} open functions, a client with a key, an attacker ...");
    let siege = Siege::new(OPEN)?.context("something is missing: run `make install`")?;
    let mut tag = headstart("tag", siege.target(), CLOSED_ID, Some(&siege.keys))?;
    tag.arg("--");
    let mut client = Asker::start(&siege.node.client, tag, siege.target())?;

    let mut all = Where::ALL.map(|_| Samples::default());
    for block in 0..=BLOCKS {
        for turn in 0..all.len() {
            // Each in its turn is the first, so that none always follows the same.
            let kind = (block + turn) % all.len();
            let samples = measure(&siege, &mut client, Where::ALL[kind])?;
            println!("Block {block} of {BLOCKS}, flood {}: {}", Where::ALL[kind].name(), samples.line());
            // The first warms caches.
            if block > 0 {
                all[kind].extend(samples);
            }
        }
    }
    drop(client);
    report(&all)
}

/// Everything that is started from now on leaves the last CPU to the flood.
fn leave_a_core() -> Result<()> {
    let last = last_cpu()?;
    ensure!(last >= 1, "it needs two CPUs: one for the flood alone");
    let mut rest = CpuSet::new();
    (0..last).try_for_each(|cpu| rest.set(cpu))?;
    sched_setaffinity(Pid::from_raw(0), &rest)?;
    Ok(())
}

/// Where a flood goes.
#[derive(Clone, Copy)]
enum Where {
    /// There is none.
    Nowhere,
    /// To a network without an agent.
    Elsewhere,
    /// To the node.
    Here,
}

impl Where {
    const ALL: [Self; 3] = [Self::Nowhere, Self::Elsewhere, Self::Here];

    fn name(self) -> &'static str {
        match self {
            Self::Nowhere => "none",
            Self::Elsewhere => "elsewhere",
            Self::Here => "here",
        }
    }
}

/// What was measured with, or without, a flood.
#[derive(Default)]
struct Samples {
    /// Milliseconds from the SYN to the whole answer, by request.
    cold_ms: Vec<f64>,
    /// By block: the agent's share of one processor.
    cpu_percent: Vec<f64>,
    /// By block: what the agent has resident at its end.
    resident_mib: Vec<f64>,
    /// By block with a flood.
    syns_per_second: Vec<f64>,
}

impl Samples {
    fn extend(&mut self, other: Self) {
        self.cold_ms.extend(other.cold_ms);
        self.cpu_percent.extend(other.cpu_percent);
        self.resident_mib.extend(other.resident_mib);
        self.syns_per_second.extend(other.syns_per_second);
    }

    fn line(&self) -> String {
        let longest = self.cold_ms.iter().copied().fold(0.0, f64::max);
        let rate = self.syns_per_second.first().map(|rate| format!(", {rate:.0} SYNs a second"));
        format!("{} cold starts, the longest {longest:.1} ms{}", self.cold_ms.len(), rate.unwrap_or_default())
    }
}

fn measure(siege: &Siege, client: &mut Asker, flood: Where) -> Result<Samples> {
    let agent = &siege.agent;
    let running = match flood {
        Where::Nowhere => None,
        Where::Elsewhere => Some(siege.flood_elsewhere(FLOOD_LIMIT)?),
        Where::Here => Some(siege.flood(FLOOD_LIMIT)?),
    };
    let (begin, cpu) = (Instant::now(), usage::cpu_time(agent.id())?);
    let mut samples = Samples::default();
    for _ in 0..REQUESTS {
        samples.cold_ms.push(client.ask()?.as_secs_f64() * 1e3);
        let trigger = trigger(agent, CLOSED)?;
        ensure!(trigger == "syn", "a request with a key was started by {trigger}:\n{}", agent.log());
        siege.closed.cool(agent, CLOSED)?;
    }
    let used = usage::cpu_time(agent.id())?.saturating_sub(cpu);
    samples.cpu_percent.push(used.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0);
    samples.resident_mib.push(mebibytes(usage::resident_bytes(agent.id())?));
    if let Some(running) = running {
        ensure!(running.is_running(), "the flood ended before the block did");
        samples.syns_per_second.push(running.stop()?.rate());
    }
    siege.cool()?;
    Ok(samples)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn report(all: &[Samples; 3]) -> Result<bool> {
    let directory = lab::target_dir().join("bench");
    let mut report = Report::new()?;
    for (file, what) in [
        ("xdp_ns.json", "the cost per packet"),
        ("lifecycle.json", "the lifecycle"),
        ("inject.json", "the injection"),
    ] {
        let file = directory.join(file);
        if !report.merge(&file)? {
            println!("{} is not there: {what} is not in the report", file.display());
        }
    }
    let mut cold = Vec::new();
    for (flood, samples) in Where::ALL.into_iter().zip(all) {
        let labels = [("client", "authenticated"), ("flood", flood.name())];
        let figure = Figure::new("flood_cold_ms", &labels, "ms", &samples.cold_ms)?;
        report.add(&figure);
        cold.push(figure);
    }
    let here = &cold[2];
    let ratio = |percent, base: &Figure| here.percentile(percent) / base.percentile(percent);
    for (flood, base) in Where::ALL.into_iter().zip(&cold).take(2) {
        for (name, percent) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0)] {
            let labels = [("of", name), ("against", flood.name())];
            report.add(&Figure::new("flood_cold_ratio", &labels, "ratio", &[ratio(percent, base)])?);
        }
    }
    for (flood, samples) in Where::ALL.into_iter().zip(all) {
        let labels = [("flood", flood.name())];
        report.add(&Figure::new("flood_agent_cpu_percent", &labels, "percent", &samples.cpu_percent)?);
        report.add(&Figure::new("flood_agent_resident_mib", &labels, "MiB", &samples.resident_mib)?);
        if !samples.syns_per_second.is_empty() {
            report.add(&Figure::new("flood_syns_per_second", &labels, "1/s", &samples.syns_per_second)?);
        }
    }
    report.write(&directory)?;

    print!("\n{}", report.markdown()?);
    println!("\nThe report is in {}", directory.display());
    let worse = ratio(99.0, &cold[0]);
    if worse > MOST_RATIO {
        eprintln!(
            "bench: p99 of cold starts with a key is {worse:.2} times what it is without a flood, and {MOST_RATIO} \
             is promised; a flood elsewhere, which costs this machine the sender alone, makes it {:.2} times",
            cold[1].percentile(99.0) / cold[0].percentile(99.0)
        );
    }
    Ok(worse <= MOST_RATIO)
}
