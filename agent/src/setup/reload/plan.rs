//! From two configurations to what changes between them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use headstart_config::{Config, Function, Problem};
use headstart_ebpf::maps::FUNCTIONS_MAX;

use super::Reload;
use crate::api::{ReloadOutcome, Unavailable};
use crate::manager::ListenerKey;
use crate::node::{FunctionChange, Service};
use crate::serve::front::FIRST_FRONT;
use crate::serve::{BindingKeys, is_listening};
use crate::setup::front::FrontPlan;
use crate::setup::{self, Credentials, Pools, ReloadRefusal, ServiceError, unavailable};

/// What a new configuration comes to, while it can still be refused.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) changes: Vec<FunctionChange>,
    pub(super) outcome: ReloadOutcome,
    pub(super) services: HashMap<String, Service>,
    pub(super) pools: Pools,
    pub(super) credentials: HashMap<String, Credentials>,
    /// Backends whose pool is a new one.
    pub(super) fresh: BTreeSet<String>,
    pub(super) unavailable: Vec<Unavailable>,
    /// New listeners.
    pub(super) opened: Vec<(ListenerKey, Arc<OwnedFd>)>,
    /// Listeners that no function has from now on.
    pub(super) released: Vec<ListenerKey>,
    /// The fronts, with the certificates as they are now. `None`: as they were.
    pub(super) fronts: Option<FrontPlan>,
    /// Functions that wait for the listeners of others.
    pub(super) heirs: BTreeMap<String, (ListenerKey, Service)>,
}

impl Plan {
    fn remove(&mut self, name: &str, key: ListenerKey, has_heir: bool) {
        self.changes.push(FunctionChange::Remove { name: name.to_owned(), has_heir });
        if !has_heir {
            self.released.push(key);
        }
    }
}

impl Reload {
    /// Compares the configurations and makes what is new.
    ///
    /// # Errors
    /// Why the new one is refused: what was made is in `plan`.
    pub(super) fn plan(&self, config: &Config, plan: &mut Plan) -> Result<(), ReloadRefusal> {
        self.plan_pools(config, plan)?;
        let (keys, keys_before) = (BindingKeys::of(config), BindingKeys::of(&self.config));
        let inherited = self.inherited(config);
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
            // One that an instance has ended is bound anew.
            let listener = listener.filter(|listener| is_listening(listener));
            let of_another = self.bindings.listener(key);
            let of_another = of_another.filter(|_| inherited.contains(&key) && (served.is_none() || !stays));
            let listener = listener.or(of_another.as_ref());
            let mut service = match self.service(config, function, key, listener, plan) {
                Ok(service) => service,
                Err(reason) if same => {
                    plan.outcome.unavailable.push(name.clone());
                    plan.unavailable.push(unavailable(function, &reason));
                    continue;
                }
                Err(source) => return Err(ReloadRefusal::Function { name: name.clone(), source }),
            };
            if stays && let Some(served) = served {
                // Fronts and their memory of clients keep it: there is one for a function, as long as that has its number.
                service.doorbell = Arc::clone(&served.doorbell);
            }
            if of_another.is_some() {
                match (served, old_key) {
                    (Some(_), Some(old_key)) => {
                        plan.outcome.replaced.push(name.clone());
                        plan.remove(name, old_key, inherited.contains(&old_key));
                    }
                    _ if same => plan.outcome.unavailable.push(name.clone()),
                    _ => plan.outcome.added.push(name.clone()),
                }
                let reason = format!("waits until the function that had {} is gone", function.listen);
                plan.unavailable.push(Unavailable::new(name.clone(), reason));
                plan.heirs.insert(name.clone(), (key, service));
                continue;
            }
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
                    plan.remove(name, old_key, inherited.contains(&old_key));
                    plan.changes.push(FunctionChange::Add(service));
                }
                _ => {
                    plan.outcome.added.push(name.clone());
                    plan.changes.push(FunctionChange::Add(service));
                }
            }
        }
        for (name, old) in before {
            if self.services.contains_key(name) {
                let key = keys_before.key(old);
                plan.remove(name, key, inherited.contains(&key));
            }
            plan.outcome.removed.push(name.to_owned());
        }
        plan.outcome.removed.sort_unstable();
        plan.fronts = Some(self.fronts.plan(config, &self.bindings)?);
        // The new configuration no longer has a function that waited.
        let given_up = self.heirs.waiting.values().map(|(key, _)| *key);
        plan.released.extend(given_up.filter(|key| !inherited.contains(key)));
        if self.bindings.open_count() + plan.opened.len()
            > usize::try_from(FIRST_FRONT).unwrap_or(FUNCTIONS_MAX)
        {
            return Err(ReloadRefusal::TooMany);
        }
        Ok(())
    }

    fn plan_pools(&self, config: &Config, plan: &mut Plan) -> Result<(), ReloadRefusal> {
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
                Some(problem) if !same => Err(problem.to_string()),
                _ => setup::pool(backend, &self.quotas).map_err(|error| error.to_string()),
            };
            match &pool {
                Ok(_) => drop(plan.fresh.insert(name.clone())),
                Err(error) if same => tracing::error!(backend = name, "{error}"),
                Err(reason) => {
                    return Err(ReloadRefusal::Backend { name: name.clone(), reason: reason.clone() });
                }
            }
            plan.pools.insert(name.clone(), pool);
        }
        Ok(())
    }

    /// A new service, with the listener that it has already or a new one.
    pub(super) fn service(
        &self,
        config: &Config,
        function: &Function,
        key: ListenerKey,
        listener: Option<&Arc<OwnedFd>>,
        plan: &mut Plan,
    ) -> Result<Service, ServiceError> {
        if let Some(problem) = problem(function.check_host()) {
            return Err(ServiceError::Host(problem));
        }
        let bound = match listener {
            Some(listener) => self.bindings.renew(function, key, listener),
            None => self.bindings.open(function, key),
        }?;
        if listener.is_none() {
            plan.opened.push((key, Arc::clone(&bound.listener)));
        }
        setup::service(config, function, &self.drivers, &plan.pools, bound)
    }
}

/// Unlike at the start, what cannot work is refused: it would take the place of something that works.
fn problem(problems: Vec<Problem>) -> Option<Problem> {
    problems.into_iter().next()
}
