//! Backends: how to reach a server, log in, and recognise that the connection is still good.
//!
//! Each protocol is a sibling file with its login data and one `Protocol` implementation; `login`, `admit`, `clean` and
//! `tests` in the folder of its name hold the parts. One more protocol is such a file, a variant of [`BackendKind`] with
//! its arms below, and a variant of [`Session`].

mod certificate;
mod error;
mod liveness;
mod mysql;
mod postgres;
mod protocol;
mod redis;
mod relay;
mod socket_diag;
mod stream;
mod tcp;
mod tls;
mod variant;

use std::fmt;

use headstart_config as config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

pub use error::{ConnectCause, ConnectError};
pub use headstart_wire::Session;
pub use mysql::MysqlLogin;
pub use postgres::{PostgresLogin, ProtocolError};
pub(crate) use protocol::{AdmissionError, BoxFuture, LoginResult, Protocol, TerminationDetector};
pub use redis::RedisLogin;
pub(crate) use socket_diag::SocketDiag;
pub use socket_diag::can_tell as can_tell_sockets;
pub(crate) use stream::{Stream, StreamHandOver};
pub(crate) use tls::{NoHandOver, RetainedSecrets};
pub use tls::{Tls, TlsSettings, TlsSettingsError};
pub(crate) use variant::LoginVariant;

use crate::BackendSpec;
use crate::secret::PasswordFileError;

/// The protocols that can be spoken, each with what its login needs.
#[derive(Debug, Clone)]
pub enum BackendKind {
    /// A connected stream, without any login.
    Tcp,
    /// PostgreSQL, protocol 3.0.
    Postgres(PostgresLogin),
    /// Redis, from version 6 on.
    Redis(RedisLogin),
    /// MariaDB or MySQL.
    Mysql(MysqlLogin),
}

impl BackendKind {
    /// Reads the password file, if there is one.
    pub(crate) fn from_config(protocol: &config::Protocol) -> Result<Self, PasswordFileError> {
        Ok(match protocol {
            config::Protocol::Tcp => Self::Tcp,
            config::Protocol::Postgres(keys) => Self::Postgres(PostgresLogin::from_config(keys)?),
            config::Protocol::Redis(keys) => Self::Redis(RedisLogin::from_config(keys)?),
            config::Protocol::Mysql(keys) => Self::Mysql(MysqlLogin::from_config(keys)?),
        })
    }

    pub(crate) fn protocol(&self) -> &dyn Protocol {
        match self {
            Self::Tcp => &tcp::TcpProtocol,
            Self::Postgres(login) => login,
            Self::Redis(login) => login,
            Self::Mysql(login) => login,
        }
    }
}

/// A connection that is logged in and quiet.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    pub(crate) session: Session,
    pub(crate) cancel: Option<CancelRequest>,
    pub(crate) variant: LoginVariant,
    /// Tells whether it exists, whoever has it.
    pub(crate) diag: Option<SocketDiag>,
    /// How long connect and login took.
    pub(crate) connect_time: std::time::Duration,
    /// Since when it is logged in.
    pub(crate) since: Instant,
}

/// The whole packet that cancels the connection's query when it is sent on a connection of its own. It contains the
/// cancel key.
pub(crate) struct CancelRequest(pub(crate) Zeroizing<Vec<u8>>);

impl fmt::Debug for CancelRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CancelRequest(***)")
    }
}

/// Connects and logs in, within the connect timeout.
pub(crate) async fn connect(spec: &BackendSpec, variant: LoginVariant) -> Result<Connection, ConnectError> {
    let protocol = spec.kind.protocol();
    let began = Instant::now();
    let attempt = async {
        let (mut stream, greeting) = Stream::dial(spec, &variant).await?;
        let LoginResult { session, cancel } = protocol.log_in(&mut stream, greeting, &variant).await?;
        let (diag, connect_time, since) = (SocketDiag::of(&stream), began.elapsed(), Instant::now());
        Ok(Connection { stream, session, cancel, variant, diag, connect_time, since })
    };
    let limit = spec.pool.connect_timeout;
    let outcome = timeout(limit, attempt).await.unwrap_or(Err(ConnectCause::Timeout { limit }));
    outcome.map_err(|cause| ConnectError::new(spec, cause))
}

/// Asks the server to cancel the query of a connection.
///
/// The server closes the connection of the request, whether it found a query or not (PostgreSQL documentation, "Canceling
/// Requests in Progress").
pub(crate) async fn cancel(spec: &BackendSpec, request: &CancelRequest) -> Result<(), ConnectError> {
    let attempt = async {
        let (mut stream, _) = Stream::dial(spec, &LoginVariant::Plain).await?;
        stream.write_all(&request.0).await.map_err(ConnectCause::Lost)?;
        stream.read(&mut [0]).await.map_err(ConnectCause::Lost)?;
        Ok(())
    };
    let limit = spec.pool.connect_timeout;
    let outcome = timeout(limit, attempt).await.unwrap_or(Err(ConnectCause::Timeout { limit }));
    outcome.map_err(|cause| ConnectError::new(spec, cause))
}
