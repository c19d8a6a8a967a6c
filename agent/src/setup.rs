//! From a configuration to what the node runs. What cannot be set up is left
//! out and reported; everything else is served.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use headstart_config::{self as config, Config, Interfaces, Protocol};
use headstart_injector::{Address, BackendKind, BackendSpec, Pool, PoolSettings, PostgresLogin, Secret};

use crate::admin::Unavailable;
use crate::decision::Policy;
use crate::event::FunctionId;
use crate::inject::Dowry;
use crate::node::Service;
use crate::serve;
use crate::start::{
    ContainerSpec, Runtime,
    docker::Docker,
    oci::Oci,
    process::{Helper, Plain},
};
use crate::syn::{self, Attached, Sensor};

/// Shortest pause after a failed connect to a backend.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// What was made of a configuration.
pub struct Setup {
    /// What is served.
    pub services: Vec<Service>,
    /// The pools, connecting already.
    pub pools: Vec<Pool>,
    /// What is not served, and why.
    pub unavailable: Vec<Unavailable>,
}

/// Binds every port, fills the pools, chooses the runtimes. Must be called within a tokio runtime.
#[must_use]
pub fn build(config: &Config) -> Setup {
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
    let mut services = Vec::new();
    for function in &config.functions {
        match service(config, function, &pools) {
            Ok(service) => services.push(service),
            Err(reason) => {
                tracing::error!(function = function.name, "not served: {reason}");
                unavailable.push(Unavailable { name: function.name.clone(), reason });
            }
        }
    }
    let pools =
        config.backends.iter().filter_map(|backend| pools.remove(backend.name.as_str())?.ok()).collect();
    Setup { services, pools, unavailable }
}

fn service(
    config: &Config,
    function: &config::Function,
    pools: &HashMap<&str, Result<Pool, String>>,
) -> Result<Service, String> {
    let own = function.backends.iter().map(|name| match pools.get(name.as_str()) {
        Some(Ok(pool)) => Ok(pool.clone()),
        Some(Err(error)) => Err(error.clone()),
        None => Err(format!("there is no backend {name:?}")),
    });
    let pools = own.collect::<Result<_, _>>()?;
    let listener = serve::listen(function.listen, function.backlog).map_err(|error| error.to_string())?;
    Ok(Service {
        name: function.name.clone(),
        listen: function.listen,
        policy: Policy {
            prepared: u32::try_from(function.prepared).unwrap_or(u32::MAX),
            init_timeout: function.init_timeout,
            retry_max: function.retry_max,
        },
        stop_grace: function.stop_grace,
        runtime: runtime(&config.agent, function),
        dowry: Dowry { function: function.name.clone(), listener: Arc::new(listener), pools },
    })
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

/// Loads the kernel half and attaches it where the configuration says. `None`
/// without interfaces, or when the kernel refuses: functions then start when
/// their first connection is complete.
#[must_use]
pub fn sensor(config: &Config, services: &[Service]) -> Option<(Sensor, syn::Ring, Vec<Attached>)> {
    let interfaces = match &config.agent.interfaces {
        Interfaces::Auto => syn::uplinks(),
        Interfaces::Named(names) => names.clone(),
    };
    if interfaces.is_empty() {
        tracing::info!(
            "no interfaces: functions start when their first connection is complete, not at its SYN"
        );
        return None;
    }
    let (mut sensor, ring) = match Sensor::load(headstart_ebpf::OBJECT) {
        Ok(loaded) => loaded,
        Err(error) => {
            tracing::error!("no early starts: {error}");
            return None;
        }
    };
    for (function, service) in services.iter().enumerate() {
        let function = FunctionId::try_from(function).unwrap_or(FunctionId::MAX);
        if let Err(error) = sensor.set(service.listen, function, false) {
            tracing::error!(function = service.name, "no early starts: {error}");
        }
    }
    let mut attached = Vec::new();
    for interface in &interfaces {
        match sensor.attach(interface) {
            Ok(done) => {
                tracing::info!(interface, mode = done.mode.as_str(), "watching for SYNs");
                attached.push(done);
            }
            Err(error) => tracing::error!(interface, "no early starts from this interface: {error}"),
        }
    }
    Some((sensor, ring, attached))
}
