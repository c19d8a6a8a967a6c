//! What a lease hands out, and why it may not.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use super::Shared;
use super::state::Idle;
use crate::backend::{self, CancelRequest, Connection, Session, Stream, is_quiet};
use crate::{ConnectCause, ConnectError, FallbackReason};

/// A connection with one owner. Take it apart: descriptor and session go to the function, the slot stays.
#[derive(Debug)]
pub struct Lease {
    /// The socket: connected, quiet, non-blocking, close-on-exec.
    pub fd: OwnedFd,
    /// What the function needs to act as if it had logged in.
    pub session: Session,
    /// Keeps the connection's place in the pool until the function is through with it.
    pub slot: LeaseSlot,
    /// [`FallbackReason::PoolEmpty`] when the connection was not idle but made on the spot.
    pub fallback: Option<FallbackReason>,
    /// How long connect and login took: what the function was spared.
    pub connect_time: Duration,
    /// When the pool's time to live of this connection is over; `None` for never.
    pub expires_at: Option<Instant>,
}

impl Lease {
    /// Out of the reactor, into the hands of one owner. The caller has counted it as leased.
    pub(super) fn new(
        shared: &Arc<Shared>,
        idle: Idle,
        fallback: Option<FallbackReason>,
    ) -> Result<Self, LeaseError> {
        let ttl = shared.spec.pool.ttl;
        let expires_at = (!ttl.is_zero()).then(|| idle.since + ttl);
        let Connection { stream, session, cancel, connect_time } = idle.connection;
        let slot = LeaseSlot { shared: Arc::clone(shared), cancel };
        match stream.into_fd() {
            Ok(fd) => Ok(Self { fd, session, slot, fallback, connect_time, expires_at }),
            Err(error) => {
                let error = ConnectError::new(&shared.spec, ConnectCause::Lost(error));
                Err(LeaseError::Connect(Arc::new(error)))
            }
        }
    }
}

impl Lease {
    /// Whether the connection, which nobody has used yet, can still be.
    pub(crate) fn is_good(&self, now: Instant) -> bool {
        self.expires_at.is_none_or(|at| at > now) && is_quiet(&self.fd).is_ok()
    }

    /// For use in this process. Must be called within a tokio runtime.
    pub(crate) fn into_stream(self) -> Result<(Stream, Session, LeaseSlot), LeaseError> {
        let Self { fd, session, slot, .. } = self;
        match Stream::from_fd(fd) {
            Ok(stream) => Ok((stream, session, slot)),
            Err(error) => {
                let error = ConnectError::new(&slot.shared.spec, ConnectCause::Lost(error));
                Err(LeaseError::Connect(Arc::new(error)))
            }
        }
    }
}

/// The place of a leased connection in its pool. Dropping it makes room for a new connection; the old
/// one is never taken back, so close every copy of its descriptor before.
#[derive(Debug)]
pub struct LeaseSlot {
    shared: Arc<Shared>,
    cancel: Option<CancelRequest>,
}

impl LeaseSlot {
    /// The place of a connection that was leased in an earlier life of this pool.
    pub(super) fn inherited(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), cancel: None }
    }

    /// Asks the server to cancel the query that runs on this connection; the function, which has no
    /// cancel key, may ask its agent for this. `false` when the backend has no such request.
    ///
    /// The server does not say whether there was anything to cancel.
    ///
    /// # Errors
    /// The server cannot be reached within the connect timeout.
    pub async fn cancel_query(&self) -> Result<bool, ConnectError> {
        match &self.cancel {
            Some(request) => backend::cancel(&self.shared.spec, request).await.map(|()| true),
            None => Ok(false),
        }
    }
}

impl Drop for LeaseSlot {
    fn drop(&mut self) {
        self.shared.lock().release(Instant::now());
        self.shared.bell.notify_one();
    }
}

/// Why there is no connection. The function may connect by itself, or fail.
#[derive(Debug, Clone, Error)]
pub enum LeaseError {
    /// The load or the configuration: no room within `wait`.
    #[error(
        "backend {backend}: none of {max} connections came free within {} ms; a retry may help",
        wait.as_millis()
    )]
    Exhausted {
        /// The configured name.
        backend: String,
        /// The configured limit.
        max: usize,
        /// The configured limit of the wait.
        wait: Duration,
    },
    /// The backend; says itself whether a retry helps.
    #[error(transparent)]
    Connect(Arc<ConnectError>),
    /// The agent is going away.
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
            Self::Connect(_) => FallbackReason::ConnectFailed,
            Self::Closed { .. } => FallbackReason::PoolClosed,
        }
    }

    /// Whether the same lease may succeed later without anybody changing the configuration.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::Exhausted { .. } => true,
            Self::Connect(error) => error.cause.retry_helps(),
            Self::Closed { .. } => false,
        }
    }
}
