//! `headstart bench`: how long clients of one function wait, cold and warm, and where the time goes.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use headstart_statistics::{mean, median_interval, percentile};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::event::Trigger;
use crate::measure::{Stages, StartOutcome};
use crate::status::{self, Function, Reply, State};

/// The pause between two looks at a function that is to come to rest.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long it may take to come to rest, and how long an answer may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Width of the longest bar, in characters.
const WIDTH: f64 = 40.0;
/// As programs end that SIGINT has ended, to a shell.
const INTERRUPTED: u8 = 130;

/// What is asked for, and how often.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// The function. It must speak HTTP; what it does for a GET is done.
    name: String,
    /// What is asked for.
    #[arg(long, value_name = "PATH", default_value = "/", value_parser = path)]
    path: String,
    /// Where the function is reached. Default: its port on this host.
    #[arg(long, value_name = "ADDRESS")]
    to: Option<SocketAddr>,
    /// Cold requests, each with a warm one after it; one more comes first and does not count.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    requests: u32,
    /// Stops instances also while clients are connected to them: their requests may be cut off.
    #[arg(long)]
    force: bool,
    /// The format of the report of `make bench` instead of text.
    #[arg(long)]
    json: bool,
}

fn path(text: &str) -> Result<String, String> {
    let ok = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    if ok { Ok(text.to_owned()) } else { Err("a path begins with / and has no blanks".to_owned()) }
}

