//! The fronts: from their configuration to what accepts, at the start and at a reload.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use headstart_config::{Carry, Config, Front as FrontConfig, Function, Problem, RequireAuth};
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::runtime::Handle as DataHandle;

use super::error::ReloadRefusal;
use crate::api::server::FrontView;
use crate::api::{CertificateStatus, FrontStatus};
use crate::event::FunctionId;
use crate::manager::{ListenerKey, ServiceManager};
use crate::measure;
use crate::node::{NodeHandle, Service};
use crate::serve::front::{
    CertificateError, Certificates, FIRST_FRONT, FrontSettings, Routes as FrontRoutes, RunningFront, Target,
    reachable, server_config,
};
use crate::serve::{BindingError, Bindings};
use crate::syn::{Route, Routes};

/// Why a front does not accept.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// Its address cannot be had.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// A certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// TLS cannot be had.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// All fronts.
#[derive(Default)]
pub struct Fronts {
    open: BTreeMap<String, OpenFront>,
    /// Those that cannot accept at present, and why.
    lacking: BTreeMap<String, (FrontConfig, String)>,
}

/// A front with its listener.
struct OpenFront {
    config: FrontConfig,
    /// In the kernel half.
    number: Option<FunctionId>,
    listener: Arc<OwnedFd>,
    tls: Option<Identity>,
    /// Functions that it leads to.
    functions: Vec<String>,
    running: Option<RunningFront>,
}

/// What a front speaks TLS with.
#[derive(Clone)]
struct Identity {
    certificates: Arc<Certificates>,
    config: Arc<ServerConfig>,
}

/// The fronts of a configuration that can still be refused.
pub(super) struct FrontPlan {
    fronts: Vec<PlannedFront>,
    lacking: BTreeMap<String, (FrontConfig, String)>,
}

struct PlannedFront {
    config: FrontConfig,
    tls: Option<Identity>,
    listener: Arc<OwnedFd>,
    is_new: bool,
}

impl Identity {
    /// Reads what a front names; `None` if it speaks plain HTTP.
    fn read(front: &FrontConfig) -> Result<Option<Self>, FrontError> {
        if front.certificates.is_empty() {
            return Ok(None);
        }
        let certificates = Arc::new(Certificates::read(&front.certificates, front.default.is_some())?);
        let alpn = match front.carry {
            Carry::Requests => &["h2".to_owned(), "http/1.1".to_owned()][..],
            Carry::Bytes => &front.alpn,
        };
        let config = server_config(Arc::clone(&certificates), alpn)?;
        let now = SystemTime::now();
        for complaint in certificates.list().iter().filter_map(|one| one.complaint(now)) {
            tracing::warn!(front = front.name, "{complaint}");
        }
        Ok(Some(Self { certificates, config }))
    }
}

impl Fronts {
    /// Opens them, or takes over what an earlier agent had. They do not accept yet.
    pub(super) fn open(config: &Config, bindings: &mut Bindings, manager: &mut ServiceManager) -> Self {
        let mut fronts = Self::default();
        for front in &config.fronts {
            let key = ListenerKey::Bound(front.listen);
            let opened = Identity::read(front)
                .and_then(|tls| Ok((tls, bindings.inherit(front, key, manager)?.listener)));
            match opened {
                Ok((tls, listener)) => {
                    bindings.record(front, key, &listener);
                    fronts.open.insert(front.name.clone(), OpenFront::new(front, tls, listener));
                }
                Err(error) => {
                    tracing::error!(front = front.name, "not served: {error}");
                    fronts.lacking.insert(front.name.clone(), (front.clone(), error.to_string()));
                }
            }
        }
        fronts.number();
        fronts
    }

    /// Whether a front of this name cannot accept at present.
    #[must_use]
    pub fn lack(&self, name: &str) -> bool {
        self.lacking.contains_key(name)
    }

    /// Whether there is such a front.
    pub(super) fn has_lacking(&self) -> bool {
        !self.lacking.is_empty()
    }

    /// Opens what a new configuration has, and reads all certificates again.
    pub(super) fn plan(&self, config: &Config, bindings: &Bindings) -> Result<FrontPlan, ReloadRefusal> {
        let mut plan = FrontPlan { fronts: Vec::new(), lacking: BTreeMap::new() };
        for front in &config.fronts {
            match self.plan_front(front, bindings) {
                Ok(planned) => plan.fronts.push(planned),
                // It was not served before either.
                Err(error) if self.lacking.get(&front.name).is_some_and(|(before, _)| before == front) => {
                    plan.lacking.insert(front.name.clone(), (front.clone(), error.to_string()));
                }
                Err(source) => return Err(ReloadRefusal::Front { name: front.name.clone(), source }),
            }
        }
        Ok(plan)
    }

