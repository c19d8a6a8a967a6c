//! `inject`: the resources that an instance starts with, and its control socket.
//!
//! ```text
//! begin: lease from the pools ──> Connected: queue the Lease now, before exec
//!                            └──> Listening: send it to the first peer that is the instance itself
//! next:  Hello, Ack, Ready, Served  ──> the instance's task
//!        Quiet, Busy, Thawed        ──> the instance's task, each the answer to a Freeze or a Thaw
//!        Request, finished connects ──> Grants, answered here
//!        Returned, NextKey          ──> Grants
//! ```
//!
//! The agent closes the control socket of a peer that breaks the protocol. It counts and logs the reason and closes
//! the descriptors that the peer sent; nothing else happens.

mod conversation;
mod endpoint;
mod grants;
mod ports;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use headstart_injector::{Pool, Sockets, TlsMode};
use headstart_wire::WireError;
use tokio::time::Instant;

use crate::start::{Process, backends_directory};
pub use conversation::Conversation;

/// Connections that one instance may hold or wait for, over all its backends.
/// Each costs a server connection until the instance ends.
pub const LEASES_MAX: usize = 64;

/// Messages that an instance may send at once, and a second from then on. More are left in its socket until it is their
/// turn. Every message costs the agent some microseconds, and those that return a connection a file.
const MESSAGES_BURST: u32 = 256;
const MESSAGES_PER_SECOND: u32 = 500;

/// An instance that does not acknowledge a grant within this time loses its
/// control socket. The first lease is bounded by `init_timeout` instead.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// What the shim of an instance reports to the instance's task. The function measures the times, in nanoseconds of
/// `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShimEvent {
    /// The shim runs.
    Hello {
        /// When it began.
        hello_ns: u64,
    },
    /// The first lease arrived.
    Injected {
        /// When it arrived.
        injected_ns: u64,
    },
    /// The function accepts.
    Ready {
        /// Since when.
        ready_ns: u64,
    },
    /// The first response left.
    Served {
        /// When its connection was accepted.
        accept_ns: u64,
        /// When its first bytes were written.
        first_response_ns: u64,
    },
    /// The instance has no connection and accepts none: it can be frozen.
    Quiet,
    /// The instance cannot be frozen now, and goes on.
    Busy,
    /// The instance accepts again after a freeze.
    Thawed {
        /// Since when.
        thawed_ns: u64,
    },
    /// The instance has got or returned a backend connection.
    BackendsChanged,
    /// The control socket is closed: the instance has ended, or has broken the protocol.
    Closed,
}

/// A way in which an instance breaks the protocol. The agent closes its control socket.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolViolation {
    /// The message itself is wrong.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A good message at the wrong time.
    #[error("{message} is out of order")]
    OutOfOrder {
        /// The message.
        message: &'static str,
    },
    /// A backend that the function is not configured for.
    #[error("backend {backend:?} is not configured for this function")]
    NotConfigured {
        /// The name that it asked for, cut to 64 characters.
        backend: String,
    },
    /// More connections than [`LEASES_MAX`].
    #[error("the instance holds {LEASES_MAX} backend connections already")]
    TooMany,
    /// Descriptors were sent and never acknowledged.
    #[error("no acknowledgement within {} s", ACK_TIMEOUT.as_secs())]
    NoAck,
}

impl ProtocolViolation {
    /// The metric label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Wire(error) => error.reason(),
            Self::OutOfOrder { .. } => "out_of_order",
            Self::NotConfigured { .. } => "not_configured",
            Self::TooMany => "too_many",
            Self::NoAck => "no_ack",
        }
    }
}

/// What the instances of a function are given.
#[derive(Clone)]
pub struct Resources {
    /// Configured name.
    pub function: String,
    /// The agent's copy of the listening socket.
    pub listener: Arc<OwnedFd>,
    /// Connections that one instance may have open at a time; `None`: any number.
    pub concurrency: Option<u32>,
    /// The pools of its backends, in the order of the configuration.
    pub pools: Vec<Pool>,
    /// The instance finds its backends as sockets, and is given no connections.
    pub by_socket: bool,
    /// Backends that the instance also finds at ports of its own loopback interface.
    pub ports: Vec<(String, u16)>,
    /// Which side speaks TLS on the connections that the instance is given.
    pub tls: TlsMode,
}

impl Resources {
    /// The pools from which the instance is given connections.
    fn given(&self) -> &[Pool] {
        if self.by_socket { &[] } else { &self.pools }
    }

    /// Makes the sockets of the backends in an instance's own directory and network; `None` when the function uses none.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn sockets(&self, instance: &str, process: &dyn Process) -> io::Result<Option<Sockets>> {
        if !self.by_socket {
            return Ok(None);
        }
        let directory = backends_directory(process.directory());
        let mut sockets = Sockets::listen(&self.function, instance, &directory, &self.pools, LEASES_MAX)?;
        if !self.ports.is_empty() {
            let listeners = ports::listen(&process.network()?, self.ports.iter().map(|(_, port)| *port))?;
            for ((backend, _), listener) in self.ports.iter().zip(listeners) {
                sockets.admit(backend, listener)?;
            }
        }
        Ok(Some(sockets))
    }
}

/// Sleeps until `time`, or for ever when there is none.
pub(crate) async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
