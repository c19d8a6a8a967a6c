//! Errors, their cause, and what to do about them.

use std::time::Duration;

use headstart_wire::WireError;

use crate::Reason;

/// Why a function cannot attach, get a backend, or serve.
///
/// No message contains a password or a connection URL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The environment names a descriptor that is no control socket. The program
    /// that started this process is at fault.
    #[error("HEADSTART_CONTROL_FD is {value:?}: {problem}")]
    ControlDescriptor {
        /// The variable's value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The process has already attached: a lease has one owner.
    #[error("this process is already attached to the agent; pass the Function on (it is cheap to clone)")]
    AlreadyAttached,
    /// The agent sent no lease. A new instance may succeed.
    #[error("the agent sent no lease within {waited:?}")]
    LeaseTimeout {
        /// The length of the wait.
        waited: Duration,
    },
    /// The agent sent something other than a lease, or closed the socket.
    #[error("the agent's lease cannot be received")]
    Lease(#[source] WireError),
    /// The agent sent something before the lease.
    #[error("the agent sent a grant before the lease: the versions of function and agent do not match")]
    GrantBeforeLease,
    /// There is neither an agent nor an address to listen on.
    #[error("no agent started this function, and no address is set: set HEADSTART_LISTEN=host:port, or PORT")]
    NoListener,
    /// The process cannot listen on the address that it uses without an agent.
    #[error("cannot listen on {address:?} (from {variable})")]
    Listen {
        /// The address.
        address: String,
        /// The environment variable that holds it.
        variable: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The agent handed a TLS session over, and this program cannot continue it.
    #[error(
        "backend {backend:?}: the agent handed a TLS session over, and this function is built without the feature `tls` \
         of the crate headstart: add the feature, load the kernel's TLS (modprobe tls), or remove tls_hand_over from \
         the function's configuration"
    )]
    TlsNotBuilt {
        /// Name of the backend.
        backend: String,
    },
    /// The function has already taken its listening socket; there is only one.
    #[error(
        "the listening socket is already in use: call one of serve, serve_connections and listener, once"
    )]
    ListenerTaken,
    /// The listening socket failed while serving.
    #[error("the listening socket failed")]
    Accept(#[source] std::io::Error),
    /// The name is not in the function's configuration, and it has no URL.
    #[error("backend {backend:?} is not configured for this function (configured: {})", list(configured))]
    UnknownBackend {
        /// The requested name.
        backend: String,
        /// The names that the agent knows.
        configured: Vec<String>,
    },
    /// No connection was injected, and there is no URL to connect to directly.
    /// With an agent, a retry may succeed.
    #[error("no connection of backend {backend:?}: {reason}; set {variable} to connect directly")]
    NoConnection {
        /// The backend's name.
        backend: String,
        /// Why there is no connection.
        reason: Reason,
        /// The environment variable for its URL.
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
    /// The direct connection failed. A retry may succeed.
    #[error("no connection of backend {backend:?}: {reason}; the direct connection failed too")]
    Connect {
        /// The backend's name.
        backend: String,
        /// Why the agent gave none.
        reason: Reason,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The injected connection has another kind than the called method.
    #[error("backend {backend:?} is configured as {kind}: use .{kind}() or .socket()")]
    WrongKind {
        /// The backend's name.
        backend: String,
        /// Its configured kind.
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
    /// The driver cannot log in directly, or does not accept the injected session.
    #[cfg(feature = "postgres")]
    #[error("backend {backend:?}")]
    Postgres {
        /// The backend's name.
        backend: String,
        /// The driver's answer.
        source: tokio_postgres::Error,
    },
    /// The process cannot make a tokio runtime, a signal handler or a socket.
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