    fn plan_front(&self, front: &FrontConfig, bindings: &Bindings) -> Result<PlannedFront, FrontError> {
        let (config, tls) = (front.clone(), Identity::read(front)?);
        let key = ListenerKey::Bound(front.listen);
        let same = self.open.get(&front.name).filter(|open| open.config.listen == front.listen);
        let bound = match same {
            Some(open) => bindings.renew(front, key, &open.listener),
            None => bindings.open(front, key),
        }?;
        Ok(PlannedFront { config, tls, listener: bound.listener, is_new: same.is_none() })
    }

    /// Takes a plan. [`Self::lead`] follows.
    pub(super) fn apply(&mut self, plan: FrontPlan, bindings: &mut Bindings, manager: &ServiceManager) {
        let mut before = std::mem::take(&mut self.open);
        let mut stay = Vec::new();
        for PlannedFront { config, tls, listener, is_new } in plan.fronts {
            let key = ListenerKey::Bound(config.listen);
            let old = before.get_mut(&config.name).filter(|_| !is_new);
            let number = old.as_ref().and_then(|old| old.number);
            let running = old.filter(|old| old.config.connections == config.connections);
            let running = running.and_then(|old| old.running.take());
            if is_new {
                manager.store_listener(key, &listener);
            }
            bindings.record(&config, key, &listener);
            stay.push(key);
            let front = OpenFront { running, number, ..OpenFront::new(&config, tls, listener) };
            self.open.insert(config.name.clone(), front);
        }
        for gone in before.into_values().map(|front| ListenerKey::Bound(front.config.listen)) {
            if !stay.contains(&gone) {
                manager.remove_listener(gone);
            }
        }
        self.lacking = plan.lacking;
        self.number();
    }

    /// Tries to open what could not be opened. True when one is open now.
    pub(super) fn retry(&mut self, bindings: &mut Bindings, manager: &ServiceManager) -> bool {
        let mut any = false;
        for (name, (config, reason)) in std::mem::take(&mut self.lacking) {
            match self.plan_front(&config, bindings) {
                Ok(PlannedFront { config, tls, listener, .. }) => {
                    let key = ListenerKey::Bound(config.listen);
                    tracing::info!(front = name, "served now: what had been in the way is gone");
                    manager.store_listener(key, &listener);
                    bindings.record(&config, key, &listener);
                    self.open.insert(name, OpenFront::new(&config, tls, listener));
                    any = true;
                }
                Err(_) => drop(self.lacking.insert(name, (config, reason))),
            }
        }
        self.number();
        any
    }

    /// Leads the clients of all fronts to what is served now.
    pub(super) fn lead(
        &mut self,
        config: &Config,
        services: &HashMap<String, Service>,
        node: &NodeHandle,
        data: &DataHandle,
    ) {
        for front in self.open.values_mut() {
            let settings = Arc::new(front.settings(config, services));
            if let Some(running) = &front.running {
                running.set(settings);
                continue;
            }
            let most = front.config.connections;
            match RunningFront::start(&front.listener, settings, most, Arc::new(node.clone()), data) {
                Ok(running) => front.running = Some(running),
                Err(error) => tracing::error!(front = front.config.name, "cannot accept: {error}"),
            }
        }
    }

    /// How the kernel half sees the SYNs of their clients.
    #[must_use]
    pub fn routes(&self) -> Routes {
        let route = |front: &OpenFront| Route {
            listen: front.config.listen,
            id: None,
            auth: RequireAuth::No,
            steered: false,
            listener: Arc::clone(&front.listener),
        };
        self.open.values().filter_map(|front| Some((front.number?, route(front)))).collect()
    }

    /// Gives each front a number that has none. What is known of where clients go is by these.
    fn number(&mut self) {
        let taken: BTreeSet<_> = self.open.values().filter_map(|front| front.number).collect();
        let mut free = (FIRST_FRONT..).filter(|number| !taken.contains(number));
        for front in self.open.values_mut().filter(|front| front.number.is_none()) {
            front.number = free.next();
        }
    }

