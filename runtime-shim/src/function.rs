//! The handle that a function works with.

use std::future::Future;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use headstart_wire::ToAgent;

use crate::agent::Agent;
use crate::attach::Attachment;
use crate::fallback::Fallbacks;
use crate::freeze::{self, FreezeHooks, HookError};
use crate::places::{Open, Places};
use crate::stop::Stop;
use crate::{Backend, Error, Fallback, Reason, now_ns};

/// Upper bounds of waits and of connections. Set with [`Function::with_limits`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Longest wait for a backend connection. Default 10 s.
    pub backend_wait: Duration,
    /// Longest time for requests in flight to finish after SIGTERM; then their
    /// connections are closed. Default 8 s, less than the 10 s after which a container
    /// is killed.
    pub drain_wait: Duration,
    /// Most client connections at a time. Others wait in the kernel's queue, where
    /// another instance can accept them. Default 4096.
    pub connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            backend_wait: Duration::from_secs(10),
            drain_wait: Duration::from_secs(8),
            connections_max: 4096,
        }
    }
}

/// An attached function: its listening socket, its backends, its agent.
///
/// Clones share everything but their [`Limits`]; a request handler may hold one
/// to ask for more backend connections.
#[derive(Debug, Clone)]
pub struct Function {
    shared: Arc<FunctionState>,
    limits: Limits,
}

#[derive(Debug)]
struct FunctionState {
    name: Option<String>,
    instance: Option<String>,
    agent: Option<Arc<Agent>>,
    listener: Mutex<Option<TcpListener>>,
    listener_taken: AtomicBool,
    ready: AtomicBool,
    served: AtomicBool,
    fallbacks: Fallbacks,
    places: Arc<Places>,
    freeze_hooks: FreezeHooks,
    stop: Stop,
}

impl Function {
    /// Must be called inside a runtime: the control socket gets its reader here.
    pub(crate) fn new(attachment: Attachment) -> Result<Self, Error> {
        let mut shared = FunctionState {
            name: None,
            instance: None,
            agent: None,
            listener: Mutex::new(None),
            listener_taken: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            served: AtomicBool::new(false),
            fallbacks: Fallbacks::default(),
            places: Places::new(None, None),
            freeze_hooks: FreezeHooks::default(),
            stop: Stop::default(),
        };
        let mut ordered = None;
        if let Attachment::Agent(attached) = attachment {
            let (orders, receiver) = tokio::sync::mpsc::channel(freeze::ORDERS_MAX);
            ordered = Some(receiver);
            shared.agent = Some(Agent::new(attached.channel, attached.unsaid, attached.backends, orders)?);
            shared.name = Some(attached.function);
            shared.instance = Some(attached.instance);
            shared.listener = Mutex::new(Some(attached.listener));
            shared.places = Places::new(Some(attached.activity), attached.concurrency);
        }
        let function = Self { shared: Arc::new(shared), limits: Limits::default() };
        if let Some(ordered) = ordered {
            tokio::spawn(freeze::answer(function.clone(), ordered));
        }
        Ok(function)
    }

    /// The function's name in the agent's configuration; none without an agent.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }

    /// This instance's identifier in the agent's logs; none without an agent.
    #[must_use]
    pub fn instance(&self) -> Option<&str> {
        self.shared.instance.as_deref()
    }

    /// Most client connections that this instance may have open at a time, from the agent's configuration; none for no
    /// limit, and without an agent. The serving methods enforce it; a server of your own must do so too.
    #[must_use]
    pub fn concurrency(&self) -> Option<u32> {
        self.shared.places.concurrency()
    }

    /// The same function with other limits; other clones keep theirs.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The limits of this handle.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A connection of the backend with this name; nothing happens before one of
    /// its methods is awaited. The first connection is the leased one; each further
    /// call requests another from the agent.
    pub fn backend(&self, name: impl Into<String>) -> Backend {
        Backend::new(self.clone(), name.into())
    }

    /// The backends to which the function has connected directly so far, and why.
    #[must_use]
    pub fn fallbacks(&self) -> Vec<Fallback> {
        self.shared.fallbacks.list()
    }

