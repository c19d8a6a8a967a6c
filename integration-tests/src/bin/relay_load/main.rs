//! `make bench`, its part about bulk bytes: what relaying them in the agent does to cold starts.
//!
//! One function is started cold again and again, while another one moves bytes between itself and a server:
//!
//! - `none`: nothing else runs;
//! - `socket`: one connection at full speed, through the socket of the instance (`backend_sockets`);
//! - `tls`: one connection at full speed, whose TLS the agent speaks (without `tls_hand_over`);
//! - `chatter`: 64 connections through the socket of the instance, each with a small question every 10 ms.
//!
//! Each load has two paths. `agent`: the agent relays. `beside`: a process of its own relays in the same manner, and the
//! agent has only given the function its connections. So the machine has the same work in both cases, and what differs is
//! who does it. Blocks of requests under each load take turns in a random order.
//!
//! `relay_load --agent-before PATH` measures a second agent by turns with the first, and compares them.

mod servers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use headstart_integration_tests::evidence::bench::{self, Run};
use headstart_integration_tests::lab::node::{TestNode, newest_start};
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, TestFunction, unbounded};
use headstart_integration_tests::lab::{Rootfs, RunningAgent, build_static, cli, client, fixture, free_port};
use servers::Servers;

/// The function that is started cold.
const COLD: &str = "cold";
/// Blocks of each kind, after one that warms caches, and requests of a block.
const BLOCKS: usize = 25;
const QUICK_BLOCKS: usize = 2;
const REQUESTS: usize = 40;
const QUICK_REQUESTS: usize = 10;
/// Connections that chatter, and milliseconds between two questions of each.
const CHATTERING: usize = 64;
const EVERY_MS: u64 = 10;
/// Starts of a block that may be by the accept queue. They are not counted.
const BY_QUEUE_MAX: u32 = 2;
/// What a load must have moved before it counts as under way, in bytes.
const UNDER_WAY_BYTES: u64 = 4096;
/// Figures: stages of the starts, under the names that timelines have for them, and from the SYN to the whole answer.
const STAGE: &str = "relay_load_stage_ms";
const ANSWER: &str = "relay_load_answer_ms";
/// From the agent's knowledge to its order to start, and from the SYN to ready.
const STAGES: [&str; 2] = ["event_to_start", "total"];
const PERCENTILES: [(&str, f64); 3] = [("p50", 50.0), ("p95", 95.0), ("p99", 99.0)];

#[derive(Debug, Parser)]
#[command(about = "A part of `make bench`: what bulk bytes through the agent do to cold starts")]
struct RelayLoadArguments {
    #[command(flatten)]
    bench: bench::PartArguments,
    /// Measures this agent instead of the one that cargo builds
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Measures this agent too, by turns, as `agent="before"`
    #[arg(long, value_name = "PATH")]
    agent_before: Option<PathBuf>,
}

