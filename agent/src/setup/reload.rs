//! `reload`: reads the configuration again while functions are served.
//!
//! All or nothing: until everything new is there (listeners, pools, keys) nothing changes, and a configuration that
//! cannot be had leaves the running one as it is and says why.
//!
//! ```text
//! new name                        added
//! other listen, or place on it    removed and added: another listener
//! other command, backend,
//!   password or certificate       replaced: old instances drain, new ones serve who comes from now on
//! other deadline, limit, ...      changed: instances stay
//! gone                            removed: instances drain, clients are turned away, then the listener closes
//! ```
//!
//! `[agent]` and `[syn]` are read only when the agent starts.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use headstart_config::{Config, Function, Problem};
use headstart_ebpf::maps::FUNCTIONS_MAX;
use headstart_injector::{Pool, ServerQuotas};
use tokio::runtime::Handle as DataHandle;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};

use crate::api::server::{Overview, ReloadRequest};
use crate::api::{ReloadOutcome, Unavailable};
use crate::manager::{ListenerKey, ServiceManager};
use crate::measure;
use crate::node::{FunctionChange, NodeHandle, Service};
use crate::privilege;
use crate::serve::{BindingKeys, Bindings};
use crate::setup::{self, Credentials, Pools, ServingSet, unavailable};
use crate::start::Drivers;
use crate::syn::KeyStore;

/// Reads the configuration again.
pub struct Reload {
    file: PathBuf,
    config: Config,
    drivers: Drivers,
    services: HashMap<String, Service>,
    pools: Pools,
    /// What all pools share.
    quotas: ServerQuotas,
    /// With what the pools log in, by the names of backends.
    credentials: HashMap<String, Credentials>,
    /// Where connections come in, also for functions that are being removed.
    bindings: Bindings,
    overview: watch::Sender<Overview>,
    manager: ServiceManager,
    keys: Option<KeyStore>,
    node: NodeHandle,
    /// Where new pools run.
    data: DataHandle,
}

/// What a new configuration comes to, while it can still be refused.
#[derive(Default)]
struct Plan {
    changes: Vec<FunctionChange>,
    outcome: ReloadOutcome,
    services: HashMap<String, Service>,
    pools: Pools,
    credentials: HashMap<String, Credentials>,
    /// Backends whose pool is a new one.
    fresh: BTreeSet<String>,
    unavailable: Vec<Unavailable>,
    /// New listeners.
    opened: Vec<(ListenerKey, Arc<OwnedFd>)>,
    /// Listeners that no function has from now on.
    released: Vec<ListenerKey>,
}

impl Reload {
    /// Of an agent that serves this. New pools run on `data`.
    pub fn new(
        file: PathBuf,
        config: Config,
        served: ServingSet,
        manager: ServiceManager,
        node: NodeHandle,
        data: DataHandle,
    ) -> Self {
        let ServingSet { services, drivers, bindings, pools, quotas, unavailable } = served;
        let services: HashMap<_, _> =
            services.into_iter().map(|service| (service.name.clone(), service)).collect();
        let overview = watch::Sender::new(Overview { pools: running(&config, &pools), unavailable });
        let mut reload = Self {
            file,
            config,
            drivers,
            services,
            pools,
            quotas,
            credentials: HashMap::new(),
            bindings,
            overview,
            manager,
            keys: None,
            node,
            data,
        };
        let backends = reload.config.backends.iter();
        reload.credentials =
            backends.map(|backend| (backend.name.clone(), setup::credentials(backend))).collect();
        reload
    }

    /// The keys of clients are read again too.
    pub fn with_keys(mut self, keys: KeyStore) -> Self {
        self.keys = Some(keys);
        self
    }

    /// The pools and what is not served, as that changes.
    pub fn overview(&self) -> watch::Receiver<Overview> {
        self.overview.subscribe()
    }

