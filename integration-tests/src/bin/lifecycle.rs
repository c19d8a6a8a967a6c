//! `make bench`, its lifecycle part: bursts, thaws, rest, repetition, and ten thousand functions.

use std::fs;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use headstart_integration_tests::evidence::bench::{self, Run};
use headstart_integration_tests::evidence::report::Figure;
use headstart_integration_tests::lab::site::{LIMIT, TestFunction, unbounded};
use headstart_integration_tests::lab::{
    AgentSetup, Delay, Link, Namespace, RunningAgent, client, fixture, leaks, usage,
};
use serde_json::Value;

const NAME: &str = "steady";

/// From the client to the node and back.
const ROUND_TRIP: Duration = Duration::from_millis(50);
/// Clients of a burst.
const BURST: usize = 50;
/// Bursts of each kind.
const BURSTS: usize = 5;
/// Freezes and thaws, one after the other.
const THAWS: usize = 1000;
/// Starts and stops.
const STARTS: usize = 500;
/// How long a frozen instance, and an agent without work, are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// Functions on a node with few, and with many.
const FEW: u16 = 10;
const MANY: u16 = 10_000;
/// Cold starts of one of them, after some that do not count.
const COLD: usize = 100;
const COLD_WARMUP: usize = 10;
/// The first of their ports, in a network of their own.
const FIRST_PORT: u16 = 10_000;

type LifecyclePart = fn() -> Result<Vec<Figure>>;

fn main() -> ExitCode {
    bench::main("lifecycle", measure)
}

fn measure(run: &mut Run) -> Result<()> {
    let parts: [(&str, LifecyclePart); 4] =
        [("bursts", bursts), ("rest", rest), ("repetition", repetition), ("many", many)];
    // The others take minutes.
    let parts = run.of(&parts, &parts[..1]);
    run.expect(parts.len());
    for (name, part) in parts {
        run.step(name)?;
        part().with_context(|| name.to_owned())?.into_iter().for_each(|figure| run.add(figure));
    }
    Ok(())
}

/// Clients at a distance, all at once, to a cold function and to one with enough ready instances, by turns.
fn bursts() -> Result<Vec<Figure>> {
    let client = Namespace::new("client")?;
    let link = Link::connect(&client)?;
    let _delay = Delay::new(&client, ROUND_TRIP)?;
    let mut figures = Vec::new();
    for (concurrency, prepared) in [(1, BURST), (1, 1), (BURST, 1)] {
        let keys = format!("concurrency = {concurrency}\nmax_instances = {BURST}\n");
        let mut function = fixture::steady("oci", &keys)?;
        function.prepared = prepared;
        let agent = unbounded().interface(link.host_if()).config(&function.text(NAME, &[])).start()?;
        function.rest(&agent, NAME)?;
        let address = link.host(function.port);
        let (mut cold, mut warm, mut over) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..BURSTS {
            let slowest_cold = burst(&client, address)?;
            agent.wait_function(NAME, "idle", LIMIT, |function| function["queued"] == 0)?;
            let slowest_warm = burst(&client, address)?;
            function.cool(&agent, NAME)?;
            cold.push(slowest_cold);
            warm.push(slowest_warm);
            over.push(slowest_cold - slowest_warm);
        }
        let labels = [("concurrency", &*concurrency.to_string()), ("prepared", &*prepared.to_string())];
        figures.push(Figure::new("lifecycle_burst_cold_ms", &labels, "ms", &cold)?);
        figures.push(Figure::new("lifecycle_burst_warm_ms", &labels, "ms", &warm)?);
        figures.push(Figure::new("lifecycle_burst_over_warm_ms", &labels, "ms", &over)?);
        ensure!(agent.stop()?.success());
    }
    Ok(figures)
}

