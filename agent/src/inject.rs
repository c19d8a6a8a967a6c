//! `inject`: what an instance is born with, and its control socket.
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
//! A peer that breaks the protocol loses its control socket: the reason is
//! counted and logged, descriptors that it sent are closed, nothing else happens.

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

/// Connections one instance may hold or be waiting for, over all its backends.
/// Each costs a server connection until the instance ends.
pub const LEASES_MAX: usize = 64;

/// An instance that does not acknowledge a grant within this time loses its
/// control socket. The first lease is bounded by `init_timeout` instead.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// What an instance said that its task must know. Times are the function's own, in
/// nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShimEvent {
    /// The shim runs.
    Hello {
        /// When it was entered.
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
    /// Nobody is connected, and it accepts nobody: it can be frozen.
    Quiet,
    /// It cannot be frozen now, and goes on.
    Busy,
    /// It accepts again after a freeze.
    Thawed {
        /// Since when.
        thawed_ns: u64,
    },
    /// It holds other backend connections than before.
    BackendsChanged,
    /// The control socket is closed: the instance ended, or broke the protocol.
    Closed,
}

/// Something an instance must not do.
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
        /// What it asked for, cut to 64 characters.
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

/// What a function's instances are given.
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
    /// It finds them as sockets, and is given no connections.
    pub by_socket: bool,
    /// Backends that it finds at ports of its own loopback interface too.
    pub ports: Vec<(String, u16)>,
    /// Who speaks TLS on those that it is given.
    pub tls: TlsMode,
}

impl Resources {
    /// The pools from which it gets connections.
    fn given(&self) -> &[Pool] {
        if self.by_socket { &[] } else { &self.pools }
    }

    /// The sockets of its backends, in an instance's own directory and network, if it is to have any. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// When they cannot be made.
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

/// Sleeps until then; for ever without a time.
pub(crate) async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