fn main() -> ExitCode {
    match servers::mode() {
        None => {
            let arguments = RelayLoadArguments::parse();
            bench::run("relay_load", &arguments.bench, |run| measure(run, &arguments))
        }
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What runs beside the cold starts: its name, who relays, and the function that does it.
#[derive(Clone, Copy, Debug)]
struct LoadCase {
    name: &'static str,
    path: &'static str,
    function: Option<&'static LoadFunction>,
}

/// A function that moves bytes.
#[derive(Debug)]
struct LoadFunction {
    name: &'static str,
    backend: &'static str,
    by_socket: bool,
    connections: usize,
    every_ms: u64,
}

const LOAD_FUNCTIONS: [LoadFunction; 6] = [
    LoadFunction { name: "socket-beside", backend: "beside", by_socket: false, connections: 1, every_ms: 0 },
    LoadFunction { name: "socket-agent", backend: "agent", by_socket: true, connections: 1, every_ms: 0 },
    LoadFunction { name: "tls-beside", backend: "beside-tls", by_socket: false, connections: 1, every_ms: 0 },
    LoadFunction { name: "tls-agent", backend: "agent-tls", by_socket: false, connections: 1, every_ms: 0 },
    LoadFunction {
        name: "chatter-beside",
        backend: "beside",
        by_socket: false,
        connections: CHATTERING,
        every_ms: EVERY_MS,
    },
    LoadFunction {
        name: "chatter-agent",
        backend: "agent",
        by_socket: true,
        connections: CHATTERING,
        every_ms: EVERY_MS,
    },
];

const LOADS: [LoadCase; 7] = [
    LoadCase { name: "none", path: "none", function: None },
    LoadCase { name: "socket", path: "beside", function: Some(&LOAD_FUNCTIONS[0]) },
    LoadCase { name: "socket", path: "agent", function: Some(&LOAD_FUNCTIONS[1]) },
    LoadCase { name: "tls", path: "beside", function: Some(&LOAD_FUNCTIONS[2]) },
    LoadCase { name: "tls", path: "agent", function: Some(&LOAD_FUNCTIONS[3]) },
    LoadCase { name: "chatter", path: "beside", function: Some(&LOAD_FUNCTIONS[4]) },
    LoadCase { name: "chatter", path: "agent", function: Some(&LOAD_FUNCTIONS[5]) },
];

fn measure(run: &mut Run, arguments: &RelayLoadArguments) -> Result<()> {
    let mut nodes = vec![LoadedNode::new("this", arguments.agent.as_deref())?];
    if let Some(before) = &arguments.agent_before {
        nodes.push(LoadedNode::new("before", Some(before))?);
    }
    let blocks = run.many(BLOCKS, QUICK_BLOCKS);
    let requests = run.many(REQUESTS, QUICK_REQUESTS);
    let kinds: Vec<(&LoadedNode, LoadCase)> =
        nodes.iter().flat_map(|node| LOADS.map(|load| (node, load))).collect();
    run.expect((1 + blocks) * kinds.len());
    for block in 0..=blocks {
        for kind in run.order(kinds.len()) {
            let (node, load) = kinds[kind];
            run.step(&format!(
                "{requests} cold starts of {:?}, load {}, {}",
                node.label, load.name, load.path
            ))?;
            let samples = node.measure_block(load, requests)?;
            // The first warms caches.
            if block > 0 {
                for (figure, stage, unit, sample) in samples {
                    let labels = node.stage_labels(load.name, load.path, stage.unwrap_or_default());
                    let count = labels.len() - usize::from(stage.is_none());
                    run.samples.add(figure, &labels[..count], unit, sample);
                }
            }
        }
    }
    nodes.iter().for_each(|node| compare_paths(run, node));
    if let [this, before] = &nodes[..] {
        compare_agents(run, this, before);
    }
    for node in nodes {
        ensure!(node.agent.stop()?.success());
    }
    Ok(())
}

/// How many times as long with the load through the agent as with the same load beside it.
fn compare_paths(run: &mut Run, node: &LoadedNode) {
    for load in ["socket", "tls", "chatter"] {
        for stage in STAGES {
            for (of, percent) in PERCENTILES {
                let [beside, through] = ["beside", "agent"].map(|path| node.stage_labels(load, path, stage));
                let labels = [("agent", node.label), ("load", load), ("stage", stage), ("of", of)];
                let (through, beside) = ((STAGE, &through[..]), (STAGE, &beside[..]));
                run.samples.derive_ratio("relay_load_stage_ratio", &labels, percent, through, beside);
            }
        }
    }
}

/// How many times as long with this agent as with the one before, under each load.
fn compare_agents(run: &mut Run, this: &LoadedNode, before: &LoadedNode) {
    for LoadCase { name, path, .. } in LOADS {
        for stage in STAGES {
            for (of, percent) in PERCENTILES {
                let [this, before] = [this, before].map(|node| node.stage_labels(name, path, stage));
                let labels = [("load", name), ("path", path), ("stage", stage), ("of", of)];
                let (this, before) = ((STAGE, &this[..]), (STAGE, &before[..]));
                run.samples.derive_ratio("relay_load_vs_before", &labels, percent, this, before);
            }
        }
    }
}

/// A figure, the stage if it is one of a stage, the unit, and the sample.
type NamedSample = (&'static str, Option<&'static str>, &'static str, f64);

/// A node with an agent, the function that is started cold, those that make the loads, and what they talk to.
#[derive(Debug)]
struct LoadedNode {
    label: &'static str,
    agent: RunningAgent,
    cold: TestFunction,
    loads: Vec<(&'static str, TestFunction)>,
    node: TestNode,
    _servers: Servers,
}

impl LoadedNode {
    fn new(label: &'static str, agent: Option<&Path>) -> Result<Self> {
        let node = TestNode::new()?.context("something is missing: run `make install`")?;
        let servers = Servers::start(&node.node)?;
        let cold = fixture::steady("process", "")?;
        let reader = build_static("headstart-lab-functions", "stream_reader")?;
        let mut setup = unbounded().namespace(&node.node).interface(node.link.host_if());
        setup = setup.config(&servers.backends()).config(&cold.text(COLD, &[]));
        let mut loads = Vec::new();
        for load in &LOAD_FUNCTIONS {
            let kind = FunctionKind::of("process", Rootfs::with_binary("stream_reader", &reader)?)?;
            // None is parked: a load that ends leaves no work behind.
            let function = TestFunction { port: free_port()?.port(), prepared: 0, kind, keys: load.keys() };
            setup = setup.config(&function.text(load.name, &[load.backend]));
            loads.push((load.name, function));
        }
        if let Some(agent) = agent {
            setup = setup.binary(agent);
        }
        let agent = setup.start()?;
        cold.rest(&agent, COLD)?;
        Ok(Self { label, agent, cold, loads, node, _servers: servers })
    }

    /// The labels of a figure of a stage; other figures have all but the last.
    fn stage_labels<'a>(&self, load: &'a str, path: &'a str, stage: &'a str) -> [(&'static str, &'a str); 4] {
        [("agent", self.label), ("load", load), ("path", path), ("stage", stage)]
    }

    /// Cold starts while the load is under way, and how fast it was.
    fn measure_block(&self, load: LoadCase, requests: usize) -> Result<Vec<NamedSample>> {
        let before = load.function.map(|function| self.begin(function)).transpose()?;
        let (mut samples, mut by_queue) = (Vec::new(), 0);
        for _ in 0..requests {
            let reply = self.node.get(self.cold.port)?;
            ensure!(reply.status == 200, "{reply:?}\n{}", self.agent.log());
            let start = newest_start(&self.agent, COLD)?;
            // The connection can be noticed in the accept queue before its SYN's record: as early, but another path.
            if start["trigger"] == "accept" {
                by_queue += 1;
                ensure!(
                    by_queue <= BY_QUEUE_MAX,
                    "{by_queue} starts of a block by the accept queue: {start}"
                );
                self.cold.cool(&self.agent, COLD)?;
                continue;
            }
            ensure!(start["trigger"] == "syn", "{start}");
            for stage in STAGES {
                let seconds = start["stages"][stage].as_f64();
                let seconds = seconds.with_context(|| format!("no {stage} in {start}"))?;
                samples.push((STAGE, Some(stage), "ms", seconds * 1e3));
            }
            samples.push((ANSWER, None, "ms", reply.timings.total.as_secs_f64() * 1e3));
            self.cold.cool(&self.agent, COLD)?;
        }
        if let (Some(function), Some((began, before))) = (load.function, before) {
            let bytes = float(self.moved(function)? - before);
            let rate = bytes / 1e6 / began.elapsed().as_secs_f64();
            samples.push(("relay_load_mb_per_second", None, "MB/s", rate));
            self.function(function)?.cool(&self.agent, function.name)?;
        }
        Ok(samples)
    }

    /// Starts a load, and returns when it was under way, and what it had moved by then.
    fn begin(&self, load: &LoadFunction) -> Result<(Instant, u64)> {
        cli::eventually("the load is under way", LIMIT, || {
            let bytes = self.moved(load)?;
            Ok((bytes >= UNDER_WAY_BYTES).then(|| (Instant::now(), bytes)))
        })
        .with_context(|| self.agent.log())
    }

    /// How many bytes a load has moved. The first question starts it.
    fn moved(&self, load: &LoadFunction) -> Result<u64> {
        let address = self.function(load)?.local();
        let reply = self.node.node.enter(|| client::get(address, "/", LIMIT))??;
        ensure!(reply.status == 200, "{}: {reply:?}\n{}", load.name, self.agent.log());
        Ok(reply.body.parse()?)
    }

    fn function(&self, load: &LoadFunction) -> Result<&TestFunction> {
        let found = self.loads.iter().find(|(name, _)| *name == load.name);
        found.map(|(_, function)| function).with_context(|| format!("no function {}", load.name))
    }
}

impl LoadFunction {
    fn keys(&self) -> String {
        let Self { backend, connections, every_ms, by_socket, .. } = self;
        let socket = if *by_socket { "yes" } else { "no" };
        format!(
            "backend_sockets = {by_socket}\nenv = {{ BACKEND = \"{backend}\", SOCKET = \"{socket}\", \
             CONNECTIONS = \"{connections}\", EVERY_MS = \"{every_ms}\" }}\n"
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}