    /// Reads it at each SIGHUP and each request, until nobody can ask any more.
    pub async fn run(mut self, mut requests: mpsc::Receiver<ReloadRequest>, mut hangup: Signal) {
        loop {
            let request = tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
                Some(()) = hangup.recv() => None,
            };
            let outcome = self.reload().await;
            measure::record_reload(outcome.is_ok());
            match &outcome {
                Ok(outcome) => tracing::info!("the configuration is read again: {outcome}"),
                Err(refusal) => {
                    tracing::error!("the configuration is not taken, everything stays as it was: {refusal}");
                }
            }
            if let Some(request) = request {
                let _ = request.send(outcome);
            }
        }
    }

    async fn reload(&mut self) -> Result<ReloadOutcome, String> {
        let file = self.file.clone();
        // Parsing takes its time, in which clients must not wait.
        let config = tokio::task::spawn_blocking(move || Config::load(&file)).await;
        let config = config.map_err(|error| error.to_string())?.map_err(|errors| errors.to_string())?;
        for (section, same) in
            [("agent", self.config.agent == config.agent), ("syn", self.config.syn == config.syn)]
        {
            if !same {
                return Err(format!(
                    "[{section}] has changed, and is read only at the start: restart the agent; instances that run \
                     are taken over"
                ));
            }
        }
        self.privileges(&config)?;
        let mut plan = Plan::default();
        let planned = self.plan(&config, &mut plan).and_then(|()| {
            let keys = self.keys.as_mut().map(KeyStore::reload).transpose();
            plan.outcome.keys = keys.map_err(|error| error.to_string())?.flatten();
            Ok(())
        });
        if let Err(refusal) = planned {
            plan.fresh.iter().filter_map(|name| plan.pools.get(name)?.as_ref().ok()).for_each(Pool::close);
            return Err(refusal);
        }
        Ok(self.apply(config, plan).await)
    }

    /// What the agent gave up when it had started it does not get back.
    fn privileges(&self, config: &Config) -> Result<(), String> {
        let needs =
            |config: &Config| privilege::needs(config, self.drivers.capabilities(&config.functions), false);
        let missing =
            privilege::missing(needs(config), needs(&self.config)).map_err(|error| error.to_string())?;
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!(
            "it needs capabilities that the agent gave up when it had started ({}): restart the agent; instances that \
             run are taken over",
            missing.join(", ")
        ))
    }

    fn plan(&self, config: &Config, plan: &mut Plan) -> Result<(), String> {
        self.plan_pools(config, plan)?;
        let (keys, keys_before) = (BindingKeys::of(config), BindingKeys::of(&self.config));
        let mut before: HashMap<_, _> =
            self.config.functions.iter().map(|function| (function.name.as_str(), function)).collect();
        for function in &config.functions {
            let (name, old) = (&function.name, before.remove(function.name.as_str()));
            let key = keys.key(function);
            let old_key = old.map(|old| keys_before.key(old));
            let stays = old_key == Some(key);
            let fresh = function.backends.iter().any(|backend| plan.fresh.contains(backend));
            let same = stays && !fresh && old.is_some_and(|old| old.is_same(function));
            let served = self.services.get(name);
            if let (true, Some(served)) = (same, served) {
                plan.services.insert(name.clone(), served.clone());
                continue;
            }
            let listener = served.filter(|_| stays).map(|served| &served.resources.listener);
            let service = match self.service(config, function, key, listener, plan) {
                Ok(service) => service,
                Err(reason) if same => {
                    plan.outcome.unavailable.push(name.clone());
                    plan.unavailable.push(unavailable(function, reason));
                    continue;
                }
                Err(reason) => return Err(format!("function {name}: {reason}")),
            };
            plan.services.insert(name.clone(), service.clone());
            let service = Box::new(service);
            match (served, old_key) {
                (Some(served), _) if stays => {
                    let replace = fresh || served.fingerprint != service.fingerprint;
                    let outcome = &mut plan.outcome;
                    if replace { &mut outcome.replaced } else { &mut outcome.changed }.push(name.clone());
                    plan.changes.push(FunctionChange::Alter { service, replace });
                }
                (Some(_), Some(old_key)) => {
                    plan.outcome.replaced.push(name.clone());
                    plan.changes.extend([FunctionChange::Remove(name.clone()), FunctionChange::Add(service)]);
                    plan.released.push(old_key);
                }
                _ => {
                    plan.outcome.added.push(name.clone());
                    plan.changes.push(FunctionChange::Add(service));
                }
            }
        }
        for (name, old) in before {
            if self.services.contains_key(name) {
                plan.changes.push(FunctionChange::Remove(name.to_owned()));
                plan.released.push(keys_before.key(old));
            }
            plan.outcome.removed.push(name.to_owned());
        }
        plan.outcome.removed.sort_unstable();
        if self.bindings.open_count() + plan.opened.len() > FUNCTIONS_MAX {
            return Err(
                "too many functions that were removed still drain: try again when they are gone".into()
            );
        }
        Ok(())
    }

    fn plan_pools(&self, config: &Config, plan: &mut Plan) -> Result<(), String> {
        for backend in &config.backends {
            let name = &backend.name;
            let credentials = setup::credentials(backend);
            let same = self.config.backend(name).is_some_and(|old| old.is_same(backend))
                && self.credentials.get(name) == Some(&credentials);
            plan.credentials.insert(name.clone(), credentials);
            if let (true, Some(Ok(pool))) = (same, self.pools.get(name)) {
                plan.pools.insert(name.clone(), Ok(pool.clone()));
                continue;
            }
            let pool = match problem(backend.check_host()) {
                Some(problem) if !same => Err(problem),
                _ => setup::pool(backend, &self.quotas).map_err(|error| error.to_string()),
            };
            match &pool {
                Ok(_) => drop(plan.fresh.insert(name.clone())),
                Err(error) if same => tracing::error!(backend = name, "{error}"),
                Err(error) => return Err(format!("backend {name}: {error}")),
            }
            plan.pools.insert(name.clone(), pool);
        }
        Ok(())
    }

    /// A new service, with the listener that it has already or a new one.
    fn service(
        &self,
        config: &Config,
        function: &Function,
        key: ListenerKey,
        listener: Option<&Arc<OwnedFd>>,
        plan: &mut Plan,
    ) -> Result<Service, String> {
        if let Some(problem) = problem(function.check_host()) {
            return Err(problem);
        }
        let bound = match listener {
            Some(listener) => self.bindings.renew(function, key, listener),
            None => self.bindings.open(function, key),
        };
        let bound = bound.map_err(|error| error.to_string())?;
        if listener.is_none() {
            plan.opened.push((key, Arc::clone(&bound.listener)));
        }
        setup::service(config, function, &self.drivers, &plan.pools, bound)
    }

    async fn apply(&mut self, config: Config, plan: Plan) -> ReloadOutcome {
        let Plan { changes, outcome, services, pools, credentials, fresh, unavailable, opened, released } =
            plan;
        pools.values().flatten().for_each(|pool| pool.start(&self.data));
        self.node.change(changes).await;
        for (key, listener) in &opened {
            self.manager.store_listener(*key, listener);
        }
        for key in released {
            self.manager.remove_listener(key);
        }
        let old = std::mem::replace(&mut self.pools, pools);
        let gone = |name: &String| fresh.contains(name) || !self.pools.contains_key(name);
        old.into_iter()
            .filter(|(name, _)| gone(name))
            .filter_map(|(_, pool)| pool.ok())
            .for_each(|pool| pool.close());
        (self.config, self.services, self.credentials) = (config, services, credentials);
        self.bindings.forget_closed();
        let keys = BindingKeys::of(&self.config);
        for function in &self.config.functions {
            if let Some(service) = self.services.get(&function.name) {
                self.bindings.record(function, keys.key(function), &service.resources.listener);
            }
        }
        self.overview.send_replace(Overview { pools: running(&self.config, &self.pools), unavailable });
        outcome
    }
}

/// The pools that run, in the order of the file.
fn running(config: &Config, pools: &Pools) -> Vec<Pool> {
    config.backends.iter().filter_map(|backend| pools.get(&backend.name)?.as_ref().ok().cloned()).collect()
}

/// Unlike at the start, what cannot work is refused: something that works may have its place.
fn problem(problems: Vec<Problem>) -> Option<String> {
    problems.first().map(ToString::to_string)
}
