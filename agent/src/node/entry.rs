//! One function, with everything the node holds for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headstart_config::RequireAuth;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::decision::{self, Action, Policy};
use crate::event::{FunctionId, InstanceId};
use crate::inject::Dowry;
use crate::measure;
use crate::serve::Watch;
use crate::start::{Parked, Runtime};

/// A function as the node needs it.
pub struct Service {
    /// Configured name.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What clients may put into their SYN to name it.
    pub id: Option<u32>,
    /// What clients without a key may do.
    pub require_auth: RequireAuth,
    /// What decisions depend on.
    pub policy: Policy,
    /// From SIGTERM to the kill.
    pub stop_grace: Duration,
    /// How its containers are made.
    pub runtime: Arc<dyn Runtime>,
    /// What its instances are given.
    pub dowry: Dowry,
}

/// A function as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub struct FunctionStatus {
    /// Configured name.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What clients may put into their SYN to name it.
    pub id: Option<u32>,
    /// What clients need a key for: `no`, `wake` or `connect`.
    pub require_auth: &'static str,
    /// `oci`, `docker` or `process`.
    pub runtime: &'static str,
    /// See [`decision::Phase`].
    pub state: &'static str,
    /// Containers that wait to be let go.
    pub prepared: usize,
    /// Containers that are being created.
    pub preparing: u32,
    /// Instances that were let go and are not known to be gone.
    pub instances: usize,
    /// Ended or discarded containers whose traces are being removed.
    pub removing: usize,
    /// What went wrong last, with a container or an instance, until one is ready.
    pub last_error: Option<String>,
    /// Until a start, or a container, that failed is tried again.
    pub retry_in_seconds: Option<f64>,
}

/// A function and its containers.
pub(super) struct Entry {
    pub(super) service: Service,
    pub(super) state: decision::Function,
    pub(super) watch: Watch,
    /// Parked containers, each with the task that notices its death.
    pub(super) parked: HashMap<InstanceId, (Parked, AbortHandle)>,
    pub(super) running: HashMap<InstanceId, mpsc::Sender<()>>,
    pub(super) removing: usize,
    pub(super) last_error: Option<String>,
}

impl Entry {
    pub(super) fn new(number: FunctionId, service: Service) -> Self {
        measure::declare(&service.name);
        let watch = Watch::new(Arc::clone(&service.dowry.listener));
        let state = decision::Function::new(number, service.policy);
        Self {
            service,
            state,
            watch,
            parked: HashMap::new(),
            running: HashMap::new(),
            removing: 0,
            last_error: None,
        }
    }

    /// Nothing runs, is parked, or is being made or removed.
    pub(super) fn is_gone(&self) -> bool {
        let none = self.parked.is_empty() && self.running.is_empty();
        none && self.state.preparing() == 0 && self.removing == 0
    }

    pub(super) fn status(&self) -> FunctionStatus {
        FunctionStatus {
            name: self.service.name.clone(),
            listen: self.service.listen,
            id: self.service.id,
            require_auth: self.service.require_auth.as_str(),
            runtime: self.service.runtime.name(),
            state: self.state.phase().as_str(),
            prepared: self.state.parked(),
            preparing: self.state.preparing(),
            instances: self.running.len(),
            removing: self.removing,
            last_error: self.last_error.clone(),
            retry_in_seconds: self.retry_in().map(|pause| pause.as_secs_f64()),
        }
    }

    fn retry_in(&self) -> Option<Duration> {
        let pause_ns = self.state.retry_at_ns()?.checked_sub(measure::now_ns())?;
        Some(Duration::from_nanos(pause_ns))
    }

    /// Counts an action that starts, stops, or declines to.
    pub(super) fn record(&self, action: &Action) {
        let (action, reason) = match action {
            Action::Prepare(_, reason) => ("prepare", reason.as_str()),
            Action::Release(_, demand) => ("start", demand.trigger.as_str()),
            Action::Stop(_, reason) => ("stop", reason.as_str()),
            Action::Suppress(_, reason) => {
                measure::record_suppressed(*reason);
                ("suppress", reason.as_str())
            }
            Action::Unused => {
                measure::record_unused(&self.service.name);
                return;
            }
            Action::Discard(_) | Action::Watch | Action::Unwatch | Action::Warm(_) | Action::Timer(_) => {
                return;
            }
        };
        measure::record_decision(&self.service.name, action, reason);
    }

    pub(super) fn scrape(&self) {
        let phase = self.state.phase().as_str();
        for state in ["starting", "ready", "stopping"] {
            measure::scrape::instances(&self.service.name, state, usize::from(state == phase));
        }
        measure::scrape::instances(&self.service.name, "parked", self.state.parked());
        measure::scrape::budget(Some(&self.service.name), self.state.rate());
    }
}
