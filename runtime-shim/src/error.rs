//! What can go wrong, whose fault it is, and what to do about it.

use std::time::Duration;

use headstart_wire::WireError;

use crate::Reason;

/// Why a function cannot be attached, get a backend, or serve.
///
/// No message contains a password or a connection URL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The environment names a control descriptor that is none. The fault of
    /// whatever started this process.
    #[error("HEADSTART_CONTROL_FD is {value:?}: {problem}")]
    ControlDescriptor {
        /// The variable's value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A process attaches once: the lease has one owner.
    #[error("this process is attached to the agent already; pass the Function on (it is cheap to clone)")]
    AlreadyAttached,
    /// The agent answered nothing. A retry in a new instance may help.
    #[error("the agent sent no lease within {waited:?}")]
    LeaseTimeout {
        /// How long this waited.
        waited: Duration,
    },
    /// What the agent sent is no lease, or it closed the socket.
    #[error("the agent's lease cannot be received")]
    Lease(#[source] WireError),
    /// The agent sent something before the lease.
    #[error("the agent sent a grant before the lease: function and agent do not fit together")]
    GrantBeforeLease,
    /// There is neither an agent nor an address to listen on.
    #[error("no agent started this function, and no address is set: set HEADSTART_LISTEN=host:port, or PORT")]
    NoListener,
    /// The address of the fallback cannot be listened on.
    #[error("cannot listen on {address:?} (from {variable})")]
    Listen {
        /// The address.
        address: String,
        /// The environment variable that it is from.
        variable: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The agent handed a TLS session over, and this program cannot go on with it.
    #[error(
        "backend {backend:?}: TLS was handed over, and this function is built without the feature `tls` of the crate \
         headstart: add it, have the kernel do it (modprobe tls), or remove tls_hand_over from the \
         function's configuration"
    )]
    TlsNotBuilt {
        /// Name of the backend.
        backend: String,
    },
    /// The listening socket was taken before; there is one.
    #[error(
        "the listening socket was taken already: call one of serve, serve_connections and listener, once"
    )]
    ListenerTaken,
    /// The listening socket broke while serving.
    #[error("the listening socket failed")]
    Accept(#[source] std::io::Error),
    /// The name is not in the function's configuration, and it has no URL.
    #[error("backend {backend:?} is not configured for this function (configured: {})", list(configured))]
    UnknownBackend {
        /// The name that was asked for.
        backend: String,
        /// The names that the agent knows.
        configured: Vec<String>,
    },
    /// No connection was injected, and there is no URL to connect to directly.
    /// A retry may help, except without an agent.
    #[error("no connection of backend {backend:?}: {reason}; set {variable} to connect directly")]
    NoConnection {
        /// The backend's name.
        backend: String,
        /// Why there is none.
        reason: Reason,
        /// The environment variable that would name its URL.
        variable: String,
    },
    /// A URL for connecting directly cannot be used.
    #[error("the URL of backend {backend:?} {problem}")]
    Url {
        /// The backend's name.
        backend: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Connecting directly failed. A retry may help.
    #[error("no connection of backend {backend:?}: {reason}; and connecting directly failed")]
    Connect {
        /// The backend's name.
        backend: String,
        /// Why none was injected.
        reason: Reason,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The injected connection is of another kind than the call.
    #[error("backend {backend:?} is configured as {kind}: use .{kind}() or .socket()")]
    WrongKind {
        /// The backend's name.
        backend: String,
        /// What it is configured as.
        kind: &'static str,
    },
    /// An injected descriptor cannot be used.
    #[error("the injected descriptor of backend {backend:?} cannot be used")]
    Descriptor {
        /// The backend's name.
        backend: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The driver could not log in directly, or does not accept the injected session.
    #[cfg(feature = "postgres")]
    #[error("backend {backend:?}")]
    Postgres {
        /// The backend's name.
        backend: String,
        /// The driver's answer.
        source: tokio_postgres::Error,
    },
    /// The process cannot have a tokio runtime, a signal handler or a socket.
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
