//! Where the connections of functions come in, and what outlives a reload of that.
//!
//! There are two kinds: a *port*, where the function's instances accept, and a *front*, where the agent accepts by itself
//! ([`super::front`]). The agent opens the listeners of both. What the rest of the agent knows of a binding is
//! [`BoundListener`]; how it is opened, inherited and closed to unauthenticated clients is decided here, from what its
//! [`BindingOwner`] says.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use headstart_config::{Config, Front, Function, RequireAuth};
use socket2::SockRef;

use super::listener::{self, ListenError};
use super::queue::is_listening;
use crate::manager::{ListenerKey, ServiceManager};
use crate::syn::{ListenerSupport, SynError};

/// Why a function has no binding.
#[derive(Debug, thiserror::Error)]
pub enum BindingError {
    /// It needs the socket lookup to have a part of a shared port.
    #[error(
        "it shares {listen}, and the kernel cannot give it its connections ({why}): give it a port of its own"
    )]
    NotSteered {
        /// The shared address.
        listen: SocketAddr,
        /// What is missing.
        why: String,
    },
    /// It must be closed to clients without a key, and the kernel half is not there.
    #[error("require_auth = \"connect\" cannot be kept: {0}")]
    NotClosed(String),
    /// Another function or front has it, also one that is being removed.
    #[error(
        "{listen} is taken by the {owner}: remove that one first, and add this one when `headstart status` no \
         longer shows it"
    )]
    Taken {
        /// The address.
        listen: SocketAddr,
        /// The other one.
        owner: String,
    },
    /// It cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The process has no more descriptors.
    #[error("its listener cannot be used again: {0}")]
    Descriptor(#[from] io::Error),
}

/// Whose binding it is, and what that asks of it.
pub struct BindingOwner<'a> {
    kind: &'static str,
    name: &'a str,
    listen: SocketAddr,
    backlog: u16,
    require_auth: RequireAuth,
}

impl<'a> From<&'a Function> for BindingOwner<'a> {
    fn from(function: &'a Function) -> Self {
        let Function { name, listen, backlog, require_auth, .. } = function;
        Self { kind: "function", name, listen: *listen, backlog: *backlog, require_auth: *require_auth }
    }
}

impl<'a> From<&'a Front> for BindingOwner<'a> {
    fn from(front: &'a Front) -> Self {
        let Front { name, listen, backlog, .. } = front;
        Self { kind: "front", name, listen: *listen, backlog: *backlog, require_auth: RequireAuth::No }
    }
}

/// A binding that is open.
#[derive(Clone)]
pub struct BoundListener {
    /// From where instances accept.
    pub listener: Arc<OwnedFd>,
    /// Only the socket lookup leads to it.
    pub steered: bool,
}

/// Which binding each function of a configuration has.
pub struct BindingKeys {
    /// The addresses that several functions share.
    shared: HashSet<SocketAddr>,
}

impl BindingKeys {
    /// Of this configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut seen = HashSet::new();
        let listen = config.functions.iter().map(|function| function.listen);
        Self { shared: listen.filter(|listen| !seen.insert(*listen)).collect() }
    }

    /// Functions with an ID on a port of several have a listener that only the socket lookup leads to; the port itself
    /// belongs to the one without.
    #[must_use]
    pub fn key(&self, function: &Function) -> ListenerKey {
        match function.id {
            Some(id) if self.shared.contains(&function.listen) => ListenerKey::Hidden(function.listen, id),
            _ => ListenerKey::Bound(function.listen),
        }
    }
}

/// Whether every port can be bound that was not inherited. Instances of an earlier agent hold the sockets that they were
/// given.
#[must_use]
pub fn ports_are_free(config: &Config, manager: &ServiceManager) -> bool {
    let fronts = config.fronts.iter().map(|front| front.listen);
    let bound = config.functions.iter().map(|function| function.listen).chain(fronts);
    bound.filter(|listen| !manager.has_listener(ListenerKey::Bound(*listen))).all(listener::is_free)
}

/// Every binding that may be open, also those of functions that are being removed.
pub struct Bindings {
    support: Result<ListenerSupport, String>,
    records: HashMap<ListenerKey, ListenerRecord>,
}

/// A listener that may be open.
struct ListenerRecord {
    owner: String,
    listener: Weak<OwnedFd>,
    /// It is, or was, closed to unauthenticated clients: its filter stays, and asks the kernel's table.
    guarded: bool,
}

impl ListenerRecord {
    /// One that an instance has ended is not.
    fn is_open(&self) -> bool {
        self.listener.upgrade().is_some_and(|listener| is_listening(&listener))
    }
}

/// A binding before it is open.
struct Binding<'a> {
    /// What it will be bound to.
    address: SocketAddr,
    steered: bool,
    /// Closes it to unauthenticated clients.
    gate: Option<&'a ListenerSupport>,
}

impl Binding<'_> {
    /// Closes a listener to unauthenticated clients, if the function requires that.
    fn guard(&self, listener: BorrowedFd<'_>) -> Result<(), SynError> {
        self.gate.map_or(Ok(()), |support| support.guard(listener))
    }

    /// A new listener. No client reaches it before it is guarded.
    fn open(&self, backlog: u16) -> Result<OwnedFd, ListenError> {
        listener::listen_behind(self.address, backlog, |listener| self.guard(listener))
    }

    /// Makes a listener that is open already as [`Binding::open`] would have. One that this agent has guarded stays so.
    fn adopt(&self, listener: OwnedFd, guarded: bool, backlog: u16) -> Result<OwnedFd, ListenError> {
        if !guarded {
            self.guard(listener.as_fd())?;
        }
        listener::adopt(listener, self.address, backlog)
    }
}

