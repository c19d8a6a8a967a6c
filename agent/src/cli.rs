//! `cli`: the command line, a file for each command.
//!
//! The commands that ask a running agent (status, explain, bench, wake, freeze, stop, reload) know what [`crate::api`]
//! says and nothing else of the agent.

mod run;
mod try_it;

mod check;
mod doctor;
mod image;
mod uninstall;

mod bench;
mod explain;
mod front;
mod operate;
mod reload;
mod status;

mod knock;
mod tag;

mod arguments;
mod output;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::arguments::{ConfigArgs, FunctionArgs};
use crate::api::Operation;
use crate::client::{KnockArgs, TagArgs};

/// Hides the cold start of serverless functions: starts them at the client's
/// SYN, holding their listening socket and logged-in backend connections.
#[derive(Parser)]
#[command(
    name = "headstart",
    version,
    after_help = "Exit codes: 0 ok, 1 failed, 2 bad usage or configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the configured functions until SIGTERM or Ctrl-C.
    #[command(after_help = "Example: headstart run --config /etc/headstart/headstart.toml")]
    Run(run::RunArgs),
    /// Serve one program as a function, without a configuration file, until Ctrl-C.
    ///
    /// The program is any server that listens on a port. It starts when a client connects, is frozen when it is idle, and
    /// knows nothing of that. Prints the configuration that does the same for `headstart run`. Needs root.
    #[command(after_help = TRY_HELP)]
    Try(try_it::TryArgs),
    /// Remove what an agent left: pinned eBPF programs and maps, containers, its state directory.
    #[command(
        after_help = "Example: systemctl stop headstart && headstart uninstall --config headstart.toml"
    )]
    Uninstall(ConfigArgs),
    /// Pull, list and remove images of functions with runtime = "oci".
    ///
    /// The agent itself pulls nothing: an image must be in the store before a function can have it.
    #[command(after_help = IMAGE_HELP)]
    Image(image::ImageArgs),
    /// Check a configuration and list every problem with file, line and key.
    #[command(after_help = "Example: headstart check --config headstart.toml && systemctl restart headstart")]
    Check(ConfigArgs),
    /// Show every function of the running agent.
    #[command(after_help = "Example: headstart status --admin 127.0.0.1:9464")]
    Status(status::StatusArgs),
    /// Show every front of the running agent, with its certificates.
    #[command(after_help = "Example: headstart front")]
    Front(front::FrontArgs),
    /// Explain why a function is in its state, what the next SYN would do, and how its last start went.
    #[command(after_help = "Example: headstart explain orders")]
    Explain(explain::ExplainArgs),
    /// Measure a function: how long its clients wait, cold and warm, and where the time goes.
    ///
    /// Stops the function's instances before each cold request: do not use it on a function that is in use.
    #[command(after_help = BENCH_HELP)]
    Bench(bench::BenchArgs),
    /// Start a function as if a client had come.
    #[command(after_help = "Example: headstart wake orders")]
    Wake(FunctionArgs),
    /// Freeze the idle instances of a function; the next client thaws one.
    #[command(after_help = "Example: headstart freeze orders")]
    Freeze(FunctionArgs),
    /// Stop the running instances of a function; the next client starts it again.
    #[command(after_help = "Example: headstart stop orders")]
    Stop(FunctionArgs),
    /// Make the running agent read its configuration again. Functions that have not changed are served meanwhile.
    ///
    /// Functions and backends are added, changed and removed. A change in [agent] or [syn] needs a restart. If any part
    /// of the new configuration cannot be set up, nothing changes.
    #[command(after_help = "Example: headstart check --config headstart.toml && headstart reload")]
    Reload(reload::ReloadArgs),
    /// Show what this host can do, and what each missing part costs.
    #[command(after_help = "Example: headstart doctor --config /etc/headstart/headstart.toml")]
    Doctor(doctor::DoctorArgs),
    /// Name a function in the SYNs that unmodified programs send.
    ///
    /// For the machine that calls functions; it needs no agent there. The name is a TCP option of 16 bytes. A
    /// SYN without room for it is sent as it is, and so is every SYN after this program has ended.
    /// Needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
    #[command(after_help = TAG_HELP)]
    Tag(TagArgs),
    /// Ask a node for a function, with one UDP packet, before a client connects.
    ///
    /// Needs no privilege. Exit code 0 means that the packet was sent: there is no confirmation, and it may be lost.
    /// Knocking again does no harm: a function that runs is not started twice.
    #[command(
        after_help = "Example: headstart knock --to node1:9465 --function 7 --key-file ~/.config/headstart/keys"
    )]
    Knock(KnockArgs),
}

const TRY_HELP: &str = "\
Examples:
  headstart try -- node server.js                  (a server that reads PORT)
  headstart try -- python3 -m http.server 8080
  headstart try --port 3000 -- ./server            (it listens on 3000, clients connect to 8080)
  headstart try --lambda app.handler -- python3 -m awslambdaric app.handler

The program runs in the current directory, as the user `nobody`, in a network of its own.";

const IMAGE_HELP: &str = "\
Examples:
  headstart image pull nginx:1.29 && headstart reload
  headstart image pull registry.example/app@sha256:...
  headstart image pull oci:./build/image
  headstart image gc";

const BENCH_HELP: &str = "\
Example: headstart bench orders --path /orders --requests 50

Over loopback no interface sees the SYN: starts are by `accept`, and nothing is hidden behind a handshake. `/metrics`
shows what a client far away waits for. Exit codes: 0 ok, 1 failed, 2 bad usage, 130 interrupted.";

const TAG_HELP: &str = "\
Examples:
  headstart tag --function 7 --to node1:8081 --key-file /etc/headstart/keys -- curl http://node1:8081/
  headstart tag --function 7 --to node1:8081 --cgroup /sys/fs/cgroup/user.slice

With a COMMAND, the exit code is the command's: 128 + N when signal N killed it, 127 when there is none of that name,
and 126 when it cannot be executed. Without: 0 after SIGTERM or Ctrl-C, 1 failed, 2 bad usage or key file.";

/// Runs the command that the arguments of the process name.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Try(args) => try_it::run(&args),
        Command::Uninstall(args) => uninstall::run(&args),
        Command::Image(args) => image::run(args),
        Command::Check(args) => Ok(check::run(&args)),
        Command::Status(args) => status::run(&args),
        Command::Front(args) => front::run(&args),
        Command::Explain(args) => explain::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Wake(args) => operate::run(args, Operation::Wake),
        Command::Freeze(args) => operate::run(args, Operation::Freeze),
        Command::Stop(args) => operate::run(args, Operation::Stop),
        Command::Reload(args) => reload::run(&args),
        Command::Doctor(args) => Ok(doctor::run(&args)),
        Command::Tag(args) => Ok(tag::run(&args)),
        Command::Knock(args) => Ok(knock::run(&args)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("headstart: {error:#}");
        ExitCode::FAILURE
    })
}
