//! `headstart`: the command line of the agent.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use headstart_agent::admin::{self, Admin};
use headstart_agent::data::DataThreads;
use headstart_agent::manager::ServiceManager;
use headstart_agent::measure::{self, StartHistory};
use headstart_agent::node::{Node, NodeHandle, Operation};
use headstart_agent::reload::{self, Reload};
use headstart_agent::syn::{Kernel, Reader, Sensing, Watching};
use headstart_agent::{adopt, bench, client, doctor, explain, operate, privilege, setup, start, status, syn};
use headstart_config::{Agent, Config, LogFormat};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing_subscriber::EnvFilter;

/// Hides the cold start of serverless functions: starts them at the client's
/// SYN, holding their listening socket and logged-in backend connections.
#[derive(Parser)]
#[command(
    name = "headstart",
    version,
    after_help = "Exit codes: 0 ok, 1 failed, 2 bad usage or configuration."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the configured functions until SIGTERM or Ctrl-C.
    #[command(after_help = "Example: headstart run --config /etc/headstart/headstart.toml")]
    Run {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Leaves nothing in the kernel when the agent ends, however it ends: functions that clients ask for
        /// before the next agent runs start when it does, one round trip later.
        #[arg(long)]
        unpin: bool,
    },
    /// Removes what an agent left: pinned eBPF programs and maps, containers, its state directory.
    #[command(
        after_help = "Example: systemctl stop headstart && headstart uninstall --config headstart.toml"
    )]
    Uninstall {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Checks a configuration and lists every problem with file, line and key.
    #[command(after_help = "Example: headstart check --config headstart.toml && systemctl restart headstart")]
    Check {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Shows every function of the running agent.
    #[command(after_help = "Example: headstart status --admin 127.0.0.1:9464")]
    Status {
        #[command(flatten)]
        agent: AgentArg,
        /// The API's JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Again every second until Ctrl-C; with --json, one document per line.
        #[arg(long)]
        watch: bool,
    },
    /// Tells why a function is in its state, what the next SYN would do, and how its last start went.
    #[command(after_help = "Example: headstart explain orders")]
    Explain {
        /// The function.
        name: String,
        #[command(flatten)]
        agent: AgentArg,
        /// The same facts as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measures a function: how long its clients wait, cold and warm, and where the time goes.
    ///
    /// Stops its instances before each cold request, so it is not for a function that is in use.
    #[command(after_help = BENCH_HELP)]
    Bench {
        #[command(flatten)]
        args: bench::BenchArgs,
        #[command(flatten)]
        agent: AgentArg,
    },
    /// Starts a function as if a client had come.
    #[command(after_help = "Example: headstart wake orders")]
    Wake {
        /// The function.
        name: String,
        #[command(flatten)]
        agent: AgentArg,
    },
    /// Freezes the idle instances of a function; the next client thaws one.
    #[command(after_help = "Example: headstart freeze orders")]
    Freeze {
        /// The function.
        name: String,
        #[command(flatten)]
        agent: AgentArg,
    },
    /// Stops the running instances of a function; the next client starts it again.
    #[command(after_help = "Example: headstart stop orders")]
    Stop {
        /// The function.
        name: String,
        #[command(flatten)]
        agent: AgentArg,
    },
    /// Has the agent read its configuration again: functions are added, changed and removed while the others serve.
    ///
    /// What is changed in [agent] or [syn] needs a restart. A configuration that cannot be had changes nothing.
    #[command(after_help = "Example: headstart check --config headstart.toml && headstart reload")]
    Reload {
        #[command(flatten)]
        agent: AgentArg,
    },
    /// Tells what this host can do, and what each lack costs.
    #[command(after_help = "Example: headstart doctor --config /etc/headstart/headstart.toml")]
    Doctor {
        /// A configuration whose key file is looked at too.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Has unmodified programs name a function in the SYNs they send.
    ///
    /// For the machine that calls functions; it needs no agent there. The name is a TCP option of 16 bytes; a
    /// SYN without room for it goes out as it is, and so does every SYN once this program has ended.
    /// Needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
    #[command(after_help = TAG_HELP)]
    Tag(client::TagArgs),
    /// Asks a node for a function, with one UDP packet, before anybody connects.
    ///
    /// Needs no privilege. Exit code 0 says that the packet was sent: nobody confirms it, and it may be lost.
    /// To knock again is harmless: a function that runs is not started twice.
    #[command(
        after_help = "Example: headstart knock --to node1:9465 --function 7 --key-file ~/.config/headstart/keys"
    )]
    Knock(client::KnockArgs),
}

#[derive(Args)]
struct AgentArg {
    /// The `admin` address of the agent.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    admin: String,
}

const BENCH_HELP: &str = "\
Example: headstart bench orders --path /orders --requests 50

Over loopback no interface sees the SYN: starts are by `accept`, and nothing is hidden behind a handshake. What a
client far away waits for, `/metrics` tells. Exit codes: 0 ok, 1 failed, 2 bad usage, 130 interrupted.";

const TAG_HELP: &str = "\
Examples:
  headstart tag --function 7 --to node1:8081 --key-file /etc/headstart/keys -- curl http://node1:8081/
  headstart tag --function 7 --to node1:8081 --cgroup /sys/fs/cgroup/user.slice

With a COMMAND, its exit code, 128 + N when signal N killed it, 127 when there is none of that name, and 126
when it cannot be executed. Else 0 after SIGTERM or Ctrl-C, 1 failed, 2 bad usage or key file.";

fn main() -> ExitCode {
    // A parked process is this program too: it must not become an agent.
    if start::process::park::is_park_invocation(std::env::args_os()) {
        return start::process::park::park_main();
    }
    let outcome = match Cli::parse().command {
        Command::Run { config, unpin } => run(&config, unpin),
        Command::Uninstall { config } => uninstall(&config),
        Command::Check { config } => check(&config),
        Command::Status { agent, json, watch } => done(status::print(&agent.admin, json, watch)),
        Command::Explain { name, agent, json } => done(explain::print(&agent.admin, &name, json)),
        Command::Bench { args, agent } => bench::run(&agent.admin, args),
        Command::Wake { name, agent } => done(operate::ask(&agent.admin, &name, Operation::Wake)),
        Command::Freeze { name, agent } => done(operate::ask(&agent.admin, &name, Operation::Freeze)),
        Command::Stop { name, agent } => done(operate::ask(&agent.admin, &name, Operation::Stop)),
        Command::Reload { agent } => done(reload::ask(&agent.admin)),
        Command::Doctor { config } => Ok(diagnose(config.as_deref())),
        Command::Tag(args) => Ok(client::finish(client::tag(&args))),
        Command::Knock(args) => Ok(client::finish(client::knock(&args))),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("headstart: {error:#}");
        ExitCode::FAILURE
    })
}

