//! From a configuration to what the node runs. What cannot be set up is left
//! out and reported; everything else is served.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use headstart_config::{self as config, Config, Interfaces, Protocol, RequireAuth};
use headstart_injector::{Address, BackendKind, BackendSpec, Pool, PoolSettings, PostgresLogin, Secret};

use crate::admin::Unavailable;
use crate::decision::{Admission, Policy, Rates};
use crate::inject::Dowry;
use crate::manager::{Manager, Place};
use crate::node::{Allow, Service};
use crate::serve::{self, ListenError};
use crate::start::{
    ContainerSpec, Runtime,
    docker::Docker,
    oci::Oci,
    process::{Helper, Plain},
};
use crate::syn::{self, Kernel, PinError, Pins, Route, Sensing, SynError};

/// Shortest pause after a failed connect to a backend.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// What was made of a configuration.
pub struct Setup {
    /// What is served.
    pub services: Vec<Service>,
    /// How clients reach each of them, in the same order.
    pub routes: Vec<Route>,
    /// What they share when they decide.
    pub admission: Admission,
    /// To whom no budget applies.
    pub allow: Allow,
    /// The pools, connecting already.
    pub pools: Vec<Pool>,
    /// What is not served, and why.
    pub unavailable: Vec<Unavailable>,
}

/// Binds every port that no earlier agent has left open, fills the pools, chooses the runtimes.
/// What needs a part of the kernel half that is not there is not served. Must be called within a tokio runtime.
#[must_use]
pub fn build(config: &Config, manager: &mut Manager, kernel: Result<&Kernel, &String>) -> Setup {
    let mut unavailable = Vec::new();
    let mut pools = HashMap::new();
    for backend in &config.backends {
        let pool = backend_spec(backend).map(Pool::spawn);
        match &pool {
            Err(error) => tracing::error!(backend = backend.name, "{error}"),
            Ok(_) => backend.check_host().iter().for_each(|problem| tracing::warn!("{problem}")),
        }
        pools.insert(backend.name.as_str(), pool);
    }
    let (mut services, mut routes) = (Vec::new(), Vec::new());
    for function in &config.functions {
        let served = route(config, function, manager, kernel)
            .and_then(|route| Ok((service(config, function, &pools, &route)?, route)));
        match served {
            Ok((service, route)) => {
                services.push(service);
                routes.push(route);
            }
            Err(reason) => {
                tracing::error!(function = function.name, "not served: {reason}");
                unavailable.push(Unavailable { name: function.name.clone(), reason });
            }
        }
    }
    let pools =
        config.backends.iter().filter_map(|backend| pools.remove(backend.name.as_str())?.ok()).collect();
    let admission = Admission::new(rates(config.syn.starts.global), config.syn.unused_after);
    let allow = Allow::new(&config.syn.allow);
    Setup { services, routes, admission, allow, pools, unavailable }
}

/// Whether every port can be bound that was not inherited. Instances of an
/// earlier agent hold the sockets that they were given.
#[must_use]
pub fn ports_are_free(config: &Config, manager: &Manager) -> bool {
    let mut own = config.functions.iter().filter(|function| !manager.has(Place::Bound(function.listen)));
    own.all(|function| serve::is_free(function.listen))
}

fn service(
    config: &Config,
    function: &config::Function,
    pools: &HashMap<&str, Result<Pool, String>>,
    route: &Route,
) -> Result<Service, String> {
    let own = function.backends.iter().map(|name| match pools.get(name.as_str()) {
        Some(Ok(pool)) => Ok(pool.clone()),
        Some(Err(error)) => Err(error.clone()),
        None => Err(format!("there is no backend {name:?}")),
    });
    let pools = own.collect::<Result<_, _>>()?;
    Ok(Service {
        name: function.name.clone(),
        listen: function.listen,
        id: function.id,
        require_auth: function.require_auth,
        policy: Policy {
            prepared: u32::try_from(function.prepared).unwrap_or(u32::MAX),
            concurrency: function.concurrency,
            min_ready: function.min_ready,
            max_instances: function.max_instances,
            queue_timeout: function.queue_timeout,
            freeze_after: function.freeze_after,
            stop_after: function.stop_after,
            init_timeout: function.init_timeout,
            start_attempts: function.start_attempts,
            cooldown: function.cooldown,
            retry_max: function.retry_max,
            unused_after: config.syn.unused_after,
            starts: rates(config.syn.starts.function),
        },
        overload: function.overload,
        freeze_backends: function.freeze_backends,
        stop_grace: function.stop_grace,
        runtime: runtime(&config.agent, function),
        dowry: Dowry {
            function: function.name.clone(),
            listener: Arc::clone(&route.listener),
            concurrency: function.concurrency,
            pools,
        },
        fingerprint: config.fingerprint(function),
    })
}