    /// What the API shows.
    pub(super) fn views(&self) -> Vec<FrontView> {
        let open = self.open.values().map(|front| FrontView {
            status: front.status(),
            count: front.running.as_ref().map(RunningFront::count),
        });
        let lacking = self.lacking.values().map(|(config, reason)| FrontView {
            status: FrontStatus { error: Some(reason.clone()), ..status(config) },
            count: None,
        });
        open.chain(lacking).collect()
    }
}

impl OpenFront {
    fn new(config: &FrontConfig, tls: Option<Identity>, listener: Arc<OwnedFd>) -> Self {
        measure::declare_front(&config.name);
        Self { config: config.clone(), number: None, listener, tls, functions: Vec::new(), running: None }
    }

    fn settings(&mut self, config: &Config, services: &HashMap<String, Service>) -> FrontSettings {
        let front = &self.config;
        let target =
            |function: &Function| services.get(&function.name).and_then(|one| target(one).ok()).map(Arc::new);
        let mut routes = FrontRoutes::default();
        self.functions.clear();
        for function in &config.functions {
            let is_default = front.default.as_ref() == Some(&function.name);
            // The bytes of a connection do not show a path before it is made.
            let by_host =
                !function.hosts.is_empty() && (front.carry == Carry::Requests || function.paths.is_empty());
            if !is_default && !by_host {
                continue;
            }
            let target = target(function);
            if is_default {
                routes.set_default(target.clone());
            }
            if by_host {
                routes.add(target, &function.hosts, &function.paths);
            }
            self.functions.push(function.name.clone());
        }
        FrontSettings {
            name: front.name.clone(),
            number: self.number.unwrap_or(FIRST_FRONT),
            tls: self.tls.as_ref().map(|tls| Arc::clone(&tls.config)),
            carry: front.carry,
            proxy_protocol: front.proxy_protocol,
            routes,
            source_connections: front.source_connections,
            handshake_timeout: front.handshake_timeout,
            idle_timeout: front.idle_timeout,
        }
    }

    fn status(&self) -> FrontStatus {
        let now = SystemTime::now();
        let certificates = self.tls.iter().flat_map(|tls| tls.certificates.list());
        let certificates = certificates.map(|one| CertificateStatus {
            file: one.file.display().to_string(),
            names: one.names.clone(),
            expires_unix: one.not_after.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            complaint: one.complaint(now),
        });
        FrontStatus {
            certificates: certificates.collect(),
            functions: self.functions.clone(),
            ..status(&self.config)
        }
    }
}

/// Of a front that is not open.
fn status(config: &FrontConfig) -> FrontStatus {
    FrontStatus {
        name: config.name.clone(),
        listen: config.listen,
        carry: config.carry.as_str().to_owned(),
        connections: 0,
        connections_max: config.connections,
        certificates: Vec::new(),
        functions: Vec::new(),
        error: None,
    }
}

/// The way to a function.
fn target(service: &Service) -> io::Result<Target> {
    let bound = SockRef::from(&*service.resources.listener).local_addr()?;
    let bound = bound.as_socket().ok_or_else(|| io::Error::other("it is no socket of TCP"))?;
    Ok(Target {
        function: service.name.clone(),
        address: reachable(bound),
        doorbell: Arc::clone(&service.doorbell),
        needs_key: service.require_auth != RequireAuth::No,
    })
}

/// Certificates that clients will refuse, and hosts without one.
pub(crate) fn problems(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let now = SystemTime::now();
    for front in config.fronts.iter().filter(|front| !front.certificates.is_empty()) {
        let mut problem = |message: String| problems.push(front.origin.problem("certificates", message));
        let certificates = match Certificates::read(&front.certificates, front.default.is_some()) {
            Ok(certificates) => certificates,
            Err(error) => {
                problem(error.to_string());
                continue;
            }
        };
        for certificate in certificates.list().iter().filter(|one| one.is_invalid(now)) {
            problem(certificate.complaint(now).unwrap_or_default());
        }
        for function in &config.functions {
            if front.carry == Carry::Bytes && !function.paths.is_empty() {
                continue;
            }
            for host in function.hosts.iter().filter(|host| !certificates.cover(host)) {
                let message =
                    format!("no certificate of front {:?} is for {host}: add one there", front.name);
                problems.push(function.origin.problem("hosts", message));
            }
        }
    }
    problems
}