/// Measures, and prints what it has, also when it is interrupted.
///
/// # Errors
/// When no agent answers at `admin`, the function cannot be benched, or all its cold requests failed.
pub fn run(admin: &str, args: BenchArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (interrupt, interrupted) = mpsc::channel();
    let json = args.json;
    let admin = admin.to_owned();
    let measured = runtime.block_on(async {
        let mut work = tokio::task::spawn_blocking(move || measure(&admin, &args, &interrupted));
        loop {
            tokio::select! {
                measured = &mut work => return measured?,
                signal = tokio::signal::ctrl_c() => {
                    signal?;
                    // It ends between two steps; once it has, nobody listens.
                    let _ = interrupt.send(());
                }
            }
        }
    })?;
    status::show(&if json {
        serde_json::to_string_pretty(&measured.json()?)? + "\n"
    } else {
        measured.text()
    })?;
    ensure!(!measured.cold.ms.is_empty() || measured.partial, "no cold request was answered");
    Ok(if measured.partial { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// What was measured.
#[derive(Debug, Default)]
struct Measured {
    name: String,
    cold: Series,
    warm: Series,
    /// In milliseconds, of each start, by stage.
    stages: Vec<(&'static str, Vec<f64>)>,
    triggers: Vec<(Trigger, u32)>,
    /// It was interrupted.
    partial: bool,
}

/// Answers, and what went wrong.
#[derive(Debug, Default)]
struct Series {
    ms: Vec<f64>,
    failed: u32,
    error: Option<String>,
}

impl Series {
    fn add(&mut self, answer: anyhow::Result<f64>) {
        match answer {
            Ok(ms) => self.ms.push(ms),
            Err(error) => {
                self.failed += 1;
                self.error = Some(format!("{error:#}"));
            }
        }
    }

    fn sorted(&self) -> Vec<f64> {
        sorted(&self.ms)
    }
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// A start, as far as the API tells of it.
#[derive(Debug, Deserialize)]
struct Start {
    function: String,
    instance: String,
    trigger: Trigger,
    outcome: StartOutcome,
    stages: Stages,
}

fn measure(admin: &str, args: &BenchArgs, interrupted: &mpsc::Receiver<()>) -> anyhow::Result<Measured> {
    let function = status::find(admin, &args.name)?;
    check(&function, args.force)?;
    let to = address(&function, args.to)?;
    if !args.json {
        println!(
            "{}: its instances are stopped {} times, and GET {} is asked for at {to}.",
            args.name,
            args.requests + 1,
            args.path
        );
        if to.ip().is_loopback() {
            println!(
                "Over loopback no interface sees the SYN: starts are by `accept`, unless the socket lookup is on."
            );
        }
    }
    let mut measured = Measured { name: args.name.clone(), ..Measured::default() };
    let began = Instant::now();
    for round in 0..=args.requests {
        tell(round, args.requests, began.elapsed());
        let rested = rest(admin, &function, interrupted)?;
        if !rested {
            measured.partial = true;
            break;
        }
        let cold = get(to, &args.path);
        let warm = get(to, &args.path);
        // The first warms caches.
        if round == 0 {
            continue;
        }
        let answered = cold.is_ok();
        measured.cold.add(cold);
        measured.warm.add(warm);
        if answered {
            measured.take(newest(admin, &args.name)?);
        }
    }
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    Ok(measured)
}

/// Whether it may be stopped over and over.
fn check(function: &Function, force: bool) -> anyhow::Result<()> {
    let name = &function.name;
    match function.state {
        State::Unavailable => bail!(
            "{name} is configured and not served: {}",
            function.reason.as_deref().unwrap_or("the agent's log says why")
        ),
        State::Off => bail!("{name} is off: its max_instances is 0"),
        State::Closed => bail!("{name} is being removed"),
        State::Failed => bail!(
            "starts of {name} fail: {}",
            function.last_error.as_deref().unwrap_or("headstart explain says why")
        ),
        _ => {}
    }
    ensure!(function.min_ready == 0, "{name} is never cold: its min_ready is {}", function.min_ready);
    let open: u32 = function.running.iter().filter_map(|instance| instance.open).sum();
    ensure!(
        force || (open == 0 && function.queued == 0),
        "{name} is in use: {open} connections are open and {} wait. Measure when nobody is, or say --force: their \
         requests may be cut off",
        function.queued
    );
    Ok(())
}

/// Where it is asked: on this host, if it listens on every address.
fn address(function: &Function, to: Option<SocketAddr>) -> anyhow::Result<SocketAddr> {
    if let Some(to) = to {
        return Ok(to);
    }
    let listen = function.listen.as_deref().context("it does not listen: say --to")?;
    let mut listen: SocketAddr = listen.parse().with_context(|| format!("{listen:?}: say --to"))?;
    if listen.ip().is_unspecified() {
        listen.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    Ok(listen)
}

/// Stops its instances and waits until none is left and its containers are parked again; false when interrupted.
fn rest(admin: &str, before: &Function, interrupted: &mpsc::Receiver<()>) -> anyhow::Result<bool> {
    let name = &before.name;
    let deadline = Instant::now() + LIMIT;
    let mut asked = false;
    loop {
        let function = status::find(admin, name)?;
        if function.state == State::Cold && function.instances == 0 && function.prepared >= before.prepared {
            return Ok(true);
        }
        if !asked && function.instances > 0 {
            match status::request(admin, "POST", &format!("/api/v1/functions/{name}/stop"))? {
                Reply { status: 202, .. } => asked = true,
                Reply { status, body } => bail!("the agent does not stop {name} ({status}): {}", body.trim()),
            }
        }
        let state = function.state.as_str();
        ensure!(
            Instant::now() < deadline,
            "{name} does not come to rest: it is {state} after {LIMIT:?}, with {} of {} containers parked",
            function.prepared,
            before.prepared
        );
        match interrupted.recv_timeout(LOOK_AGAIN) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(false),
        }
    }
}

/// Milliseconds from the connect to the whole answer. What is lost is not asked for again.
fn get(to: SocketAddr, path: &str) -> anyhow::Result<f64> {
    let began = Instant::now();
    let reply = status::exchange(&to.to_string(), "GET", path, LIMIT)?;
    let took = began.elapsed();
    ensure!(reply.status < 500, "it answers {}", reply.status);
    Ok(took.as_secs_f64() * 1e3)
}

/// The newest start of it, once it is over.
fn newest(admin: &str, name: &str) -> anyhow::Result<Option<Start>> {
    let starts: Vec<Start> = status::get_json(admin, "/api/v1/starts")?;
    Ok(starts.into_iter().rfind(|start| start.function == name && start.outcome == StartOutcome::Ready))
}

/// How far it is, on a terminal.
fn tell(round: u32, rounds: u32, elapsed: Duration) {
    if io::stderr().is_terminal() {
        let left = if round == 0 { Duration::ZERO } else { elapsed / round * (rounds + 1 - round) };
        eprint!("\r\x1b[K{round} of {rounds}, {} s left ", left.as_secs());
    }
}

impl Measured {
    fn take(&mut self, start: Option<Start>) {
        let Some(start) = start else { return };
        debug_assert!(!start.instance.is_empty(), "a start has an instance");
        match self.triggers.iter_mut().find(|(trigger, _)| *trigger == start.trigger) {
            Some((_, count)) => *count += 1,
            None => self.triggers.push((start.trigger, 1)),
        }
        for (name, seconds) in start.stages.named() {
            let Some(seconds) = seconds else { continue };
            match self.stages.iter_mut().find(|(stage, _)| *stage == name) {
                Some((_, samples)) => samples.push(seconds * 1e3),
                None => self.stages.push((name, vec![seconds * 1e3])),
            }
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if self.partial {
            text.push_str("PARTIAL: it was interrupted\n");
        }
        text.push_str("             median   [95 % interval]      p90      p99    n  failed\n");
        for (name, series) in [("cold", &self.cold), ("warm", &self.warm)] {
            let sorted = series.sorted();
            let (low, high) = median_interval(&sorted);
            let [p50, p90, p99] = [50.0, 90.0, 99.0].map(|percent| percentile(&sorted, percent));
            let interval = format!("[{low:.2}, {high:.2}]");
            let _ = writeln!(
                text,
                "{name:<8} {p50:>7.2} ms {interval:>17} {p90:>8.2} {p99:>8.2} {:>4} {:>7}",
                sorted.len(),
                series.failed
            );
        }
        let median = |series: &Series| percentile(&series.sorted(), 50.0);
        let _ = writeln!(text, "A cold start adds {:.2} ms.", median(&self.cold) - median(&self.warm));
        let triggers: Vec<_> =
            self.triggers.iter().map(|(trigger, count)| format!("{} {count}", trigger.as_str())).collect();
        let _ = writeln!(text, "Started by: {}.", triggers.join(", "));
        let medians: Vec<_> =
            self.stages.iter().map(|(name, samples)| (name, percentile(&sorted(samples), 50.0))).collect();
        let all: f64 = medians.iter().map(|(_, ms)| ms).sum();
        for (name, ms) in medians {
            let share = ms / all.max(f64::MIN_POSITIVE);
            let _ = writeln!(text, "  {name:<18} {ms:>8.3} ms {:>3.0} % {}", share * 100.0, bar(share));
        }
        for (name, series) in [("cold", &self.cold), ("warm", &self.warm)] {
            if let Some(error) = &series.error {
                let _ = writeln!(text, "{} {name} requests failed, the last one: {error}", series.failed);
            }
        }
        text
    }

    fn json(&self) -> anyhow::Result<Value> {
        let function = [("function", self.name.as_str())];
        let mut figures = Vec::new();
        for (name, series) in [("bench_cold_ms", &self.cold), ("bench_warm_ms", &self.warm)] {
            figures.extend(figure(name, &function, &series.ms));
        }
        for (stage, samples) in &self.stages {
            figures.extend(figure("bench_stage_ms", &[function[0], ("stage", stage)], samples));
        }
        let kernel = nix::sys::utsname::uname()?;
        let cpus = std::thread::available_parallelism()?;
        Ok(json!({
            "figures": figures,
            "failed": { "cold": self.cold.failed, "warm": self.warm.failed },
            "partial": self.partial,
            "machine": {
                "kernel": format!("{} {}", kernel.sysname().display(), kernel.release().display()),
                "architecture": kernel.machine().to_string_lossy(),
                "cpus": cpus,
                "clock": "CLOCK_MONOTONIC",
            },
        }))
    }
}

/// As in the report of `make bench`; nothing without samples.
fn figure(name: &str, labels: &[(&str, &str)], samples: &[f64]) -> Option<Value> {
    let sorted = sorted(samples);
    let (min, max) = (sorted.first()?, sorted.last()?);
    let (low, high) = median_interval(&sorted);
    let labels: serde_json::Map<_, _> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let [p50, p90, p99] = [50.0, 90.0, 99.0].map(|percent| percentile(&sorted, percent));
    Some(json!({
        "name": name, "labels": labels, "unit": "ms", "n": sorted.len(), "p50": p50, "p50_low": low, "p50_high": high,
        "p90": p90, "p99": p99, "min": min, "max": max, "mean": mean(&sorted),
    }))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most WIDTH, never negative")]
fn bar(share: f64) -> String {
    "█".repeat((share.clamp(0.0, 1.0) * WIDTH).round() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(text: &str) -> Function {
        let mut function = json!({ "name": "orders", "state": "cold", "listen": "0.0.0.0:8081" });
        let more: Value = serde_json::from_str(text).unwrap();
        function.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(function).unwrap()
    }

    #[test]
    fn what_would_be_harmed_or_cannot_be_cold_is_refused() {
        let instance = r#"{"running":[{"name":"a","state":"ready","reason":"x","since_seconds":1,"open":2,"accepted":5}]}"#;
        for (text, said) in [
            (r#"{"state":"off"}"#, "max_instances is 0"),
            (r#"{"state":"unavailable","reason":"no port"}"#, "not served: no port"),
            (r#"{"state":"failed","last_error":"no such file"}"#, "fail: no such file"),
            (r#"{"min_ready":2}"#, "never cold"),
            (r#"{"queued":3}"#, "3 wait"),
            (instance, "2 connections are open"),
        ] {
            let error = check(&function(text), false).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        for text in ["{}", r#"{"state":"frozen"}"#] {
            check(&function(text), false).unwrap();
        }
        check(&function(instance), true).unwrap();
    }

    #[test]
    fn it_is_asked_on_this_host_unless_told_otherwise() {
        let at = |text: &str, to: Option<&str>| {
            address(&function(text), to.map(|to| to.parse().unwrap())).map(|address| address.to_string())
        };
        assert_eq!(at("{}", None).unwrap(), "127.0.0.1:8081");
        assert_eq!(at(r#"{"listen":"10.0.0.7:80"}"#, None).unwrap(), "10.0.0.7:80");
        assert_eq!(at("{}", Some("10.0.0.8:81")).unwrap(), "10.0.0.8:81");
        assert!(at(r#"{"listen":null}"#, None).unwrap_err().to_string().contains("--to"));
        assert!(path("/a?b=c").is_ok() && path("a").is_err() && path("/a b").is_err());
    }

    #[test]
    fn what_was_measured_is_told() {
        let mut measured = Measured { name: "orders".into(), ..Measured::default() };
        for ms in [3.0, 1.0, 2.0] {
            measured.cold.add(Ok(ms + 10.0));
            measured.warm.add(Ok(ms));
        }
        measured.cold.add(Err(anyhow::anyhow!("it answers 502")));
        let stages = Stages { init: Some(0.006), first_response: Some(0.002), ..Stages::default() };
        let start = Start {
            function: "orders".into(),
            instance: "orders-1".into(),
            trigger: Trigger::Accept,
            outcome: StartOutcome::Ready,
            stages,
        };
        measured.take(Some(start));
        let text = measured.text();
        for said in ["cold       12.00 ms", "adds 10.00 ms", "Started by: accept 1.", "75 %", "answers 502"] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let json = measured.json().unwrap();
        assert_eq!(json["figures"][0]["name"], "bench_cold_ms");
        assert_eq!(json["figures"][0]["p50"], 12.0);
        assert_eq!(json["figures"][2]["labels"]["stage"], "init");
        assert_eq!(json["failed"]["cold"], 1);
        measured.partial = true;
        assert!(measured.text().starts_with("PARTIAL"));
    }
}
