//! `headstart`: the command line of the agent.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use headstart_agent::admin::{self, Admin};
use headstart_agent::measure::{self, Starts};
use headstart_agent::node::Node;
use headstart_agent::{doctor, setup, start, syn};
use headstart_config::{Config, LogFormat};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
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
        /// The `admin` address of the agent.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
        admin: String,
        /// The API's JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Tells what this host can do, and what each lack costs.
    Doctor,
}

fn main() -> ExitCode {
    // A parked process is this program too: it must not become an agent.
    if start::process::park::is_park_invocation(std::env::args_os()) {
        return start::process::park::park_main();
    }
    let outcome = match Cli::parse().command {
        Command::Run { config } => run(&config),
        Command::Check { config } => check(&config),
        Command::Status { admin, json } => {
            headstart_agent::status::print(&admin, json).map(|()| ExitCode::SUCCESS)
        }
        Command::Doctor => {
            doctor::print();
            Ok(ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("headstart: {error:#}");
        ExitCode::FAILURE
    })
}

fn load(file: &Path) -> Result<Config, ExitCode> {
    Config::load(file).map_err(|errors| {
        eprintln!("{errors}");
        ExitCode::from(2)
    })
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

fn run(file: &Path) -> anyhow::Result<ExitCode> {
    let config = match load(file) {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    init_log(config.agent.log);
    let _lock = lock(&config.agent.state_dir)?;
    raise_open_files();
    start::become_subreaper().context("cannot become the reaper of containers")?;
    // One thread: a start passes through several tasks, and waking another thread costs more than any of them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(agent(config))?;
    Ok(ExitCode::SUCCESS)
}

async fn agent(config: Config) -> anyhow::Result<()> {
    // Before anything exists that a default SIGTERM would leave behind.
    let asked = asked_to_stop().context("signals cannot be received")?;
    let export = measure::install()?;
    let listener = admin::listen(config.agent.admin).await.map_err(anyhow::Error::msg)?;
    start::sweep(&config.agent.state_dir, &config.agent.runc, &config.agent.docker_socket).await;
    let setup = setup::build(&config);
    let sensor = setup::sensor(&config, &setup.services);
    let (sensor, ring, attached) = match sensor {
        Some((sensor, ring, attached)) => (Some(sensor), Some(ring), attached),
        None => (None, None, Vec::new()),
    };
    let starts = Arc::new(Starts::default());
    let (node, handle) = Node::new(setup.services, sensor, Arc::clone(&starts));
    if let Some(ring) = ring {
        tokio::spawn(watch_ring(ring, handle.clone()));
    }
    let address = listener.local_addr()?;
    let (stopping, mut stopped) = watch::channel(());
    let (pools, unavailable) = (setup.pools.clone(), setup.unavailable);
    let admin = Admin { node: handle.clone(), starts, export, pools, attached, unavailable };
    let pages = tokio::spawn(admin::serve(listener, admin, async move { drop(stopped.changed().await) }));
    tracing::info!(admin = %address, functions = config.functions.len(), "headstart is up");

    tokio::spawn(async move {
        tracing::info!("{}: stopping", asked.await);
        handle.shutdown().await;
    });
    node.run().await;
    start::tidy();
    for pool in &setup.pools {
        pool.close();
    }
    drop(stopping);
    pages.await??;
    tracing::info!("stopped");
    Ok(())
}

async fn watch_ring(ring: syn::Ring, node: headstart_agent::node::Handle) {
    let read = syn::read(ring, |event| match event {
        Some(event) if node.syn(&event) => {}
        Some(_) => measure::record_lost("inbox_full"),
        None => measure::record_lost("record_length"),
    });
    if let Err(error) = read.await {
        tracing::error!("no early starts any more, the ring cannot be read: {error}");
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
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
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