/// The slowest answer of a burst, in milliseconds from its own SYN. All must be answered.
fn burst(client: &Namespace, address: SocketAddr) -> Result<f64> {
    let together = Barrier::new(BURST);
    thread::scope(|scope| {
        let one = || {
            client.enter(|| {
                together.wait();
                let begin = Instant::now();
                let reply = client::get(address, "/", LIMIT)?;
                ensure!(reply.status == 200, "{reply:?}");
                Ok(ms(begin.elapsed()))
            })?
        };
        let clients: Vec<_> = (0..BURST).map(|_| scope.spawn(one)).collect();
        let mut slowest: f64 = 0.0;
        for client in clients {
            slowest = slowest.max(client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        Ok(slowest)
    })
}

/// What a frozen instance costs, and how long it takes to serve again.
fn rest() -> Result<Vec<Figure>> {
    let client = Namespace::new("client")?;
    let link = Link::connect(&client)?;
    let mut figures = Vec::new();
    for runtime in ["oci", "process"] {
        let function = fixture::steady(runtime, "")?;
        let agent = unbounded().interface(link.host_if()).config(&function.text(NAME, &[])).start()?;
        function.rest(&agent, NAME)?;
        let address = link.host(function.port);
        // It would use a whole processor.
        client.enter(|| client::get(address, "/spin", LIMIT))??;
        // Some ticks of the clock that processor time is counted in.
        pause(Duration::from_millis(200));
        freeze(&agent)?;
        let before = time_of_functions()?;
        ensure!(!before.is_zero(), "the function is not found, or has not spun");
        pause(LOOK);
        let used = ms(time_of_functions()?.saturating_sub(before));
        function.cool(&agent, NAME)?;
        let mut thaws = Vec::new();
        client.enter(|| client::get(address, "/", LIMIT))??;
        for _ in 0..THAWS / 5 {
            freeze(&agent)?;
            let sum = || anyhow::Ok(agent.metrics()?.sum("headstart_thaw_seconds_sum", &[]));
            let before = sum()?;
            client.enter(|| client::get(address, "/", LIMIT))??;
            thaws.push((sum()? - before) * 1e3);
        }
        let labels = [("runtime", runtime)];
        figures.push(Figure::new("lifecycle_thaw_ms", &labels, "ms", &thaws)?);
        figures.push(Figure::new("lifecycle_frozen_cpu_ms", &labels, "ms", &[used])?);
        ensure!(agent.stop()?.success());
    }
    Ok(figures)
}

fn freeze(agent: &RunningAgent) -> Result<()> {
    // The client's connection may be open for a moment yet: then it is asked again.
    loop {
        agent.operate(NAME, "freeze")?;
        let settled =
            |function: &Value| function["state"] == "frozen" || function["running"][0]["reason"] == "busy";
        if agent.wait_function(NAME, "frozen", LIMIT, settled)?["state"] == "frozen" {
            return Ok(());
        }
    }
}

/// Processor time of all processes of the fixture.
fn time_of_functions() -> Result<Duration> {
    let mut all = Duration::ZERO;
    for entry in fs::read_dir("/proc")? {
        let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has just ended is none.
        let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        // A copy of it has a name before and after that.
        if name.contains(NAME) {
            all += usage::cpu_time(id)?;
        }
    }
    Ok(all)
}

/// What the agent holds after many lives, compared with after a few.
fn repetition() -> Result<Vec<Figure>> {
    let function = fixture::steady("oci", "")?;
    let agent = AgentSetup::default().config(&function.text(NAME, &[])).start()?;
    function.rest(&agent, NAME)?;
    let ask = || client::get(function.local(), "/", LIMIT).map(drop);
    let held = || -> Result<(f64, f64)> {
        let descriptors = f64::from(u32::try_from(agent.open_fds()?.len())?);
        Ok((bytes(usage::resident_bytes(agent.id())?), descriptors))
    };
    let mut figures = Vec::new();
    for (kind, times) in [("freeze", THAWS), ("start", STARTS)] {
        let watch = leaks::LeakWatch::all();
        let mut first = None;
        for turn in 0..times + times / 10 {
            // Caches and buffers have their size after a tenth.
            if turn == times / 10 {
                first = Some((held()?, watch.snapshot()?));
            }
            ask()?;
            if kind == "freeze" { freeze(&agent)? } else { function.cool(&agent, NAME)? }
        }
        if kind == "freeze" {
            function.cool(&agent, NAME)?;
        }
        let ((memory, descriptors), before) = first.context("no turns")?;
        let (memory_after, descriptors_after) = held()?;
        let left = watch.snapshot()?.beyond(&before);
        // The parked container has another name than before.
        println!("  {kind}: beyond the first snapshot: {} things", left.len());
        let labels = [("cycles", kind)];
        figures.push(Figure::new("lifecycle_memory_ratio", &labels, "ratio", &[memory_after / memory])?);
        let more = descriptors_after - descriptors;
        figures.push(Figure::new("lifecycle_descriptors_more", &labels, "1", &[more])?);
    }
    ensure!(agent.stop()?.success());
    Ok(figures)
}

/// A node with few functions and one with many, of which the same one is asked, by turns.
fn many() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let nodes = [FilledNode::new(FEW, &mut figures)?, FilledNode::new(MANY, &mut figures)?];
    let mut samples = [Vec::new(), Vec::new()];
    for turn in 0..COLD_WARMUP + COLD {
        for (node, samples) in nodes.iter().zip(&mut samples) {
            let answered = node.cold()?;
            if turn >= COLD_WARMUP {
                samples.push(ms(answered));
            }
        }
    }
    let mut medians = Vec::new();
    for (node, samples) in nodes.into_iter().zip(samples) {
        let labels = [("functions", &*node.functions.to_string())];
        let figure = Figure::new("lifecycle_many_cold_ms", &labels, "ms", &samples)?;
        medians.push(figure.percentile(50.0));
        figures.push(figure);
        ensure!(node.agent.stop()?.success());
    }
    figures.push(Figure::new("lifecycle_many_cold_ratio", &[], "ratio", &[medians[1] / medians[0]])?);
    Ok(figures)
}

/// A node with so many functions, the first of which has a parked container.
struct FilledNode {
    functions: u16,
    agent: RunningAgent,
    link: Link,
    client: Namespace,
    function: TestFunction,
    _node: Namespace,
}

impl FilledNode {
    /// Starts it, and tells what that and doing nothing costs.
    fn new(functions: u16, figures: &mut Vec<Figure>) -> Result<Self> {
        let (node, client) = (Namespace::new("node")?, Namespace::new("client")?);
        let link = Link::between(&node, &client)?;
        let mut function = fixture::steady("process", "backlog = 16\n")?;
        let mut text = String::new();
        for number in 0..functions {
            function.port = FIRST_PORT + number;
            function.prepared = usize::from(number == 0);
            text.push_str(&function.text(&format!("f{number}"), &[]));
        }
        (function.port, function.prepared) = (FIRST_PORT, 1);
        let setup = unbounded().namespace(&node).interface(link.host_if()).config(&text);
        let begin = Instant::now();
        let agent = setup.start()?;
        let ready = begin.elapsed();
        function.rest(&agent, "f0")?;
        let cpu = usage::cpu_time(agent.id())?;
        pause(LOOK);
        let used = usage::cpu_time(agent.id())?.saturating_sub(cpu);
        let memory = bytes(usage::resident_bytes(agent.id())?);
        let labels = [("functions", &*functions.to_string())];
        let percent = used.as_secs_f64() / LOOK.as_secs_f64() * 100.0;
        figures.push(Figure::new("lifecycle_many_ready_s", &labels, "s", &[ready.as_secs_f64()])?);
        figures.push(Figure::new("lifecycle_many_resident_mib", &labels, "MiB", &[memory / 1_048_576.0])?);
        figures.push(Figure::new("lifecycle_many_idle_percent", &labels, "percent", &[percent])?);
        Ok(Self { functions, agent, link, client, function, _node: node })
    }

    /// How long a client of the cold function waits; it is cold again afterwards.
    fn cold(&self) -> Result<Duration> {
        let address = self.link.host(FIRST_PORT);
        let begin = Instant::now();
        self.client.enter(|| client::get(address, "/", LIMIT))??;
        let answered = begin.elapsed();
        self.function.cool(&self.agent, "f0")?;
        Ok(answered)
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn bytes(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::disallowed_methods, reason = "what happens in a span of time is what is measured")]
fn pause(duration: Duration) {
    thread::sleep(duration);
}
