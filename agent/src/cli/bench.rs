//! `headstart bench`: how long clients of one function wait, cold and warm, and where the time goes.

mod report;

use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use self::report::Measured;
use super::arguments::AgentArgs;
use super::output;
use crate::api::{Client, FunctionStatus, FunctionSummary, Operation, StartOutcome, Timeline, exchange};

/// The pause between two looks at a function that is about to be cold.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long it may take to be cold, and how long an answer may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Exit code of a program that SIGINT has ended, as a shell gives it.
const INTERRUPTED: u8 = 130;

/// What is asked for, and how often.
#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    /// The function. It must speak HTTP, and it really answers each GET.
    name: String,
    #[command(flatten)]
    agent: AgentArgs,
    /// The path to GET.
    #[arg(long, value_name = "PATH", default_value = "/", value_parser = path)]
    path: String,
    /// Address of the function. Default: its port on this host.
    #[arg(long, value_name = "ADDRESS")]
    to: Option<SocketAddr>,
    /// Number of cold requests, each followed by a warm one; one more comes first and does not count.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    requests: u32,
    /// Stop instances also while clients are connected to them: their requests may be cut off.
    #[arg(long)]
    force: bool,
    /// Print JSON in the format of `make bench` instead of text.
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
/// When no agent answers, the function cannot be measured, or all its cold requests failed.
pub(super) fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (interrupt, interrupted) = mpsc::channel();
    let json = args.json;
    let measured = runtime.block_on(async {
        let mut work = tokio::task::spawn_blocking(move || {
            let BenchArgs { agent, .. } = &args;
            measure(&agent.client(), &args, &interrupted)
        });
        loop {
            tokio::select! {
                measured = &mut work => return measured?,
                signal = tokio::signal::ctrl_c() => {
                    signal?;
                    // It ends between two steps. A second signal may find its receiver gone.
                    let _ = interrupt.send(());
                }
            }
        }
    })?;
    output::show(&if json {
        serde_json::to_string_pretty(&measured.json()?)? + "\n"
    } else {
        measured.text()
    })?;
    ensure!(!measured.cold.ms.is_empty() || measured.partial, "no cold request was answered");
    Ok(if measured.partial { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn measure(client: &Client, args: &BenchArgs, interrupted: &mpsc::Receiver<()>) -> anyhow::Result<Measured> {
    let function = client.function(&args.name)?.into_served()?;
    check(&function, args.force)?;
    let to = address(&function, args.to);
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
    let mut measured = Measured::of(args.name.clone());
    let began = Instant::now();
    for round in 0..=args.requests {
        tell(round, args.requests, began.elapsed());
        let rested = wait_cold(client, &function, interrupted)?;
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
            newest(client, &args.name)?.iter().for_each(|start| measured.add_start(start));
        }
    }
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    Ok(measured)
}

/// Whether it may be stopped over and over.
fn check(function: &FunctionStatus, force: bool) -> anyhow::Result<()> {
    let name = &function.name;
    match function.state {
        FunctionSummary::Off => bail!("{name} is off: its max_instances is 0"),
        FunctionSummary::Closed => bail!("{name} is being removed"),
        FunctionSummary::Failed => bail!(
            "starts of {name} fail: {}",
            function.last_error.as_deref().unwrap_or("headstart explain says why")
        ),
        _ => {}
    }
    let kept = function.min_ready.max(function.standby);
    ensure!(kept == 0, "{name} is never cold: {kept} instances are kept by its min_ready or standby");
    let open: u32 = function.running.iter().filter_map(|instance| instance.open).sum();
    ensure!(
        force || (open == 0 && function.queued == 0),
        "{name} is in use: {open} connections are open and {} wait. Measure when it is not, or say --force: their \
         requests may be cut off",
        function.queued
    );
    Ok(())
}

/// Where it is asked: on this host, if it listens on every address.
fn address(function: &FunctionStatus, to: Option<SocketAddr>) -> SocketAddr {
    if let Some(to) = to {
        return to;
    }
    let mut listen = function.listen;
    if listen.ip().is_unspecified() {
        listen.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    listen
}

/// Stops its instances and waits until none is left and its containers are parked again; false when interrupted.
fn wait_cold(
    client: &Client,
    before: &FunctionStatus,
    interrupted: &mpsc::Receiver<()>,
) -> anyhow::Result<bool> {
    let name = &before.name;
    let deadline = Instant::now() + LIMIT;
    let mut asked = false;
    loop {
        let function = client.function(name)?.into_served()?;
        if function.state == FunctionSummary::Cold
            && function.instances == 0
            && function.prepared >= before.prepared
        {
            return Ok(true);
        }
        if !asked && function.instances > 0 {
            client.operate(name, Operation::Stop)?;
            asked = true;
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
    let reply = exchange(&to.to_string(), "GET", path, LIMIT)?;
    let took = began.elapsed();
    ensure!(reply.status < 500, "it answers {}", reply.status);
    Ok(took.as_secs_f64() * 1e3)
}

/// The newest start of it, once it is over.
fn newest(client: &Client, name: &str) -> anyhow::Result<Option<Timeline>> {
    Ok(client
        .starts()?
        .into_iter()
        .rfind(|start| start.function == name && start.outcome == StartOutcome::Ready))
}

/// How far it is, on a terminal.
fn tell(round: u32, rounds: u32, elapsed: Duration) {
    if io::stderr().is_terminal() {
        let left = if round == 0 { Duration::ZERO } else { elapsed / round * (rounds + 1 - round) };
        eprint!("\r\x1b[K{round} of {rounds}, {} s left ", left.as_secs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Function, example};

    fn function(text: &str) -> Function {
        example(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn what_would_be_harmed_or_cannot_be_cold_is_refused() {
        let instance = r#"{"running":[{"name":"a","state":"ready","reason":"x","since_seconds":1,"open":2,"accepted":5}]}"#;
        for (text, said) in [
            (r#"{"state":"off"}"#, "max_instances is 0"),
            (r#"{"state":"failed","last_error":"no such file"}"#, "fail: no such file"),
            (r#"{"min_ready":2}"#, "never cold"),
            (r#"{"queued":3}"#, "3 wait"),
            (instance, "2 connections are open"),
        ] {
            let error = check(&function(text).into_served().unwrap(), false).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        for text in ["{}", r#"{"state":"frozen"}"#] {
            check(&function(text).into_served().unwrap(), false).unwrap();
        }
        check(&function(instance).into_served().unwrap(), true).unwrap();
    }

    #[test]
    fn it_is_asked_on_this_host_unless_told_otherwise() {
        let at = |text: &str, to: Option<&str>| {
            let function = function(text).into_served().unwrap();
            address(&function, to.map(|to| to.parse().unwrap())).to_string()
        };
        assert_eq!(at("{}", None), "127.0.0.1:8081");
        assert_eq!(at(r#"{"listen":"10.0.0.7:80"}"#, None), "10.0.0.7:80");
        assert_eq!(at("{}", Some("10.0.0.8:81")), "10.0.0.8:81");
        assert!(path("/a?b=c").is_ok() && path("a").is_err() && path("/a b").is_err());
    }
}
