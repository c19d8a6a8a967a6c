//! From a configuration to what the node runs. What cannot be set up is left
//! out and reported; everything else is served.

mod adopt;
mod backend;
pub(crate) mod contract;
mod descriptors;
mod error;
pub(crate) mod front;
mod kernel;
pub mod reload;
pub(crate) mod state_dir;

use std::collections::HashMap;
use std::sync::Arc;

use headstart_config::{self as config, Config};
use headstart_injector::{Pool, ServerQuotas, TlsMode};

use crate::api::Unavailable;
use crate::decision::Admission;
use crate::event::{Policy, Rates};
use crate::inject::Resources;
use crate::manager::ServiceManager;
use crate::node::{AllowList, Service};
use crate::serve::{BindingKeys, Bindings, BoundListener};
use crate::start::{ContainerSpec, Drivers, Shares};
use crate::syn::ListenerSupport;
pub use adopt::adopt;
pub(crate) use backend::{Credentials, credentials, pool};
pub use descriptors::DescriptorNeeds;
pub use error::{ReloadRefusal, ServiceError};
use front::Fronts;
pub(crate) use kernel::guard;
pub use kernel::{kernel, kernel_tls, pins, watch};

/// Every backend's pool by the backend's name, or why there is none.
pub type Pools = HashMap<String, Result<Pool, String>>;

/// What was made of a configuration.
pub struct Setup {
    /// What is served, and with what.
    pub served: ServingSet,
    /// What functions share when they decide.
    pub admission: Admission,
    /// To whom no budget applies.
    pub allow: AllowList,
}

/// What is served, and with what.
pub struct ServingSet {
    /// The functions. A function's number is its place.
    pub services: Vec<Service>,
    /// What makes their containers.
    pub drivers: Drivers,
    /// Where their connections come in.
    pub bindings: Bindings,
    /// The pools. They do not connect yet.
    pub pools: Pools,
    /// What these pools, and later ones, share.
    pub quotas: ServerQuotas,
    /// What is not served, and why.
    pub unavailable: Vec<Unavailable>,
    /// The fronts. They do not accept yet.
    pub fronts: Fronts,
}

/// Binds every port that no earlier agent has left open, makes the pools, chooses the runtimes.
/// What needs a part of the kernel half that is not there is not served.
#[must_use]
pub fn build(
    config: &Config,
    drivers: Drivers,
    manager: &mut ServiceManager,
    support: Result<ListenerSupport, String>,
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
    let (mut services, keys) = (Vec::new(), BindingKeys::of(config));
    let mut bindings = Bindings::new(support);
    for function in &config.functions {
        let key = keys.key(function);
        let bound = bindings.inherit(function, key, manager).map_err(ServiceError::from);
        let served = bound.and_then(|bound| {
            let service = service(config, function, &drivers, &pools, bound)?;
            bindings.record(function, key, &service.resources.listener);
            Ok(service)
        });
        match served {
            Ok(service) => services.push(service),
            Err(reason) => unavailable.push(self::unavailable(function, &reason)),
        }
    }
    let fronts = Fronts::open(config, &mut bindings, manager);
    let starts = &config.syn.starts;
    let admission = Admission::new(rates(starts.global), rates(starts.allow), config.syn.unused_after);
    let allow = AllowList::new(&config.syn.allow);
    Setup {
        served: ServingSet { services, drivers, bindings, pools, quotas, unavailable, fronts },
        admission,
        allow,
    }
}

/// Also logs it.
fn unavailable(function: &config::Function, reason: &ServiceError) -> Unavailable {
    tracing::error!(function = function.name, "not served: {reason}");
    Unavailable::new(function.name.clone(), reason.to_string())
}

/// A function that accepts from this listener.
pub(crate) fn service(
    config: &Config,
    function: &config::Function,
    drivers: &Drivers,
    pools: &Pools,
    bound: BoundListener,
) -> Result<Service, ServiceError> {
    let own = function.backends.iter().map(|name| match pools.get(name.as_str()) {
        Some(Ok(pool)) => Ok(pool.clone()),
        Some(Err(error)) => Err(ServiceError::Backend(error.clone())),
        None => Err(ServiceError::NoBackend(name.clone())),
    });
    let pools = own.collect::<Result<_, _>>()?;
    if let Some(lack) = function.runtime.lack() {
        return Err(ServiceError::Image(lack.to_owned()));
    }
    let container = container(config, function);
    let runtime = drivers.runtime(&function.runtime, &container)?;
    Ok(Service {
        name: function.name.clone(),
        listen: function.listen,
        id: function.id,
        require_auth: function.require_auth,
        steered: bound.steered,
        policy: Policy {
            prepared: u32::try_from(function.prepared).unwrap_or(u32::MAX),
            concurrency: function.concurrency,
            min_ready: function.min_ready,
            standby: function.standby,
            max_instances: function.max_instances,
            queue_timeout: function.queue_timeout,
            freeze_after: function.freeze_after,
            hibernate_after: function.hibernate_after,
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
        contract: function.contract,
        runtime,
        doorbell: Arc::default(),
        resources: Resources {
            function: function.name.clone(),
            listener: bound.listener,
            concurrency: function.concurrency,
            pools,
            by_socket: function.backend_sockets,
            ports: function.backend_ports.clone(),
            tls: if function.tls_hand_over { TlsMode::Kernel } else { TlsMode::Relay },
        },
        fingerprint: config.fingerprint(function),
    })
}

fn rates(range: config::BudgetRange) -> Rates {
    Rates { min: range.min, max: range.max }
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
    env.extend(contract::variables(config, function));
    let adapter = contract::adapter(config, function);
    let mut mounts = function.mounts.clone();
    mounts.extend(adapter.as_ref().map(contract::adapter_mount));
    ContainerSpec {
        function: function.name.clone(),
        command: function.command.clone(),
        workdir: function.workdir.clone(),
        user: function.user,
        group: function.group,
        namespace_root: function.namespace_root,
        env,
        memory_bytes: function.memory_bytes,
        swaps: function.hibernate_after.is_some(),
        pids: u64::from(function.pids),
        shares: Shares {
            cpu_millis: function.cpu_millis,
            cpu_weight: function.cpu_weight,
            io_weight: function.io_weight,
        },
        mounts,
        secrets: function.secrets.clone(),
        backends: function.backend_sockets,
        init: contract::init(config, function),
        adapter,
    }
}
