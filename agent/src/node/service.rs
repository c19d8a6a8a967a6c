//! A function as the node serves it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headstart_config::{Contract, FreezeBackends, Overload, RequireAuth};

use crate::event::Policy;
use crate::inject::Resources;
use crate::serve::Doorbell;
use crate::start::FunctionRuntime;
use crate::syn::Route;

/// The settings of a function, made from the configuration.
#[derive(Clone)]
pub struct Service {
    /// Configured name.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What clients may put into their SYN to name it.
    pub id: Option<u32>,
    /// What clients without a key may do.
    pub require_auth: RequireAuth,
    /// Its listener is a hidden one: see [`Route::steered`].
    pub steered: bool,
    /// The settings that decisions depend on.
    pub policy: Policy,
    /// How the agent answers clients that no instance will serve in time.
    pub overload: Overload,
    /// Whether a frozen instance keeps its backend connections.
    pub freeze_backends: FreezeBackends,
    /// The time between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// How its instances get their connections.
    pub contract: Contract,
    /// Makes its containers.
    pub runtime: Arc<dyn FunctionRuntime>,
    /// By which fronts ask for it.
    pub doorbell: Arc<Doorbell>,
    /// What its instances are given.
    pub resources: Resources,
    /// Identifies its configuration: the notes of instances carry it.
    pub fingerprint: String,
}

impl Service {
    /// How clients reach it.
    #[must_use]
    pub fn route(&self) -> Route {
        Route {
            listen: self.listen,
            id: self.id,
            auth: self.require_auth,
            steered: self.steered,
            listener: Arc::clone(&self.resources.listener),
        }
    }
}
