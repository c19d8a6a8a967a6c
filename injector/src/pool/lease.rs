//! A lease, and why there may be none.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use headstart_wire::{Flow, TlsSession, TrafficKey};
use thiserror::Error;
use tokio::time::Instant;

use super::PoolShared;
use super::idle::IdleConnection;
use super::shares::Share;
use crate::backend::{
    self, CancelRequest, Connection, LoginVariant, RetainedSecrets, Session, SocketDiag, Stream,
    StreamHandOver,
};
use crate::{ConnectCause, ConnectError, FallbackReason};

/// A connection with one owner, on its way to a function.
#[derive(Debug)]
pub struct Lease {
    stream: Stream,
    /// What the function needs to act as if it had logged in.
    pub session: Session,
    slot: LeaseSlot,
    /// [`FallbackReason::PoolEmpty`] when the connection was not idle but made on the spot.
    pub fallback: Option<FallbackReason>,
    /// How long connect and login took: what the function was spared.
    pub connect_time: Duration,
    /// When the pool's time to live of this connection is over; `None` for never.
    pub expires_at: Option<Instant>,
}

/// A connection that is handed over: the function's part, and the slot that stays.
#[derive(Debug)]
pub struct HandOver {
    /// The socket: connected, quiet, non-blocking, close-on-exec.
    pub fd: OwnedFd,
    /// What the function needs to act as if it had logged in.
    pub session: Session,
    /// The TLS session that the socket leads into, if the agent does not go on with it.
    pub tls: Option<TlsSession>,
    /// Keeps the connection's place in the pool until the function has closed it.
    pub slot: LeaseSlot,
}

/// Which side speaks TLS, if the backend has TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// The agent, and the function gets a socket that needs none.
    Relay,
    /// The function, where the session can be handed over; else the agent.
    HandOver,
    /// The kernel, where it can and the session can be handed over; else the function, or the agent. Reads of the
    /// descriptor give plaintext, and an error for records without data: tickets, for instance, which servers send right
    /// after the handshake.
    Kernel,
}

impl Lease {
    /// The caller has counted it as leased.
    pub(super) fn new(
        shared: &Arc<PoolShared>,
        idle: IdleConnection,
        fallback: Option<FallbackReason>,
    ) -> Self {
        let ttl = shared.spec.pool.ttl;
        let expires_at = (!ttl.is_zero()).then(|| idle.since + ttl);
        let Connection { stream, session, cancel, variant, diag, connect_time, since } = idle.connection;
        let place = Place::new(shared, None);
        let slot = LeaseSlot { place, since, connect_time, cancel, variant, tls: None, diag };
        Self { stream, session, slot, fallback, connect_time, expires_at }
    }

    /// Its function has this share as long as the place is taken.
    pub(super) fn with_share(mut self, share: Share) -> Self {
        // Nothing else has the place yet.
        if let Some(place) = Arc::get_mut(&mut self.slot.place) {
            place.share = share;
        }
        self
    }

    /// Takes the connection out of the reactor, for one owner. A relay runs on the runtime of the pool.
    ///
    /// # Errors
    /// When the connection is lost at this moment.
    pub fn hand_over(self, mode: TlsMode) -> Result<HandOver, LeaseError> {
        let Self { stream, session, mut slot, .. } = self;
        let (place, is_tls) = (Arc::clone(&slot.place), matches!(stream, Stream::Tls(_)));
        let outcome = slot.shared().data().and_then(|data| match mode {
            TlsMode::Relay => {
                stream.into_fd(data, place).map(|fd| StreamHandOver { fd, tls: None, relayed: None })
            }
            TlsMode::HandOver => stream.hand_over(data, place, false),
            TlsMode::Kernel => stream.hand_over(data, place, true),
        });
        let StreamHandOver { fd, tls, relayed } = outcome.map_err(|error| {
            LeaseError::Connect(Arc::new(ConnectError::new(&slot.shared().spec, ConnectCause::Lost(error))))
        })?;
        if let Some(reason) = relayed {
            slot.shared().tell_relayed(reason);
        }
        if is_tls && tls.is_none() {
            // The socket is the agent's: the relay has the place.
            slot.diag = None;
        }
        let (tls, kept) = tls.unzip();
        slot.tls = kept;
        Ok(HandOver { fd, session, tls, slot })
    }

