//! The life of the agent: [`Agent::build`] opens, binds and loads everything; `Agent::run` drops privileges first, and
//! only then starts threads and tasks.
//!
//! Capabilities belong to threads, and a thread begins with those of the thread that starts it. A look-up of a name, for
//! example, starts one. So nothing that may do that runs before the privileges are dropped: `build` awaits, and what had
//! been spawned by then would run.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use headstart_config::Config;
use headstart_injector::Pool;
use nix::fcntl::Flock;
use rustix::thread::CapabilitySet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::api::server::{Doors, Server, ServerTask};
use crate::data::DataThreads;
use crate::guard::Guard;
use crate::log::LogWriter;
use crate::manager::ServiceManager;
use crate::measure::{self, Export, StartHistory};
use crate::node::{AdoptedInstance, MemoryWatch, Node, NodeHandle, STOP_MARGIN};
use crate::privilege;
use crate::serve;
use crate::setup::reload::Reload;
use crate::setup::{self, Setup, state_dir};
use crate::start::{self, Drivers, Survivors};
use crate::syn::{self, Kernel, Pins, Reader, RunningSensors, SensorTasks};

/// Ports below this one need a capability (ip(7), `ip_unprivileged_port_start`).
const PRIVILEGED_END: u16 = 1024;

/// What the operator asks of the agent.
pub struct AgentOptions {
    /// The file that the configuration came from; a reload reads it again.
    pub file: PathBuf,
    /// Leave nothing in the kernel when the agent ends.
    pub unpin: bool,
}

/// An agent that has everything it needs and serves nothing yet.
pub struct Agent {
    options: AgentOptions,
    config: Config,
    manager: ServiceManager,
    stop: StopSignals,
    hangup: Signal,
    /// Held as long as the agent lives.
    _lock: Flock<File>,
    pins: Option<Arc<Pins>>,
    guard: Option<Guard>,
    export: Export,
    admin: Doors,
    setup: Setup,
    sensing: Option<RunningSensors>,
    survivors: Survivors,
    adopted: Vec<AdoptedInstance>,
}

impl Agent {
    /// Opens, binds and loads everything. Starts no thread, and spawns no task that could. `None` when a signal asked the
    /// agent to stop meanwhile.
    ///
    /// # Errors
    /// When another agent runs, or something is missing without which nothing can be served. A function that cannot be
    /// served is no error.
    pub async fn build(
        options: AgentOptions,
        config: Config,
        mut manager: ServiceManager,
    ) -> anyhow::Result<Option<Self>> {
        // Before anything exists that a default SIGTERM would leave behind.
        let mut stop = StopSignals::listen().context("signals cannot be received")?;
        let hangup = signal(SignalKind::hangup()).context("signals cannot be received")?;
        setup::DescriptorNeeds::of(&config).check()?;
        let lock = state_dir::lock(&config.agent.state_dir)?;
        start::become_subreaper().context("cannot become the reaper of containers")?;
        let pins = setup::pins(&config, !options.unpin)?;
        let guard = setup::guard(&config, pins.as_deref());
        let export = measure::install()?;
        let admin =
            Doors::open(config.agent.admin, &config.agent.state_dir).await.map_err(anyhow::Error::msg)?;
        let drivers = Drivers::new(&config.agent);
        drivers.check_cgroups().map_err(|lack| anyhow!("{lack}"))?;
        let mut survivors = drivers.survivors().await;
        tokio::select! {
            () = survivors.make_room(longest_grace(&config), || serve::ports_are_free(&config, &manager)) => {}
            signal = stop.next() => {
                tracing::info!("{signal}: stopping before anything was served");
                return Ok(None);
            }
        }
        let kernel = setup::kernel(&config, pins.clone());
        let support = kernel.as_ref().map(Kernel::listeners).map_err(Clone::clone);
        let setup = setup::build(&config, drivers, &mut manager, support);
        let sensing = setup::watch(&config, kernel, &setup.served.services, setup.served.fronts.routes());
        let adopted = setup::adopt(&mut survivors, &mut manager, &setup.served.services).await;
        setup::kernel_tls(&config);
        Ok(Some(Self {
            options,
            config,
            manager,
            stop,
            hangup,
            _lock: lock,
            pins,
            guard,
            export,
            admin,
            setup,
            sensing,
            survivors,
            adopted,
        }))
    }

