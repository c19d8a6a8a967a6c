//! Why a connection could not be made, and whether trying again helps.

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::ProtocolError;
use crate::{Address, BackendSpec, FailureReason};

/// A failed attempt to connect and log in. Names the backend and the cause, never the password.
#[derive(Debug, Error)]
#[error("backend {backend} at {address}: {cause}; {}", advice(.cause.retry_helps()))]
pub struct ConnectError {
    /// The configured name.
    pub backend: String,
    /// The configured address.
    pub address: Address,
    /// What went wrong. Not a `source()`, since the text above has it already.
    pub cause: ConnectCause,
}

impl ConnectError {
    pub(crate) fn new(spec: &BackendSpec, cause: ConnectCause) -> Self {
        Self { backend: spec.name.clone(), address: spec.address.clone(), cause }
    }
}

fn advice(retry_helps: bool) -> &'static str {
    if retry_helps { "a retry may help" } else { "a retry will not help before something is changed" }
}

/// What went wrong while connecting.
#[derive(Debug, Error)]
pub enum ConnectCause {
    /// The network or the configuration: no such host.
    #[error("the host does not resolve: {0}")]
    Resolve(io::Error),
    /// The network or the server: no transport connection.
    #[error("cannot connect: {0}")]
    Dial(io::Error),
    /// The network or the server: too slow, or no answer.
    #[error("not logged in after {} ms", limit.as_millis())]
    Timeout {
        /// The configured connect timeout.
        limit: Duration,
    },
    /// The network or the server: reset during the login.
    #[error("the connection was lost during the login: {0}")]
    Lost(io::Error),
    /// The server: closed without an answer.
    #[error("the server closed the connection during the login")]
    Closed,
    /// The server refused; the text is the server's.
    #[error("the server refused: {message} (SQLSTATE {sqlstate})")]
    Server {
        /// Five characters, see PostgreSQL documentation, appendix A.
        sqlstate: String,
        /// Shortened, without control characters.
        message: String,
    },
    /// The server refused, in a protocol without SQLSTATE; the text is the server's.
    #[error("the server refused: {message}")]
    Refused {
        /// Shortened, without control characters.
        message: String,
        /// The condition is temporary.
        transient: bool,
    },
    /// The server does not follow the protocol, or is of another kind.
    #[error("protocol error: not {expected} but {found:?}")]
    Unexpected {
        /// What should have come.
        expected: &'static str,
        /// Shortened, without control characters.
        found: String,
    },
    /// The configuration has no password.
    #[error("the server asks for a password, and none is configured")]
    PasswordMissing,
    /// The server's configuration: the password would cross a network in the clear.
    #[error("the server asks for a clear-text password, which is sent only over a unix socket")]
    CleartextRefused,
    /// The server's configuration: a method that this crate does not speak.
    #[error("the server asks for {method} authentication, which is not supported")]
    AuthUnsupported {
        /// Its name.
        method: &'static str,
    },
    /// The server's configuration: it has no TLS, and the agent does not go on without.
    #[error("the server does not offer TLS, and `tls` is on")]
    TlsRefused,
    /// The server's certificate, or no common version or suite: an error of the TLS library.
    #[error("no TLS session: {}", tls_error(.0))]
    Tls(rustls::Error),
    /// The server does not know the password, or an attacker is in between.
    #[error("the server failed to authenticate itself: {0}")]
    ServerUnproven(io::Error),
    /// The server does not follow the protocol, or is of another kind.
    #[error("protocol error: {0}")]
    Protocol(#[from] ProtocolError),
    /// Our defect: the task that connects died.
    #[error("the connecting task died")]
    TaskDied,
}

impl ConnectCause {
    /// The label.
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Resolve(_) => FailureReason::Resolve,
            Self::Dial(_) => FailureReason::Dial,
            Self::Timeout { .. } => FailureReason::Timeout,
            Self::Lost(_) | Self::Closed => FailureReason::Lost,
            Self::Server { .. } | Self::Refused { .. } => FailureReason::Server,
            Self::TlsRefused | Self::Tls(_) => FailureReason::Tls,
            Self::PasswordMissing
            | Self::CleartextRefused
            | Self::AuthUnsupported { .. }
            | Self::ServerUnproven(_) => FailureReason::Auth,
            Self::Protocol(_) | Self::Unexpected { .. } => FailureReason::Protocol,
            Self::TaskDied => FailureReason::Internal,
        }
    }

    /// Whether the server has refused what a client asks for, and would take another login: classes 22 data exception, 42
    /// access rule; 55P02, cannot be changed now.
    pub(crate) fn is_about_parameters(&self) -> bool {
        let Self::Server { sqlstate, .. } = self else { return false };
        sqlstate.starts_with("22") || sqlstate.starts_with("42") || sqlstate == "55P02"
    }

    /// Whether the same attempt may succeed later without a change of the configuration.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::Server { sqlstate, .. } => is_transient(sqlstate),
            Self::Refused { transient, .. } => *transient,
            Self::Protocol(ProtocolError::NotQuiet) => true,
            _ => !matches!(self.reason(), FailureReason::Auth | FailureReason::Protocol | FailureReason::Tls),
        }
    }
}

/// The library's text, with what an operator can do.
fn tls_error(error: &rustls::Error) -> String {
    use rustls::{CertificateError, Error};
    let advice = match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            ": no trusted authority has signed it, set `ca_file`"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => ": connect to the name in it, or set `server_name`",
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            ": it has expired, renew it on the server"
        }
        Error::AlertReceived(_) => ": the server sent this alert, see its log",
        _ => "",
    };
    format!("{error}{advice}")
}

/// SQLSTATE classes of temporary conditions: 08 connection, 40 rollback, 53 resources (such as 53300 too many
/// connections), 55 object state, 57 operator intervention (such as 57P03 starting up), 58 system,
/// XX internal. The others (28 authorisation, 3D no such database, 42 access rule ...) stay.
fn is_transient(sqlstate: &str) -> bool {
    ["08", "40", "53", "55", "57", "58", "XX"].iter().any(|class| sqlstate.starts_with(class))
}

/// A text of the server, fit for a log line.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