fn rates(range: config::BudgetRange) -> Rates {
    Rates { min: range.min, max: range.max }
}

/// Opens what the function's instances accept from. Functions with an ID on a port of several have a listener
/// that only the socket lookup leads to; the port itself is of the one without.
fn route(
    config: &Config,
    function: &config::Function,
    manager: &mut Manager,
    kernel: Result<&Kernel, &String>,
) -> Result<Route, String> {
    let (listen, auth) = (function.listen, function.require_auth);
    let shared = config.functions.iter().filter(|other| other.listen == listen).count() > 1;
    let hidden = function.id.filter(|_| shared);
    if hidden.is_some() && !kernel.is_ok_and(Kernel::can_steer) {
        return Err(format!(
            "it shares {listen}, and the kernel cannot give it its connections ({}): give it a port of its own",
            kernel.err().map_or("sk_lookup is not attached", String::as_str)
        ));
    }
    let guard = match (auth, kernel) {
        (RequireAuth::Connect, Ok(kernel)) => Some(kernel),
        (RequireAuth::Connect, Err(why)) => {
            return Err(format!("require_auth = \"connect\" cannot be kept: {why}"));
        }
        (RequireAuth::No | RequireAuth::Wake, _) => None,
    };
    let guard = |socket: BorrowedFd<'_>| guard.map_or(Ok(()), |kernel| kernel.guard(socket));
    let (place, address) = match hidden {
        None => (Place::Bound(listen), listen),
        Some(id) => (Place::Hidden(listen, id), serve::hidden(listen)),
    };
    let listener = listener(manager, place, address, function.backlog, guard);
    let listener = Arc::new(listener.map_err(|error| error.to_string())?);
    Ok(Route { listen, id: function.id, auth, steered: hidden.is_some(), listener })
}