    /// Drops privileges, serves until a signal asks it to stop, then stops every instance.
    ///
    /// # Errors
    /// When threads cannot be started, or the API or the pins fail at the end.
    pub(crate) async fn run(self, log: LogWriter) -> anyhow::Result<()> {
        let of_drivers = self.setup.served.drivers.capabilities(&self.config.functions);
        let needs = privilege::needs(&self.config, of_drivers, !self.survivors.is_empty());
        give_up_privileges(needs | of_ports(&self.setup.served, &self.config));
        let Self { options, config, mut manager, mut stop, hangup, _lock, pins, guard, .. } = self;
        let Self { export, admin, setup, sensing, survivors, adopted, .. } = self;
        let (functions, grace, agent) =
            (config.functions.len(), longest_grace(&config), config.agent.clone());
        manager.start_thread().context("cannot start a thread for the service manager")?;
        log.start().context("cannot start a thread for the log")?;
        // The first threads besides this one: they have no more privileges than it has left.
        let data = DataThreads::start(agent.data_threads).context("cannot start the data threads")?;
        setup.served.pools.values().flatten().for_each(|pool| pool.start(data.handle()));

        let starts = Arc::new(StartHistory::default());
        let attached = sensing.as_ref().map_or_else(|| watch::channel(Vec::new()).1, |s| s.attached.clone());
        let (sensor, watching) = sensing.map(RunningSensors::split).unzip();
        let (mut node, control) = Node::new(
            setup.served.services.clone(),
            setup.admission,
            setup.allow,
            sensor,
            Arc::clone(&starts),
            manager.descriptor_store(),
        );
        node.set_fronts(setup.served.fronts.routes());
        node.adopt(adopted);
        node.set_watchdog(manager.watchdog());
        node.watch_memory(agent.memory_reserve.map(MemoryWatch::new));
        let mut reload = Reload::new(
            options.file,
            config,
            setup.served,
            manager.without_inherited(),
            control.clone(),
            data.handle().clone(),
        );
        node.report_ended_listeners(reload.ended_listeners());
        reload.hear_of_forgotten(node.forgotten());
        if let Some(SensorTasks { rings, keys, background }) = watching {
            node.read_rings(rings.clone());
            tokio::spawn(watch_rings(rings, control.clone()));
            tokio::spawn(background.run());
            reload = reload.with_keys(keys);
        }
        tokio::spawn(export.clone().keep_up());
        let (address, overview) = (admin.address()?, reload.overview());
        let (requests, reload_requests) = mpsc::channel(1);
        let (pools, control_of_api) = (overview.clone(), control.clone());
        let api = Server { control: control_of_api, starts, export, overview, attached, reload: requests };
        let api = ServerTask::start(admin, api);
        let reload = tokio::spawn(reload.run(reload_requests, hangup));
        manager.ready();
        tracing::info!(admin = %address, functions, "headstart is up");

        let survivors = tokio::spawn(survivors.end(grace));
        tokio::spawn(async move {
            tracing::info!("{}: stopping", stop.next().await);
            manager.stopping(grace + STOP_MARGIN + END_MARGIN);
            // Fronts accept no more: their clients wait for the next agent.
            reload.abort();
            control.shutdown().await;
        });
        node.run().await;
        // They were asked to stop before our own.
        survivors.await?;
        start::tidy(&agent);
        pools.borrow().pools.iter().for_each(Pool::close);
        api.stop().await?;
        if options.unpin
            && let Some(pins) = pins
        {
            pins.clear()?;
        }
        drop(guard);
        tracing::info!("stopped");
        Ok(())
    }
}

/// What the API and the pools may take to end, after the instances.
const END_MARGIN: Duration = Duration::from_secs(5);

/// The longest time that an instance may take to stop.
fn longest_grace(config: &Config) -> Duration {
    config.functions.iter().map(|function| function.stop_grace).max().unwrap_or_default()
}

/// What opens a port later that could not be opened yet.
fn of_ports(served: &setup::ServingSet, config: &Config) -> CapabilitySet {
    let missing = |name: &str| served.unavailable.iter().any(|one| one.name == name);
    let privileged = |port: u16| port < PRIVILEGED_END;
    let needed = config.functions.iter().any(|one| privileged(one.listen.port()) && missing(&one.name));
    let fronts =
        config.fronts.iter().any(|one| privileged(one.listen.port()) && served.fronts.lack(&one.name));
    if needed || fronts { CapabilitySet::NET_BIND_SERVICE } else { CapabilitySet::empty() }
}

/// Everything that needs them is done, and no other thread exists yet.
fn give_up_privileges(needs: CapabilitySet) {
    match privilege::drop_all_but(needs) {
        Ok(kept) => tracing::info!(?kept, "capabilities dropped that are no longer needed"),
        Err(error) => tracing::error!("{error}"),
    }
}

/// Hands on what comes out of the rings.
async fn watch_rings(rings: Reader, node: NodeHandle) {
    let hand_on = |seen| _ = node.seen(&seen);
    if let Err(error) = syn::read(rings, hand_on).await {
        tracing::error!("no early starts from now on, the rings cannot be read: {error}; restart the agent");
    }
}

/// The signals that ask the agent to stop.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on they do not end the process.
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one and returns its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