    /// Whether the connection, which was not used yet, still can be.
    pub(crate) fn is_good(&mut self, now: Instant) -> bool {
        self.expires_at.is_none_or(|at| at > now) && self.stream.is_quiet().is_ok()
    }

    /// For use in this process.
    pub(crate) fn into_stream(self) -> (Stream, Session, LeaseSlot) {
        (self.stream, self.session, self.slot)
    }
}

/// What the holder of a leased connection's descriptor has to keep. Dropping it makes room for a new connection; the old one
/// is never taken back, so close every copy of its descriptor before.
#[derive(Debug)]
pub struct LeaseSlot {
    place: Arc<Place>,
    /// When the connection was logged in, and how long that took.
    since: Instant,
    connect_time: Duration,
    cancel: Option<CancelRequest>,
    variant: LoginVariant,
    tls: Option<RetainedSecrets>,
    diag: Option<SocketDiag>,
}

/// The place of a leased connection in its pool. A relay shares it.
#[derive(Debug)]
struct Place {
    shared: Arc<PoolShared>,
    /// The connection is in the pool again.
    recycled: bool,
    share: Share,
}

impl Place {
    fn new(shared: &Arc<PoolShared>, share: Share) -> Arc<Self> {
        Arc::new(Self { shared: Arc::clone(shared), recycled: false, share })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.recycled {
            return;
        }
        self.shared.with_state(|state| state.release(Instant::now()));
        self.shared.wake.notify_one();
    }
}

/// Tells whether a place is still taken.
#[derive(Debug)]
pub struct TakenPlace(Weak<Place>);