/// The socket that an earlier agent had for this place, or a new one, which the next agent will get. Nobody
/// reaches it unless `guard` has closed it to strangers, where it is to be closed.
fn listener(
    manager: &mut Manager,
    place: Place,
    address: SocketAddr,
    backlog: u16,
    guard: impl FnOnce(BorrowedFd<'_>) -> Result<(), SynError>,
) -> Result<OwnedFd, ListenError> {
    if let Some(inherited) = manager.take(place) {
        // One that cannot be guarded would come back at each start.
        guard(inherited.as_fd()).inspect_err(|_| manager.forget(place))?;
        return serve::adopt(inherited, address, backlog);
    }
    let listener = serve::listen_behind(address, backlog, guard)?;
    manager.keep(place, &listener);
    Ok(listener)
}

fn runtime(agent: &config::Agent, function: &config::Function) -> Arc<dyn Runtime> {
    let spec = ContainerSpec {
        function: function.name.clone(),
        command: function.command.clone(),
        env: function.env.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        memory_bytes: function.memory_bytes,
        pids: u64::from(function.pids),
    };
    match &function.runtime {
        config::Runtime::Oci { rootfs } => {
            Arc::new(Oci::new(spec, rootfs.clone(), agent.runc.clone(), &agent.state_dir))
        }
        config::Runtime::Docker { image, network } => Arc::new(Docker::new(
            spec,
            image.clone(),
            network.as_str().to_owned(),
            agent.docker_socket.clone(),
            &agent.state_dir,
        )),
        config::Runtime::Process => Arc::new(Plain::new(spec, Helper::default(), &agent.state_dir)),
    }
}

fn backend_spec(backend: &config::Backend) -> Result<BackendSpec, String> {
    let kind = match &backend.protocol {
        Protocol::Tcp => BackendKind::Tcp,
        Protocol::Postgres(postgres) => {
            let password = postgres.password_file.as_deref().map(password).transpose()?;
            let name = postgres.application_name.iter();
            BackendKind::Postgres(PostgresLogin {
                user: postgres.user.clone(),
                database: postgres.database.clone(),
                password,
                options: name
                    .map(|name| ("application_name".to_owned(), name.clone()))
                    .collect::<BTreeMap<_, _>>(),
                warm_query: None,
            })
        }
    };
    let address = match &backend.address {
        config::Address::Tcp { .. } => Address::Tcp(backend.address.to_string()),
        config::Address::Unix(path) => Address::Unix(path.clone()),
    };
    let pool = backend.pool;
    let pool = PoolSettings {
        min_idle: pool.min_idle,
        max: pool.max,
        ttl: pool.ttl,
        connect_timeout: pool.connect_timeout,
        backoff_min: BACKOFF_MIN,
        backoff_max: pool.backoff_max,
        wait: pool.wait,
    };
    Ok(BackendSpec { name: backend.name.clone(), kind, address, pool })
}

/// The content of a password file without its last line end.
fn password(file: &Path) -> Result<Secret, String> {
    let mut text = fs::read_to_string(file)
        .map_err(|error| format!("the password file {} cannot be read: {error}", file.display()))?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(Secret::new(text))
}

/// Locks the directory where programs and maps outlive the agent; `None` where nothing can be pinned, or
/// nothing is to be watched.
///
/// # Errors
/// [`syn::PinError::Locked`] when another agent runs there.
pub fn pins(config: &Config, keep: bool) -> Result<Option<Arc<Pins>>, PinError> {
    let dir = &config.syn.pin_dir;
    if !is_watching(config) && !syn::is_pinned(dir) {
        return Ok(None);
    }
    match Pins::open(dir, keep) {
        Ok(pins) => Ok(Some(Arc::new(pins))),
        Err(error @ PinError::Locked(_)) => Err(error),
        Err(error) => {
            tracing::warn!("nothing is watched while the agent restarts: {error}");
            Ok(None)
        }
    }
}

/// Loads the kernel half, and attaches the socket lookup, on which shared ports depend. Otherwise says why there
/// is none.
///
/// # Errors
/// Why nothing is watched: functions then start when their first connection is complete.
pub fn kernel(config: &Config, pins: Option<Arc<Pins>>) -> Result<Kernel, String> {
    if !is_watching(config) {
        tracing::info!(
            "nothing is watched: functions start when their first connection is complete, not at its SYN"
        );
        if let Some(Err(error)) = pins.map(|pins| pins.clear()) {
            tracing::warn!("what an earlier agent pinned stays: {error}");
        }
        return Err("nothing is watched: [agent] interfaces is empty and [syn] lookup is false".into());
    }
    let mut kernel = Kernel::load(headstart_ebpf::OBJECT, pins).map_err(|error| {
        tracing::error!("no early starts: {error}");
        error.to_string()
    })?;
    for error in kernel.refused().values() {
        tracing::warn!("{error}");
    }
    if config.syn.lookup
        && !kernel.refused().contains_key(&syn::Part::Lookup)
        && let Err(error) = kernel.attach_lookup()
    {
        tracing::warn!("{error}");
    }
    Ok(kernel)
}

fn is_watching(config: &Config) -> bool {
    config.syn.lookup || config.agent.interfaces != Interfaces::Named(Vec::new())
}

/// Tells the kernel half of the functions and attaches it to interfaces.
#[must_use]
pub fn watch(config: &Config, kernel: Result<Kernel, String>, routes: &[Route]) -> Option<Sensing> {
    if config.agent.interfaces == Interfaces::Named(Vec::new()) && routes.iter().any(|route| route.steered) {
        tracing::warn!(
            "no interface is watched, so nobody reads which function of a shared port clients name"
        );
    }
    match kernel.ok()?.watch(routes, &config.syn, &config.agent.interfaces) {
        Ok(sensing) => Some(sensing),
        Err(error) => {
            tracing::error!("no early starts: {error}");
            None
        }
    }
}
