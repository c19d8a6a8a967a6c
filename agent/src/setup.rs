//! From a configuration to what the node runs. What cannot be set up is left
//! out and reported; everything else is served.

mod adopt;
mod backend;
pub mod reload;
pub(crate) mod state_dir;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use headstart_config::{self as config, Config, Interfaces, RequireAuth};
use headstart_injector::{Pool, ServerQuotas, TlsMode};
use headstart_wire::ktls;

use crate::api::Unavailable;
use crate::decision::{Admission, Policy, Rates};
use crate::inject::Resources;
use crate::manager::{ListenerKey, ServiceManager};
use crate::node::{AllowList, Service};
use crate::serve::{self, ListenError};
use crate::start::{ContainerSpec, Drivers};
use crate::syn::{self, Kernel, ListenerSupport, PinError, Pins, Sensing, SynError};
pub use adopt::adopt;
pub(crate) use backend::{Credentials, credentials, pool};

/// Every backend's pool by the backend's name, or why there is none.
pub type Pools = HashMap<String, Result<Pool, String>>;

/// What was made of a configuration.
pub struct Setup {
    /// What is served, and with what.
    pub served: Served,
    /// What functions share when they decide.
    pub admission: Admission,
    /// To whom no budget applies.
    pub allow: AllowList,
}

/// What is served, and with what.
pub struct Served {
    /// The functions. A function's number is its place.
    pub services: Vec<Service>,
    /// What makes their containers.
    pub drivers: Drivers,
    /// The pools. They do not connect yet.
    pub pools: Pools,
    /// What these pools, and later ones, share.
    pub quotas: ServerQuotas,
    /// What is not served, and why.
    pub unavailable: Vec<Unavailable>,
}

/// Binds every port that no earlier agent has left open, makes the pools, chooses the runtimes.
/// What needs a part of the kernel half that is not there is not served.
#[must_use]
pub fn build(
    config: &Config,
    drivers: Drivers,
    manager: &mut ServiceManager,
    support: Result<&ListenerSupport, &String>,
) -> Setup {
    let mut unavailable = Vec::new();
    let (mut pools, quotas) = (Pools::new(), ServerQuotas::default());
    for backend in &config.backends {
        let pool = pool(backend, &quotas).map_err(|error| error.to_string());
        match &pool {
            Err(error) => tracing::error!(backend = backend.name, "{error}"),
            Ok(_) => backend.check_host().iter().for_each(|problem| tracing::warn!("{problem}")),
        }
        pools.insert(backend.name.clone(), pool);
    }
    let (mut services, shared) = (Vec::new(), shared(config));
    for function in &config.functions {
        let served = door(function, place(function, &shared), support).and_then(|door| {
            let listener = listener(manager, &door, function.backlog).map_err(|error| error.to_string())?;
            service(config, function, &drivers, &pools, &door, Arc::new(listener))
        });
        match served {
            Ok(service) => services.push(service),
            Err(reason) => unavailable.push(self::unavailable(function, reason)),
        }
    }
    let admission = Admission::new(rates(config.syn.starts.global), config.syn.unused_after);
    let allow = AllowList::new(&config.syn.allow);
    Setup { served: Served { services, drivers, pools, quotas, unavailable }, admission, allow }
}

/// Also logs it.
fn unavailable(function: &config::Function, reason: String) -> Unavailable {
    tracing::error!(function = function.name, "not served: {reason}");
    Unavailable::new(function.name.clone(), reason)
}

/// Whether every port can be bound that was not inherited. Instances of an
/// earlier agent hold the sockets that they were given.
#[must_use]
pub fn ports_are_free(config: &Config, manager: &ServiceManager) -> bool {
    let mut own =
        config.functions.iter().filter(|function| !manager.has_listener(ListenerKey::Bound(function.listen)));
    own.all(|function| serve::is_free(function.listen))
}

/// A function that accepts from this listener.
pub(crate) fn service(
    config: &Config,
    function: &config::Function,
    drivers: &Drivers,
    pools: &Pools,
    door: &Door<'_>,
    listener: Arc<OwnedFd>,
) -> Result<Service, String> {
    let own = function.backends.iter().map(|name| match pools.get(name.as_str()) {
        Some(Ok(pool)) => Ok(pool.clone()),
        Some(Err(error)) => Err(error.clone()),
        None => Err(format!("there is no backend {name:?}")),
    });
    let pools = own.collect::<Result<_, _>>()?;
    let container = container(config, function);
    let runtime = drivers.runtime(&function.runtime, &container).map_err(|error| error.to_string())?;
    Ok(Service {
        name: function.name.clone(),
        listen: function.listen,
        id: function.id,
        require_auth: function.require_auth,
        steered: door.steered,
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
        runtime,
        resources: Resources {
            function: function.name.clone(),
            listener,
            concurrency: function.concurrency,
            pools,
            by_socket: function.backend_sockets,
            ports: function.backend_ports.clone(),
            tls: if function.tls_hand_over { TlsMode::Kernel } else { TlsMode::Relay },
        },
        fingerprint: config.fingerprint(function),
    })
}

/// Whether the kernel goes on with TLS sessions that are handed over: it loads what it needs for that while we may still
/// ask it to.
pub fn kernel_tls(config: &Config) {
    if config.functions.iter().any(|function| function.tls_hand_over) {
        match ktls::load() {
            true => tracing::info!("TLS sessions that are handed over go on in the kernel"),
            false => tracing::info!(
                "TLS sessions that are handed over go on in the functions: the kernel has no kTLS (modprobe tls)"
            ),
        }
    }
}

fn rates(range: config::BudgetRange) -> Rates {
    Rates { min: range.min, max: range.max }
}