    /// The listening socket, for a server of your own. Call [`ready`](Self::ready)
    /// immediately before it accepts, [`served`](Self::served) after the first
    /// response, and stop accepting when [`stopping`](Self::stopping) resolves.
    ///
    /// Hold a [`track`](Self::track) for each connection: without it the agent does not know when the instance is idle,
    /// and never freezes or stops it for idleness. Respect [`concurrency`](Self::concurrency). Never make the socket
    /// blocking, and do not register it with `EPOLLEXCLUSIVE`: an instance that is frozen in `accept` would consume the
    /// wake-up that another instance needs.
    ///
    /// The agent and other instances of the function share the socket: another
    /// instance may accept a connection first (tokio then continues to wait).
    ///
    /// # Errors
    /// [`Error::ListenerTaken`] the second time; [`Error::NoListener`] and
    /// [`Error::Listen`] without an agent.
    pub fn listener(&self) -> Result<tokio::net::TcpListener, Error> {
        if self.shared.listener_taken.swap(true, Ordering::AcqRel) {
            return Err(Error::ListenerTaken);
        }
        let leased = self.shared.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let listener = match leased {
            Some(listener) => listener,
            None => crate::serve::listen_alone()?,
        };
        tokio::net::TcpListener::from_std(listener).map_err(Error::Runtime)
    }

    /// Counts one client connection as open until the guard is dropped, for a server of your own. Call it at least once
    /// before [`ready`](Self::ready): the agent uses the count from the first call.
    #[must_use]
    pub fn track(&self) -> Open {
        self.shared.places.count();
        self.shared.places.open()
    }

    /// Runs `hook` before a freeze, when no client is connected and the instance no longer accepts: write out what must
    /// not wait. If a hook fails, or all hooks together take more than 2 s, the instance is not frozen.
    pub fn on_freeze<H, F>(&self, hook: H)
    where
        H: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), HookError>> + Send + 'static,
    {
        self.shared.freeze_hooks.before(move || Box::pin(hook()));
    }

    /// Runs `hook` after a thaw and before the instance accepts: check what may be out of date. A client waits for it.
    /// An error is reported on standard error, and the instance still serves.
    pub fn on_thaw<H, F>(&self, hook: H)
    where
        H: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), HookError>> + Send + 'static,
    {
        self.shared.freeze_hooks.after(move || Box::pin(hook()));
    }

    /// Reports to the agent that initialisation is complete. Only the first call
    /// counts; the serving methods call it.
    pub fn ready(&self) {
        if !self.shared.ready.swap(true, Ordering::AcqRel) {
            self.tell(&ToAgent::Ready { ready_ns: now_ns() });
        }
    }

    /// Reports to the agent when the first client was served, in [`now_ns`] times: when
    /// its connection was accepted, and when its first bytes were written. Only the
    /// first call counts; the serving methods call it.
    pub fn served(&self, accept_ns: u64, first_response_ns: u64) {
        if !self.shared.served.swap(true, Ordering::AcqRel) {
            self.tell(&ToAgent::Served { accept_ns, first_response_ns });
        }
    }

    pub(crate) fn was_served(&self) -> bool {
        self.shared.served.load(Ordering::Relaxed)
    }

    /// Resolves on SIGTERM, or at once if the process has received it. A connection
    /// handler that waits for its client may select on it.
    ///
    /// After the first call, SIGTERM alone no longer ends the process.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver.
    pub async fn stopping(&self) {
        // Without a handler, SIGTERM keeps its default effect and ends the process.
        if self.handle_sigterm().is_err() {
            std::future::pending::<()>().await;
        }
        self.shared.stop.requested().await;
    }

    pub(crate) fn handle_sigterm(&self) -> Result<(), Error> {
        self.shared.stop.handle_sigterm().map_err(Error::Runtime)
    }

    /// Resolves on a SIGTERM that comes before the function serves.
    pub(crate) async fn stopped_before_serving(&self) {
        self.shared.stop.requested().await;
        if self.shared.listener_taken.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn agent(&self) -> Option<&Arc<Agent>> {
        self.shared.agent.as_ref()
    }

    pub(crate) fn note_fallback(&self, backend: &str, reason: &Reason) {
        self.shared.fallbacks.note(backend, reason);
    }

    pub(crate) fn places(&self) -> &Arc<Places> {
        &self.shared.places
    }

    pub(crate) fn freeze_hooks(&self) -> &FreezeHooks {
        &self.shared.freeze_hooks
    }

    pub(crate) fn tell(&self, message: &ToAgent) {
        if let Some(agent) = self.agent() {
            // An error means that the agent is gone.
            let _ = agent.tell(message);
        }
    }
}
