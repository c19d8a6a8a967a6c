//! `headstart run`: the agent itself.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use headstart_config::{Config, LogFormat};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing_subscriber::EnvFilter;

use super::arguments::ConfigArgs;
use super::state_dir;
use crate::api::server::{self, Server};
use crate::data::DataThreads;
use crate::manager::ServiceManager;
use crate::measure::{self, StartHistory};
use crate::node::{Node, NodeHandle};
use crate::setup::reload::Reload;
use crate::start::Drivers;
use crate::syn::{self, Kernel, Reader, Sensing, Watching};
use crate::{adopt, privilege, setup, start};

/// `headstart run`.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Leave nothing in the kernel when the agent ends, however it ends. Functions that clients ask for before the next
    /// agent runs start when it does, one round trip later.
    #[arg(long)]
    unpin: bool,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the agent cannot start, or ends otherwise.
pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    // Both before anything is opened: what the service manager kept may be many descriptors.
    let raised = raise_open_files();
    let manager = ServiceManager::from_environment();
    let config = match args.config.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    init_log(config.agent.log);
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
    let _lock = state_dir::lock(&config.agent.state_dir)?;
    start::become_subreaper().context("cannot become the reaper of containers")?;
    // One thread: a start passes through several tasks, and waking another thread costs more than any of them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(agent(&args.config.config, config, manager, args.unpin))?;
    Ok(ExitCode::SUCCESS)
}

async fn agent(file: &Path, config: Config, mut manager: ServiceManager, unpin: bool) -> anyhow::Result<()> {
    // Before anything exists that a default SIGTERM would leave behind.
    let mut asked = Box::pin(asked_to_stop().context("signals cannot be received")?);
    let hangup = signal(SignalKind::hangup()).context("signals cannot be received")?;
    let pins = setup::pins(&config, !unpin)?;
    let export = measure::install()?;
    let listener = server::listen(config.agent.admin).await.map_err(anyhow::Error::msg)?;
    let drivers = Drivers::new(&config.agent);
    let mut survivors = drivers.survivors().await;
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
    let setup = setup::build(&config, drivers, &mut manager, support.as_ref());
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
    let of_drivers = setup.served.drivers.capabilities(&config.functions);
    give_up_privileges(privilege::needs(&config, of_drivers, !survivors.is_empty()));
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
    let overview = reload.overview();
    let api = Server {
        control: handle.clone(),
        starts,
        export,
        overview: overview.clone(),
        attached,
        reload: requests,
    };
    let pages = tokio::spawn(server::serve(listener, api, async move { drop(stopped.changed().await) }));
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
    for pool in &overview.borrow().pools {
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

/// Everything that needs them is done. No thread may exist yet: look-ups of names begin threads, so
/// the pools, which are spawned already, must not have run.
fn give_up_privileges(needs: CapabilitySet) {
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