impl TakenPlace {
    /// Whether the connection may still exist.
    pub fn is_taken(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl LeaseSlot {
    /// The place of a connection that an earlier agent has leased.
    pub(super) fn inherited(shared: &Arc<PoolShared>, share: Share) -> Self {
        let (place, since) = (Place::new(shared, share), Instant::now());
        let (connect_time, variant) = (Duration::ZERO, LoginVariant::Plain);
        Self { place, since, connect_time, cancel: None, variant, tls: None, diag: None }
    }

    fn shared(&self) -> &Arc<PoolShared> {
        &self.place.shared
    }

    /// What the connection's login carried.
    pub(crate) fn variant(&self) -> &LoginVariant {
        &self.variant
    }

    /// The function says that it has closed the connection. Its place is free when the kernel says so too, or when the
    /// relay has ended. (Of a connection that an earlier agent has leased, and where the kernel does not tell, at once.)
    pub fn returned(mut self) -> TakenPlace {
        let place = TakenPlace(Arc::downgrade(&self.place));
        let (diag, shared) = (self.diag.take(), Arc::clone(self.shared()));
        if let (Some(diag), Ok(data)) = (diag, shared.data()) {
            data.spawn(async move {
                diag.gone().await;
                drop(self);
            });
        }
        place
    }

    /// Gives back a connection whose session was cleaned, for the same function.
    pub(crate) fn recycle(self, function: &Arc<str>, stream: Stream, session: Session) {
        self.keep_for(function, stream, session, true);
    }

    /// Gives back a connection on which nothing was said, for the same function.
    pub(crate) fn give_back(self, function: &Arc<str>, stream: Stream, session: Session) {
        self.keep_for(function, stream, session, false);
    }

    fn keep_for(mut self, function: &Arc<str>, stream: Stream, session: Session, used: bool) {
        let now = Instant::now();
        let pool = self.shared();
        if now - self.since > pool.spec.pool.max_age || pool.with_state(|state| state.is_outdated(self.since))
        {
            return; // dropped, it is discarded
        }
        let (cancel, diag, variant) = (self.cancel.take(), self.diag.take(), self.variant.clone());
        let (connect_time, since) = (self.connect_time, self.since);
        // Nothing relays it, so nothing else has the place.
        let Some(mut place) = Arc::into_inner(self.place) else { return };
        place.recycled = true;
        let shared = &place.shared;
        let connection = Connection { stream, session, cancel, variant, diag, connect_time, since };
        let taken = shared.with_state(|state| {
            state.tally.recycled += u64::from(used);
            state.recycled(Arc::clone(function), IdleConnection { connection, since: now }, now)
        });
        shared.wake.notify_one();
        if let Some((waiter, idle)) = taken {
            drop(waiter.answer.send(Ok(Lease::new(shared, idle, None)))); // withdrawn just now: the lease ends here
        }
    }

    /// The others may lead to the same server, and the backend's name to another one by now: idle ones are given up, and
    /// those that are leased are not used again.
    pub(crate) fn server_is_read_only(&self) {
        let pool = self.shared();
        let dead = pool.with_state(|state| state.server_is_read_only(self.since, Instant::now()));
        if !dead.is_empty() {
            tracing::info!(backend = pool.spec.name, "the server takes no writes: connections are made anew");
            pool.discard(dead);
            pool.wake.notify_one();
        }
    }

    /// [`TlsSession::connection`] of a connection whose TLS was handed over.
    pub fn tls_connection(&self) -> Option<u64> {
        self.tls.as_ref().map(RetainedSecrets::connection)
    }

    /// The key that follows the last one of this direction (RFC 8446, section 7.2). `None` when it cannot be made.
    pub fn next_key(&self, flow: Flow) -> Option<TrafficKey> {
        let next = self.tls.as_ref()?.next_key(flow);
        next.inspect_err(|error| {
            tracing::warn!(backend = self.shared().spec.name, "no next TLS key: {error}")
        })
        .ok()
    }

    /// Asks the server to cancel the query that runs on this connection; the function, which has no
    /// cancel key, may ask its agent for this. `false` when the backend has no such request.
    ///
    /// The server does not tell whether it found a query.
    ///
    /// # Errors
    /// The server cannot be reached within the connect timeout.
    pub async fn cancel_query(&self) -> Result<bool, ConnectError> {
        match &self.cancel {
            Some(request) => backend::cancel(&self.shared().spec, request).await.map(|()| true),
            None => Ok(false),
        }
    }
}

/// Why there is no connection. The function may connect by itself, or fail.
#[derive(Debug, Clone, Error)]
pub enum LeaseError {
    /// The load or the configuration: no room within `wait`.
    #[error(
        "backend {backend}: none of {max} connections{} came free within {} ms; a retry may help",
        among(*server_max),
        wait.as_millis()
    )]
    Exhausted {
        /// The configured name.
        backend: String,
        /// The configured limit.
        max: usize,
        /// The limit for all pools of the server.
        server_max: Option<usize>,
        /// The configured limit of the wait.
        wait: Duration,
    },
    /// The load of the function itself, or the configuration: it has all that one function may have.
    #[error(
        "backend {backend}: none of the {max_per_function} connections that one function may have came free within {} ms; \
         a retry may help",
        wait.as_millis()
    )]
    ShareExhausted {
        /// The configured name.
        backend: String,
        /// The configured limit.
        max_per_function: usize,
        /// The configured limit of the wait.
        wait: Duration,
    },
    /// The backend; says itself whether a retry helps.
    #[error(transparent)]
    Connect(Arc<ConnectError>),
    /// The agent stops, or the backend has left its configuration.
    #[error("backend {backend}: the pool is closed; a retry will not help")]
    Closed {
        /// The configured name.
        backend: String,
    },
}

impl LeaseError {
    /// The label.
    pub fn reason(&self) -> FallbackReason {
        match self {
            Self::Exhausted { .. } => FallbackReason::PoolExhausted,
            Self::ShareExhausted { .. } => FallbackReason::ShareExhausted,
            Self::Connect(_) => FallbackReason::ConnectFailed,
            Self::Closed { .. } => FallbackReason::PoolClosed,
        }
    }

    /// Whether the same lease may succeed later without a change of the configuration.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::Exhausted { .. } | Self::ShareExhausted { .. } => true,
            Self::Connect(error) => error.cause.retry_helps(),
            Self::Closed { .. } => false,
        }
    }
}

fn among(server_max: Option<usize>) -> String {
    server_max.map_or(String::new(), |limit| format!(", {limit} for all backends of its server,"))
}
