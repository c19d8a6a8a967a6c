//! `make demo`: three requests side by side on this machine: warm, cold with Headstart, cold the usual way.
//!
//! A client 50 ms away (round trip) asks the `orders` function, whose PostgreSQL is 5 ms away. All
//! of it is real: kernel hook, containers, database, TCP over delayed links. The usual way is an
//! activator that runs the same container when the request arrives, and the same function
//! connecting and logging in by itself; both use runc, so Docker's own slowness is not counted.

use std::fs;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use headstart_integration_tests::evidence::interrupt::Interrupt;
use headstart_integration_tests::evidence::usual::Usual;
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, STAGES, Site, TOTALS, TestFunction};
use headstart_integration_tests::lab::{self, LabLease, RunningAgent, client, free_port, privilege};
use serde_json::{Value, json};

const ROUND_TRIP: Duration = Duration::from_millis(50);
const DATABASE_ROUND_TRIP: Duration = Duration::from_millis(5);

/// Rounds that count, after one that warms caches.
const ROUNDS: usize = 15;

/// Width of the longest bar, in characters.
const WIDTH: f64 = 60.0;

fn main() -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        eprintln!(
            "The demo makes network namespaces, attaches an XDP program and starts containers: it needs root.\n\
             Run `sudo make demo`; it touches nothing outside namespaces of its own, and cleans up."
        );
        return ExitCode::FAILURE;
    }
    let interrupt = match Interrupt::new() {
        Ok(interrupt) => interrupt,
        Err(error) => {
            eprintln!("demo: signals cannot be received: {error}");
            return ExitCode::FAILURE;
        }
    };
    match demo(&interrupt) {
        Ok(()) => ExitCode::SUCCESS,
        // Ctrl-C reaches the agent too, and whatever was under way then fails.
        Err(_) if interrupt.check().is_err() => {
            eprintln!("\ndemo: interrupted; everything was cleaned up");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(interrupt: &Interrupt) -> Result<()> {
    ensure!(privilege::require_tools(&["ip", "iptables", "runc"]), "run `make install` first");
    let _lease = LabLease::take()?;
    println!("Building the function `orders` (static), if it has changed ...");
    let function = TestFunction::example("orders", "oci")?;
    interrupt.check()?;
    println!(
        "Bringing up a client {ROUND_TRIP:?} away, PostgreSQL {DATABASE_ROUND_TRIP:?} away, and the agent ..."
    );
    let site = Site::new(ROUND_TRIP, DATABASE_ROUND_TRIP)?;
    interrupt.check()?;
    let agent = site.agent(true, &function)?;
    let usual = usual(&site, &function)?;
    let samples = measure(&site, &agent, &function, &usual, interrupt)?;
    let problems = usual.problems();
    ensure!(problems.is_empty(), "the usual way failed, so the comparison is void: {problems:?}");
    let report = report(&samples, &agent)?;
    draw(&report, &samples);
    drop(usual);
    let status = agent.stop()?;
    ensure!(status.success(), "the agent ended with {status}");
    write(&report)
}

/// The same function behind an activator that starts it when the request arrives.
fn usual(site: &Site, function: &TestFunction) -> Result<Usual> {
    let FunctionKind::Oci(rootfs) = &function.kind else { bail!("the demo compares OCI containers") };
    let upstream = free_port()?;
    let (listen, url) = (upstream.to_string(), site.postgres.url());
    let environment =
        [("HEADSTART_LISTEN", listen.as_str()), ("HEADSTART_BACKEND_ORDERS_DB_URL", url.as_str())];
    Usual::start(rootfs, &environment, site.link.host(free_port()?.port()), upstream)
}

/// Times of the client in milliseconds, by round.
#[derive(Default)]
struct DemoSamples {
    warm: Vec<f64>,
    headstart: Vec<f64>,
    usual: Vec<f64>,
}

/// One round after another, the three ways in turn, so that noise meets all of them.
fn measure(
    site: &Site,
    agent: &RunningAgent,
    function: &TestFunction,
    usual: &Usual,
    interrupt: &Interrupt,
) -> Result<DemoSamples> {
    let mut samples = DemoSamples::default();
    for round in 0..=ROUNDS {
        interrupt.check()?;
        if std::io::stderr().is_terminal() {
            eprint!("\rRequests: round {round} of {ROUNDS} ");
        }
        let headstart = answer(site, site.link.host(function.port))?;
        let warm = answer(site, site.link.host(function.port))?;
        function.cool(agent, "orders")?;
        let cold = answer(site, usual.address())?;
        usual.stop()?;
        if round > 0 {
            samples.headstart.push(headstart);
            samples.warm.push(warm);
            samples.usual.push(cold);
        }
    }
    eprintln!();
    Ok(samples)
}

/// Milliseconds from the client's connect to the whole answer.
fn answer(site: &Site, target: std::net::SocketAddr) -> Result<f64> {
    let reply = site.client.enter(|| client::get(target, "/", LIMIT))??;
    ensure!(
        reply.status == 200 && reply.body.contains("\"answer\":42"),
        "{target} answered {} {}",
        reply.status,
        reply.body
    );
    Ok(reply.timings.total.as_secs_f64() * 1e3)
}

fn report(samples: &DemoSamples, agent: &RunningAgent) -> Result<Value> {
    let starts = agent.starts()?;
    let starts = starts.as_array().context("the agent's timelines are a list")?;
    let mut stages = serde_json::Map::new();
    for stage in STAGES.into_iter().chain(TOTALS) {
        let seconds = starts.iter().skip(1).filter_map(|start| start["stages"][stage].as_f64());
        stages.insert(stage.to_owned(), round(median(seconds.map(|seconds| seconds * 1e3).collect())));
    }
    let milliseconds = |duration: Duration| json!(duration.as_millis());
    Ok(json!({
        "rtt_ms": milliseconds(ROUND_TRIP),
        "db_rtt_ms": milliseconds(DATABASE_ROUND_TRIP),
        "runtime": "oci",
        "rounds": samples.warm.len(),
        "warm_ms": round(median(samples.warm.clone())),
        "cold_headstart_ms": round(median(samples.headstart.clone())),
        "cold_usual_ms": round(median(samples.usual.clone())),
        "stages_ms": stages,
    }))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}

/// To the microsecond; more would only look precise.
fn round(milliseconds: f64) -> Value {
    json!((milliseconds * 1e3).round() / 1e3)
}

fn draw(report: &Value, samples: &DemoSamples) {
    let ms = |key: &str| report[key].as_f64().unwrap_or_default();
    let scale = WIDTH / ms("cold_usual_ms").max(ms("cold_headstart_ms")).max(1.0);
    println!(
        "\nFirst answer, seen by a client {} ms away (median of {}, fastest to slowest):\n",
        report["rtt_ms"], report["rounds"]
    );
    for (name, key, values) in [
        ("warm", "warm_ms", &samples.warm),
        ("cold with Headstart", "cold_headstart_ms", &samples.headstart),
        ("cold the usual way", "cold_usual_ms", &samples.usual),
    ] {
        let (low, high) =
            values.iter().fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(*value), high.max(*value)));
        println!("  {name:<20} {} {:.1} ms ({low:.1} to {high:.1})", bar(0.0, ms(key) * scale), ms(key));
    }
    println!("\nInside the cold start with Headstart, from the moment its SYN reaches this host:\n");
    let stages = &report["stages_ms"];
    let stage = |name: &str| stages[name].as_f64().unwrap_or_default();
    let scale = WIDTH / STAGES.into_iter().map(stage).sum::<f64>().max(1.0);
    let mut at = 0.0;
    for name in STAGES {
        let took = stage(name);
        println!("  {name:<20} {:<62} {took:>8.3} ms", bar(at * scale, took * scale));
        at += took;
    }
    println!(
        "\n  ready after {:.1} ms, of which the client waited for {:.1} ms; ready_to_accept is the function\n  \
         waiting for the rest of the handshake and the request, first_response contains the query.\n",
        stage("total"),
        stage("exposed")
    );
    println!(
        "  Headstart adds {:.1} ms to a warm answer; the usual way adds {:.1} ms.",
        ms("cold_headstart_ms") - ms("warm_ms"),
        ms("cold_usual_ms") - ms("warm_ms")
    );
}

/// A bar from `from`, `length` characters long, at least a sliver.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most WIDTH, never negative")]
fn bar(from: f64, length: f64) -> String {
    let (from, whole) = (from.max(0.0) as usize, length.max(0.0).round() as usize);
    let drawn = if whole == 0 { "▏".to_owned() } else { "█".repeat(whole) };
    format!("{}{drawn}", " ".repeat(from))
}

fn write(report: &Value) -> Result<()> {
    let directory = lab::target_dir().join("demo");
    fs::create_dir_all(&directory)?;
    let file = directory.join("report.json");
    fs::write(&file, serde_json::to_string_pretty(report)? + "\n")?;
    println!("  The figures are in {}", file.strip_prefix(lab::workspace()).unwrap_or(&file).display());
    Ok(())
}