impl Bindings {
    /// None yet. `support` is what the kernel half can do for listeners, or why there is none.
    #[must_use]
    pub fn new(support: Result<ListenerSupport, String>) -> Self {
        Self { support, records: HashMap::new() }
    }

    /// What an earlier agent had for this key, or a new one, which the next agent will get.
    ///
    /// # Errors
    /// See [`BindingError`].
    pub fn inherit<'a>(
        &self,
        owner: impl Into<BindingOwner<'a>>,
        key: ListenerKey,
        manager: &mut ServiceManager,
    ) -> Result<BoundListener, BindingError> {
        let owner = owner.into();
        let binding = self.plan(&owner, key)?;
        let listener = match manager.take_listener(key) {
            // One that cannot be guarded would come back at each start.
            Some(inherited) => binding
                .adopt(inherited, false, owner.backlog)
                .inspect_err(|_| manager.remove_listener(key))?,
            None => {
                let listener = binding.open(owner.backlog)?;
                manager.store_listener(key, &listener);
                listener
            }
        };
        Ok(BoundListener { listener: Arc::new(listener), steered: binding.steered })
    }

    /// A new one, also in the place of one that an instance has ended. The caller stores it with the service manager when it is used.
    ///
    /// # Errors
    /// See [`BindingError`].
    pub fn open<'a>(
        &self,
        owner: impl Into<BindingOwner<'a>>,
        key: ListenerKey,
    ) -> Result<BoundListener, BindingError> {
        let owner = owner.into();
        let binding = self.plan(&owner, key)?;
        if let Some(record) = self.records.get(&key).filter(|record| record.is_open()) {
            return Err(BindingError::Taken { listen: owner.listen, owner: record.owner.clone() });
        }
        let ended = self.records.get(&key).and_then(|record| Some((record, record.listener.upgrade()?)));
        if let Some((_, ended)) = &ended {
            // It is still bound, and an instance may have cleared the option that lets two be.
            SockRef::from(&**ended).set_reuse_address(true)?;
        }
        let listener = match (binding.open(owner.backlog), ended) {
            // It listens again without being bound again.
            (Err(ListenError::Privileged(_)), Some((record, ended))) => {
                listener::unconnect(&ended, binding.address)?;
                binding.adopt(ended.try_clone()?, record.guarded, owner.backlog)?;
                ended
            }
            (opened, _) => Arc::new(opened?),
        };
        Ok(BoundListener { listener, steered: binding.steered })
    }

    /// The same one, with what the function's configuration says now.
    ///
    /// # Errors
    /// See [`BindingError`].
    pub fn renew<'a>(
        &self,
        owner: impl Into<BindingOwner<'a>>,
        key: ListenerKey,
        listener: &Arc<OwnedFd>,
    ) -> Result<BoundListener, BindingError> {
        let owner = owner.into();
        let binding = self.plan(&owner, key)?;
        let guarded = self.is_guarded(key);
        binding.adopt(listener.try_clone()?, guarded, owner.backlog)?;
        Ok(BoundListener { listener: Arc::clone(listener), steered: binding.steered })
    }

    /// Notes that a function or front has a binding now.
    pub fn record<'a>(
        &mut self,
        owner: impl Into<BindingOwner<'a>>,
        key: ListenerKey,
        listener: &Arc<OwnedFd>,
    ) {
        let BindingOwner { kind, name, require_auth, .. } = owner.into();
        let guarded = self.is_guarded(key) || require_auth == RequireAuth::Connect;
        let (owner, listener) = (format!("{kind} {name}"), Arc::downgrade(listener));
        self.records.insert(key, ListenerRecord { owner, listener, guarded });
    }

    /// The listener of a binding that is open.
    #[must_use]
    pub fn listener(&self, key: ListenerKey) -> Option<Arc<OwnedFd>> {
        self.records.get(&key)?.listener.upgrade().filter(|listener| is_listening(listener))
    }

    /// Forgets those that are closed.
    pub fn forget_closed(&mut self) {
        self.records.retain(|_, record| record.is_open());
    }

    /// How many are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.records.values().filter(|record| record.is_open()).count()
    }

    fn is_guarded(&self, key: ListenerKey) -> bool {
        self.records.get(&key).is_some_and(|record| record.guarded && record.is_open())
    }

    /// How the connections of a function or front come in, if the kernel can do what that needs.
    fn plan(&self, owner: &BindingOwner<'_>, key: ListenerKey) -> Result<Binding<'_>, BindingError> {
        let support = self.support.as_ref();
        let (address, steered) = match key {
            ListenerKey::Bound(listen) => (listen, false),
            ListenerKey::Hidden(listen, _) => (listener::hidden(listen), true),
        };
        if steered && !support.is_ok_and(ListenerSupport::can_steer) {
            let why = support.err().map_or("sk_lookup is not attached", String::as_str);
            return Err(BindingError::NotSteered { listen: owner.listen, why: why.to_owned() });
        }
        let gate = match (owner.require_auth, support) {
            (RequireAuth::Connect, Ok(support)) => Some(support),
            (RequireAuth::Connect, Err(why)) => return Err(BindingError::NotClosed(why.clone())),
            (RequireAuth::No | RequireAuth::Wake, _) => None,
        };
        Ok(Binding { address, steered, gate })
    }
}