/// For commands whose only failure is an error.
fn done(outcome: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    outcome.map(|()| ExitCode::SUCCESS)
}

fn load(file: &Path) -> Result<Config, ExitCode> {
    Config::load(file).map_err(|errors| {
        eprintln!("{errors}");
        ExitCode::from(2)
    })
}

fn diagnose(file: Option<&Path>) -> ExitCode {
    match file.map(load).transpose() {
        Ok(config) => {
            doctor::print(config.as_ref());
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn check(file: &Path) -> anyhow::Result<ExitCode> {
    let config = match load(file) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let problems = config.check_host();
    for problem in &problems {
        eprintln!("{problem}");
    }
    if !problems.is_empty() {
        return Ok(ExitCode::from(2));
    }
    let (functions, backends) = (config.functions.len(), config.backends.len());
    println!("{}: ok, {functions} functions and {backends} backends", file.display());
    Ok(ExitCode::SUCCESS)
}

fn run(file: &Path, unpin: bool) -> anyhow::Result<ExitCode> {
    // Both before anything is opened: what the service manager kept may be many descriptors.
    let raised = raise_open_files();
    let manager = ServiceManager::from_environment();
    let config = match load(file) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    init_log(config.agent.log);
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
    let _lock = lock(&config.agent.state_dir)?;
    start::become_subreaper().context("cannot become the reaper of containers")?;
    // One thread: a start passes through several tasks, and waking another thread costs more than any of them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(agent(file, config, manager, unpin))?;
    Ok(ExitCode::SUCCESS)
}

fn uninstall(file: &Path) -> anyhow::Result<ExitCode> {
    let config = match load(file) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let Agent { state_dir, runc, docker_socket, .. } = &config.agent;
    let _lock = lock(state_dir)?;
    if syn::is_pinned(&config.syn.pin_dir) {
        syn::Pins::open(&config.syn.pin_dir, false)?.clear()?;
        println!("removed what was pinned in {}", config.syn.pin_dir.display());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let grace = config.functions.iter().map(|function| function.stop_grace).max().unwrap_or_default();
    runtime.block_on(async {
        start::Survivors::find(state_dir, runc, docker_socket).await.end(grace).await;
    });
    std::fs::remove_dir_all(state_dir).with_context(|| format!("cannot remove {}", state_dir.display()))?;
    println!("removed the containers of earlier agents and {}", state_dir.display());
    Ok(ExitCode::SUCCESS)
}

async fn agent(file: &Path, config: Config, mut manager: ServiceManager, unpin: bool) -> anyhow::Result<()> {
    // Before anything exists that a default SIGTERM would leave behind.
    let mut asked = Box::pin(asked_to_stop().context("signals cannot be received")?);
    let hangup = signal(SignalKind::hangup()).context("signals cannot be received")?;
    let pins = setup::pins(&config, !unpin)?;
    let export = measure::install()?;
    let listener = admin::listen(config.agent.admin).await.map_err(anyhow::Error::msg)?;
    let node = &config.agent;
    let mut survivors = start::Survivors::find(&node.state_dir, &node.runc, &node.docker_socket).await;
    let grace = config.functions.iter().map(|function| function.stop_grace).max().unwrap_or_default();
    tokio::select! {
        () = survivors.make_room(grace, || setup::ports_are_free(&config, &manager)) => {}
        signal = &mut asked => {
            tracing::info!("{signal}: stopping before anything was served");
            return Ok(());
        }
    }
    let kernel = setup::kernel(&config, pins.clone());
    let support = kernel.as_ref().map(Kernel::listeners).map_err(Clone::clone);
    let setup = setup::build(&config, &mut manager, support.as_ref());
    let sensing = setup::watch(&config, kernel, &setup.served.services);
    let starts = Arc::new(StartHistory::default());
    let attached = sensing.as_ref().map_or_else(|| watch::channel(Vec::new()).1, |s| s.attached.clone());
    let (sensor, watching) = sensing.map(Sensing::split).unzip();
    let adopted = adopt::adopt(&mut survivors, &mut manager, &setup.served.services).await;
    let (mut node, handle) = Node::new(
        setup.served.services.clone(),
        setup.admission,
        setup.allow,
        sensor,
        Arc::clone(&starts),
        manager.descriptor_store(),
    );
    setup::kernel_tls(&config);
    give_up_privileges(&privilege::needs(&config, !survivors.is_empty()));
    // The first threads besides this one: they have no more privileges than it has left.
    let data = DataThreads::start(config.agent.data_threads).context("cannot start the data threads")?;
    setup.served.pools.values().flatten().for_each(|pool| pool.start(data.handle()));
    node.adopt(adopted);
    let functions = config.functions.len();
    let mut reload = Reload::new(
        file.to_owned(),
        config,
        support,
        setup.served,
        manager.without_inherited(),
        handle.clone(),
        data.handle().clone(),
    );
    if let Some(Watching { rings, keys, background }) = watching {
        node.look_into(rings.clone());
        tokio::spawn(watch_rings(rings, handle.clone()));
        tokio::spawn(background.run());
        reload = reload.with_keys(keys);
    }
    let address = listener.local_addr()?;
    let (stopping, mut stopped) = watch::channel(());
    let (requests, asked_to_reload) = mpsc::channel(1);
    let shown = reload.shown();
    let admin =
        Admin { node: handle.clone(), starts, export, shown: shown.clone(), attached, reload: requests };
    let pages = tokio::spawn(admin::serve(listener, admin, async move { drop(stopped.changed().await) }));
    let reload = tokio::spawn(reload.run(asked_to_reload, hangup));
    manager.ready();
    tracing::info!(admin = %address, functions, "headstart is up");

    let survivors = tokio::spawn(survivors.end(grace));
    tokio::spawn(async move {
        tracing::info!("{}: stopping", asked.await);
        manager.stopping();
        handle.shutdown().await;
    });
    node.run().await;
    // They were asked to stop before our own.
    survivors.await?;
    start::tidy();
    reload.abort();
    for pool in &shown.borrow().pools {
        pool.close();
    }
    drop(stopping);
    pages.await??;
    if unpin && let Some(pins) = pins {
        pins.clear()?;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Everything that needs them is done, and no other thread exists yet.
fn give_up_privileges(needs: &[privilege::Need]) {
    match privilege::drop_all_but(needs) {
        Ok(kept) => tracing::info!(?kept, "capabilities dropped that are not needed any more"),
        Err(error) => tracing::error!("{error}"),
    }
}

async fn watch_rings(rings: Reader, node: NodeHandle) {
    let hand_on = |seen| _ = node.seen(&seen);
    if let Err(error) = syn::read(rings, hand_on).await {
        tracing::error!("no early starts any more, the rings cannot be read: {error}");
    }
}

/// Listens from now on; the future names the signal that asks the agent to stop.
fn asked_to_stop() -> std::io::Result<impl Future<Output = &'static str>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        }
    })
}

fn init_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Listeners, control sockets and pooled connections are all descriptors: take as many as are allowed.
fn raise_open_files() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// Only one agent may own a state directory: it removes what it does not know.
fn lock(state_dir: &Path) -> anyhow::Result<Flock<std::fs::File>> {
    std::fs::create_dir_all(state_dir).with_context(|| format!("cannot make {}", state_dir.display()))?;
    let path = state_dir.join("agent.lock");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::Error::EWOULDBLOCK)) => bail!(
            "another agent runs with the state directory {}: stop it, or set another `state_dir` in [agent]",
            state_dir.display()
        ),
        Err((_, error)) => bail!("cannot lock {}: {error}", path.display()),
    }
}
