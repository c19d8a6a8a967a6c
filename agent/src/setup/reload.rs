//! `reload`: reads the configuration again while functions are served.
//!
//! All or nothing: until everything new is there (listeners, pools, keys) nothing changes, and a configuration that
//! cannot be set up leaves the running one as it is, and the refusal says why.
//!
//! ```text
//! new name                        added
//! other listen, or place on it    removed and added: another listener, also that of a function which gives it up
//! other command, backend,
//!   password or certificate       replaced: old instances drain, new ones serve from now on
//! other deadline, limit, ...      changed: instances stay
//! gone                            removed: instances drain, clients are answered, then the listener closes
//! ```
//!
//! `[agent]` and `[syn]` are read only when the agent starts. A function whose port was busy is tried again (`retry.rs`).

mod ended;
mod heirs;
mod plan;
mod retry;

use std::collections::HashMap;
use std::path::PathBuf;

use headstart_config::Config;
use headstart_injector::{Pool, ServerQuotas};
use tokio::runtime::Handle as DataHandle;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};

use self::ended::EndedListeners;
use self::heirs::Heirs;
use self::plan::Plan;
use self::retry::Retry;
use crate::api::server::{Overview, ReloadRequest};
use crate::api::{ReloadOutcome, Unavailable};
use crate::manager::ServiceManager;
use crate::measure;
use crate::node::{FunctionChange, NodeHandle, Service};
use crate::privilege;
use crate::serve::{BindingKeys, Bindings};
use crate::setup::front::Fronts;
use crate::setup::{self, Credentials, Pools, ReloadRefusal, ServingSet};
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
    /// Functions whose listener an instance has ended.
    ended: EndedListeners,
    /// Functions that wait for the listeners of others.
    heirs: Heirs,
    /// What is configured and cannot be served.
    unavailable: Vec<Unavailable>,
    manager: ServiceManager,
    keys: Option<KeyStore>,
    node: NodeHandle,
    /// Where new pools run.
    data: DataHandle,
    /// When what is not served is tried again.
    retry: Retry,
    fronts: Fronts,
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
        let ServingSet { services, drivers, bindings, pools, quotas, unavailable, fronts } = served;
        let services: HashMap<_, _> =
            services.into_iter().map(|service| (service.name.clone(), service)).collect();
        let overview = watch::Sender::new(Overview::default());
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
            ended: EndedListeners::new(),
            heirs: Heirs::default(),
            unavailable,
            manager,
            keys: None,
            node,
            data,
            retry: Retry::begin(),
            fronts,
        };
        let backends = reload.config.backends.iter();
        reload.credentials =
            backends.map(|backend| (backend.name.clone(), setup::credentials(backend))).collect();
        reload.publish();
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

    /// Shows what runs and what does not.
    fn publish(&mut self) {
        self.fronts.lead(&self.config, &self.services, &self.node, &self.data);
        self.overview.send_replace(Overview {
            pools: running(&self.config, &self.pools),
            unavailable: self.unavailable.clone(),
            without_listener: self.without_listener(),
            fronts: self.fronts.views(),
        });
    }

    /// Reads it at each SIGHUP and each request, until the server of the API has ended. In between it binds listeners anew
    /// that instances have ended, and tries to serve what could not be served.
    pub async fn run(mut self, mut requests: mpsc::Receiver<ReloadRequest>, mut hangup: Signal) {
        loop {
            let request = tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
                Some(()) = hangup.recv() => None,
                (name, pause) = self.ended.next() => {
                    self.renew_listener(name, pause).await;
                    continue;
                }
                () = self.heirs.due() => {
                    self.succeed().await;
                    continue;
                }
                () = self.retry.due(), if self.has_unavailable() => {
                    self.retry().await;
                    continue;
                }
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
                let _ = request.send(outcome.map_err(|refusal| refusal.to_string()));
            }
        }
    }

    async fn reload(&mut self) -> Result<ReloadOutcome, ReloadRefusal> {
        let file = self.file.clone();
        // Parsing takes time, and clients must not wait meanwhile.
        let config = tokio::task::spawn_blocking(move || Config::load(&file)).await;
        let config = config?.map_err(ReloadRefusal::Config)?;
        for (section, same) in
            [("agent", self.config.agent == config.agent), ("syn", self.config.syn == config.syn)]
        {
            if !same {
                return Err(ReloadRefusal::Section(section));
            }
        }
        setup::DescriptorNeeds::of(&config).check()?;
        self.privileges(&config)?;
        let mut plan = Plan::default();
        let planned = self.plan(&config, &mut plan).and_then(|()| {
            let keys = self.keys.as_mut().map(KeyStore::reload).transpose();
            plan.outcome.keys = keys?.flatten();
            Ok(())
        });
        if let Err(refusal) = planned {
            plan.fresh.iter().filter_map(|name| plan.pools.get(name)?.as_ref().ok()).for_each(Pool::close);
            return Err(refusal);
        }
        Ok(self.apply(config, plan).await)
    }

    /// The agent cannot get back the capabilities that it gave up when it had started.
    fn privileges(&self, config: &Config) -> Result<(), ReloadRefusal> {
        let needs =
            |config: &Config| privilege::needs(config, self.drivers.capabilities(&config.functions), false);
        let missing = privilege::missing(needs(config), needs(&self.config))?;
        if missing.is_empty() { Ok(()) } else { Err(ReloadRefusal::Privileges(missing)) }
    }

    async fn apply(&mut self, config: Config, plan: Plan) -> ReloadOutcome {
        let Plan {
            mut changes,
            outcome,
            services,
            pools,
            credentials,
            fresh,
            unavailable,
            opened,
            released,
            heirs,
            fronts,
        } = plan;
        self.heirs.waiting = heirs;
        pools.values().flatten().for_each(|pool| pool.start(&self.data));
        if let Some(plan) = fronts {
            self.fronts.apply(plan, &mut self.bindings, &self.manager);
        }
        changes.push(FunctionChange::Fronts(self.fronts.routes()));
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
        self.unavailable = unavailable;
        self.retry = Retry::begin();
        self.publish();
        outcome
    }
}

/// The pools that run, in the order of the file.
fn running(config: &Config, pools: &Pools) -> Vec<Pool> {
    config.backends.iter().filter_map(|backend| pools.get(&backend.name)?.as_ref().ok().cloned()).collect()
}
