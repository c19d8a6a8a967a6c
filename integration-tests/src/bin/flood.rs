//! `make bench`, its part about floods: what one of SYNs does to cold starts of clients with a key.
//!
//! Blocks of requests without a flood, with one elsewhere, and with one here take turns in one run, so that noise
//! meets all. A flood is what one core can send, and that core is the flood's own: agent, functions and client
//! have the others, in all blocks. The flood elsewhere, which no agent sees, tells what the sender alone costs.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use headstart_integration_tests::evidence::bench::{self, Run};
use headstart_integration_tests::lab::asker::{self, Asker};
use headstart_integration_tests::lab::node::{headstart, trigger};
use headstart_integration_tests::lab::siege::{CLOSED, CLOSED_ID, Siege, last_cpu};
use headstart_integration_tests::lab::usage;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Functions that the flood is aimed at, beside the one that is measured.
const OPEN: u16 = 100;
/// Blocks of each kind, after one that warms caches.
const BLOCKS: usize = 30;
const QUICK_BLOCKS: usize = 2;
/// Requests of a block: 300 of each kind in all.
const REQUESTS: usize = 10;
/// A block is over long before.
const FLOOD_LIMIT: Duration = Duration::from_secs(60);
/// Milliseconds from the SYN to the whole answer.
const COLD: &str = "flood_cold_ms";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if let (Some(asker::MODE), Some(target)) = (arguments.next().as_deref(), arguments.next()) {
        return asker::main(&target);
    }
    bench::main("flood", measure)
}

fn measure(run: &mut Run) -> Result<()> {
    leave_a_core()?;
    println!("An agent with {OPEN} open functions, a client with a key, an attacker ...");
    let siege = Siege::new(OPEN)?.context("something is missing: run `make install`")?;
    let mut tag = headstart("tag", siege.target(), CLOSED_ID, Some(&siege.keys))?;
    tag.arg("--");
    let mut client = Asker::start(&siege.node.client, tag, siege.target())?;

    let blocks = run.many(BLOCKS, QUICK_BLOCKS);
    run.expect((1 + blocks) * FloodTarget::ALL.len());
    for block in 0..=blocks {
        for kind in run.order(FloodTarget::ALL.len()) {
            let flood = FloodTarget::ALL[kind];
            run.step(&format!("{REQUESTS} cold starts, flood {}", flood.name()))?;
            let samples = measure_block(&siege, &mut client, flood)?;
            // The first warms caches.
            if block > 0 {
                samples.into_iter().for_each(|(name, unit, sample)| {
                    run.samples.add(name, &[("flood", flood.name())], unit, sample);
                });
            }
        }
    }
    drop(client);
    for base in [FloodTarget::Nowhere, FloodTarget::Elsewhere] {
        for (name, percent) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0)] {
            let of = (COLD, &[("flood", FloodTarget::Here.name())][..]);
            let to = (COLD, &[("flood", base.name())][..]);
            let labels = [("of", name), ("against", base.name())];
            run.samples.derive_ratio("flood_cold_ratio", &labels, percent, of, to);
        }
    }
    Ok(())
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
enum FloodTarget {
    /// There is none.
    Nowhere,
    /// To a network without an agent.
    Elsewhere,
    /// To the node.
    Here,
}

impl FloodTarget {
    const ALL: [Self; 3] = [Self::Nowhere, Self::Elsewhere, Self::Here];

    fn name(self) -> &'static str {
        match self {
            Self::Nowhere => "none",
            Self::Elsewhere => "elsewhere",
            Self::Here => "here",
        }
    }
}

/// Figure, unit and sample.
type FloodSample = (&'static str, &'static str, f64);

fn measure_block(siege: &Siege, client: &mut Asker, flood: FloodTarget) -> Result<Vec<FloodSample>> {
    let agent = &siege.agent;
    let running = match flood {
        FloodTarget::Nowhere => None,
        FloodTarget::Elsewhere => Some(siege.flood_elsewhere(FLOOD_LIMIT)?),
        FloodTarget::Here => Some(siege.flood(FLOOD_LIMIT)?),
    };
    let (begin, cpu) = (Instant::now(), usage::cpu_time(agent.id())?);
    let mut samples = Vec::new();
    for _ in 0..REQUESTS {
        samples.push((COLD, "ms", client.ask()?.as_secs_f64() * 1e3));
        let trigger = trigger(agent, CLOSED)?;
        ensure!(trigger == "syn", "a request with a key was started by {trigger}:\n{}", agent.log());
        siege.closed.cool(agent, CLOSED)?;
    }
    let used = usage::cpu_time(agent.id())?.saturating_sub(cpu);
    let percent = used.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0;
    samples.push(("flood_agent_cpu_percent", "percent", percent));
    samples.push(("flood_agent_resident_mib", "MiB", mebibytes(usage::resident_bytes(agent.id())?)));
    if let Some(running) = running {
        ensure!(running.is_running(), "the flood ended before the block did");
        samples.push(("flood_syns_per_second", "1/s", running.stop()?.rate()));
    }
    siege.cool()?;
    Ok(samples)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