/// Where a function's instances are to accept.
pub(crate) struct Door<'a> {
    /// Which listener, also for later agents.
    pub(crate) place: ListenerKey,
    /// What it is to be bound to.
    address: SocketAddr,
    /// Only the socket lookup leads to it.
    steered: bool,
    /// Closes it to strangers.
    gate: Option<&'a ListenerSupport>,
}

impl Door<'_> {
    /// Closes a listener to strangers, if it is to be.
    fn guard(&self, listener: BorrowedFd<'_>) -> Result<(), SynError> {
        self.gate.map_or(Ok(()), |support| support.guard(listener))
    }

    /// A new listener. Nobody reaches it unguarded.
    pub(crate) fn open(&self, backlog: u16) -> Result<OwnedFd, ListenError> {
        serve::listen_behind(self.address, backlog, |listener| self.guard(listener))
    }

    /// Makes a listener that is open already as [`Door::open`] would have. One that this agent has guarded stays so.
    pub(crate) fn adopt(
        &self,
        listener: OwnedFd,
        guarded: bool,
        backlog: u16,
    ) -> Result<OwnedFd, ListenError> {
        if !guarded {
            self.guard(listener.as_fd())?;
        }
        serve::adopt(listener, self.address, backlog)
    }
}

/// The addresses that several functions share.
pub(crate) fn shared(config: &Config) -> HashSet<SocketAddr> {
    let mut seen = HashSet::new();
    config.functions.iter().map(|function| function.listen).filter(|listen| !seen.insert(*listen)).collect()
}

/// Functions with an ID on a port of several have a listener that only the socket lookup leads to; the port itself is of
/// the one without.
pub(crate) fn place(function: &config::Function, shared: &HashSet<SocketAddr>) -> ListenerKey {
    match function.id {
        Some(id) if shared.contains(&function.listen) => ListenerKey::Hidden(function.listen, id),
        _ => ListenerKey::Bound(function.listen),
    }
}

/// Where the function's instances are to accept, if the kernel can do what that needs.
pub(crate) fn door<'a>(
    function: &config::Function,
    place: ListenerKey,
    support: Result<&'a ListenerSupport, &String>,
) -> Result<Door<'a>, String> {
    let (address, steered) = match place {
        ListenerKey::Bound(listen) => (listen, false),
        ListenerKey::Hidden(listen, _) => (serve::hidden(listen), true),
    };
    if steered && !support.is_ok_and(ListenerSupport::can_steer) {
        return Err(format!(
            "it shares {}, and the kernel cannot give it its connections ({}): give it a port of its own",
            function.listen,
            support.err().map_or("sk_lookup is not attached", String::as_str)
        ));
    }
    let gate = match (function.require_auth, support) {
        (RequireAuth::Connect, Ok(support)) => Some(support),
        (RequireAuth::Connect, Err(why)) => {
            return Err(format!("require_auth = \"connect\" cannot be kept: {why}"));
        }
        (RequireAuth::No | RequireAuth::Wake, _) => None,
    };
    Ok(Door { place, address, steered, gate })
}

/// The socket that an earlier agent had for this place, or a new one, which the next agent will get.
fn listener(manager: &mut ServiceManager, door: &Door<'_>, backlog: u16) -> Result<OwnedFd, ListenError> {
    if let Some(inherited) = manager.take_listener(door.place) {
        // One that cannot be guarded would come back at each start.
        return door.adopt(inherited, false, backlog).inspect_err(|_| manager.remove_listener(door.place));
    }
    let listener = door.open(backlog)?;
    manager.store_listener(door.place, &listener);
    Ok(listener)
}

/// What leads drivers to the sockets of backends: to the first of each kind.
fn variables(config: &Config, function: &config::Function) -> Vec<(String, String)> {
    if !function.backend_sockets {
        return Vec::new();
    }
    let mut variables: Vec<(String, String)> = Vec::new();
    for backend in function.backends.iter().filter_map(|name| config.backend(name)) {
        let directory = format!("{}/{}", headstart_wire::BACKENDS_PATH, backend.name);
        let own = backend.protocol.variables(&directory);
        // All of one backend, or none: half of one and half of another leads nowhere.
        let taken = |key: &str| variables.iter().any(|(other, _)| other == key);
        if !own.iter().any(|(key, _)| taken(key)) {
            variables.extend(own.into_iter().map(|(key, value)| (key.to_owned(), value)));
        }
    }
    variables.retain(|(key, _)| !function.env.iter().any(|(own, _)| own == key));
    variables
}

/// What its driver needs to know of a function.
fn container(config: &Config, function: &config::Function) -> ContainerSpec {
    let mut env: Vec<_> =
        function.env.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    env.extend(variables(config, function));
    ContainerSpec {
        function: function.name.clone(),
        command: function.command.clone(),
        env,
        memory_bytes: function.memory_bytes,
        pids: u64::from(function.pids),
        backends: function.backend_sockets,
    }
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
pub fn watch(config: &Config, kernel: Result<Kernel, String>, services: &[Service]) -> Option<Sensing> {
    let routes = (0..).zip(services).map(|(number, service)| (number, service.route())).collect();
    if config.agent.interfaces == Interfaces::Named(Vec::new())
        && services.iter().any(|service| service.steered)
    {
        tracing::warn!(
            "no interface is watched, so nobody reads which function of a shared port clients name"
        );
    }
    match kernel.ok()?.watch(&routes, &config.syn, &config.agent.interfaces) {
        Ok(sensing) => Some(sensing),
        Err(error) => {
            tracing::error!("no early starts: {error}");
            None
        }
    }
}
