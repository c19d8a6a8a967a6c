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
use crate::places::{Open, Places};
use crate::rest::{self, HookError, Rest};
use crate::stop::Stop;
use crate::{Backend, Error, Fallback, Reason, now_ns};

/// How long, and how much, at most. Set with [`Function::with_limits`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// How long a backend connection is waited for. Default 10 s.
    pub backend_wait: Duration,
    /// How long requests in flight may take to finish after SIGTERM, before they
    /// are cut off. Default 8 s, less than the 10 s after which a container is killed.
    pub drain_wait: Duration,
    /// Client connections served at a time; more of them wait in the kernel's
    /// queue, where another instance can take them. Default 4096.
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
    shared: Arc<Shared>,
    limits: Limits,
}

#[derive(Debug)]
struct Shared {
    name: Option<String>,
    instance: Option<String>,
    agent: Option<Arc<Agent>>,
    listener: Mutex<Option<TcpListener>>,
    listener_taken: AtomicBool,
    ready: AtomicBool,
    served: AtomicBool,
    fallbacks: Fallbacks,
    places: Arc<Places>,
    rest: Rest,
    stop: Stop,
}

impl Function {
    /// Must be called inside a runtime: the control socket gets its reader here.
    pub(crate) fn new(attachment: Attachment) -> Result<Self, Error> {
        let mut shared = Shared {
            name: None,
            instance: None,
            agent: None,
            listener: Mutex::new(None),
            listener_taken: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            served: AtomicBool::new(false),
            fallbacks: Fallbacks::default(),
            places: Places::new(None, None),
            rest: Rest::default(),
            stop: Stop::default(),
        };
        let mut ordered = None;
        if let Attachment::Agent(attached) = attachment {
            let (orders, receiver) = tokio::sync::mpsc::channel(rest::ORDERS_MAX);
            ordered = Some(receiver);
            shared.agent = Some(Agent::new(attached.channel, attached.unsaid, attached.backends, orders)?);
            shared.name = Some(attached.function);
            shared.instance = Some(attached.instance);
            shared.listener = Mutex::new(Some(attached.listener));
            shared.places = Places::new(Some(attached.activity), attached.concurrency);
        }
        let function = Self { shared: Arc::new(shared), limits: Limits::default() };
        if let Some(ordered) = ordered {
            tokio::spawn(rest::answer(function.clone(), ordered));
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

    /// Client connections that this instance may have open at a time, as the agent's configuration has it; none for any
    /// number, and without an agent. The serving methods keep to it; a server of your own must.
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
    /// its methods is awaited. The first connection is the leased one, every
    /// further call asks the agent for one more.
    pub fn backend(&self, name: impl Into<String>) -> Backend {
        Backend::new(self.clone(), name.into())
    }

    /// The backends that were connected to directly so far, and why.
    #[must_use]
    pub fn fallbacks(&self) -> Vec<Fallback> {
        self.shared.fallbacks.list()
    }

    /// The listening socket, for a server of your own. Call [`ready`](Self::ready)
    /// when it is about to accept, [`served`](Self::served) after the first
    /// response, and stop accepting when [`stopping`](Self::stopping) resolves.
    ///
    /// Hold a [`track`](Self::track) for each connection: of an instance that does not, nobody knows when it is idle,
    /// and it is never frozen nor stopped for that. Keep to [`concurrency`](Self::concurrency). Never make the socket
    /// blocking, and do not register it with `EPOLLEXCLUSIVE`: an instance that is frozen in `accept` would take the
    /// wake-up that another one needs.
    ///
    /// It is shared with the agent and with other instances of the function: an
    /// accept may find that another one was quicker (tokio then waits on).
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
    /// before [`ready`](Self::ready): from the first call on the agent believes the count.
    #[must_use]
    pub fn track(&self) -> Open {
        self.shared.places.count();
        self.shared.places.open()
    }

    /// Runs `hook` before the instance is frozen, when nobody is connected and nothing is accepted any more: flush
    /// what must not wait. An error, or more than 2 s for all hooks together, and the instance is not frozen.
    pub fn on_freeze<H, F>(&self, hook: H)
    where
        H: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), HookError>> + Send + 'static,
    {
        self.shared.rest.before(move || Box::pin(hook()));
    }

    /// Runs `hook` after the instance was thawed and before it accepts: look at what may have got old. A client waits
    /// for it. An error is reported, and the instance serves all the same.
    pub fn on_thaw<H, F>(&self, hook: H)
    where
        H: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), HookError>> + Send + 'static,
    {
        self.shared.rest.after(move || Box::pin(hook()));
    }

    /// Tells the agent that initialisation is over. Only the first call counts;
    /// the serving methods call it.
    pub fn ready(&self) {
        if !self.shared.ready.swap(true, Ordering::AcqRel) {
            self.tell(&ToAgent::Ready { ready_ns: now_ns() });
        }
    }

    /// Tells the agent when the first client was served, in [`now_ns`] times: when
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

    /// Resolves when the process has been asked to stop (SIGTERM), at once if it
    /// was before. A connection handler that waits for its client may select on it.
    ///
    /// From the first call on SIGTERM no longer ends the process by itself.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver.
    pub async fn stopping(&self) {
        // Where no handler can be set, SIGTERM keeps its default: it ends the process.
        if self.handle_sigterm().is_err() {
            std::future::pending::<()>().await;
        }
        self.shared.stop.requested().await;
    }

    pub(crate) fn handle_sigterm(&self) -> Result<(), Error> {
        self.shared.stop.handle_sigterm().map_err(Error::Runtime)
    }

    /// Resolves when the process was asked to stop before it began to serve.
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

    pub(crate) fn rest(&self) -> &Rest {
        &self.shared.rest
    }

    pub(crate) fn tell(&self, message: &ToAgent) {
        if let Some(agent) = self.agent() {
            // An agent that is gone does not need to know.
            let _ = agent.tell(message);
        }
    }
}
