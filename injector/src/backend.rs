//! Backends: how to reach a server, log in, and recognise that the connection is still good.
//!
//! Each protocol is a sibling file with its login data and one `Protocol` implementation; `login`, `admit`, `clean` and
//! `tests` in the folder of its name hold the parts. One more protocol is such a file, a variant of [`BackendKind`] with
//! its arms below, and a variant of [`Session`].

mod certificate;
mod dial;
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
use std::net::SocketAddr;

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
    /// Tells whether a process still has it open.
    pub(crate) diag: Option<SocketDiag>,
    /// How long connect and login took.
    pub(crate) connect_time: std::time::Duration,
    /// Since when it is logged in.
    pub(crate) since: Instant,
}

/// The whole packet that cancels the connection's query when it is sent on a connection of its own. It contains the
/// cancel key. With the server that runs the query: its name may lead elsewhere by then.
pub(crate) struct CancelRequest(pub(crate) Zeroizing<Vec<u8>>, pub(crate) Option<SocketAddr>);

impl fmt::Debug for CancelRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CancelRequest(***)")
    }
}

/// Connects and logs in, within the connect timeout. Also returns what an operator should know of the login.
pub(crate) async fn connect(
    spec: &BackendSpec,
    variant: LoginVariant,
) -> Result<(Connection, Option<&'static str>), ConnectError> {
    let protocol = spec.kind.protocol();
    let began = Instant::now();
    let attempt = async {
        let (mut stream, greeting) = Stream::dial(spec, &variant, None).await?;
        let LoginResult { session, cancel, exposed } =
            protocol.log_in(&mut stream, greeting, &variant).await?;
        let exposed = exposed.filter(|_| stream.is_exposed());
        let cancel = cancel.map(|request| CancelRequest(request.0, stream.peer()));
        let (diag, connect_time, since) = (SocketDiag::of(&stream), began.elapsed(), Instant::now());
        Ok((Connection { stream, session, cancel, variant, diag, connect_time, since }, exposed))
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
        let (mut stream, _) = Stream::dial(spec, &LoginVariant::Plain, request.1).await?;
        stream.write_all(&request.0).await.map_err(ConnectCause::Lost)?;
        stream.read(&mut [0]).await.map_err(ConnectCause::Lost)?;
        Ok(())
    };
    let limit = spec.pool.connect_timeout;
    let outcome = timeout(limit, attempt).await.unwrap_or(Err(ConnectCause::Timeout { limit }));
    outcome.map_err(|cause| ConnectError::new(spec, cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, PoolSettings};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_query_is_cancelled_where_it_runs() {
        let now = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let spec = BackendSpec {
            name: "db".into(),
            kind: BackendKind::Tcp,
            // The name leads elsewhere by now.
            address: Address::Tcp(now.local_addr().unwrap().to_string()),
            tls: None,
            pool: PoolSettings::default(),
        };
        let request = CancelRequest(Zeroizing::new(b"cancel".to_vec()), server.local_addr().ok());
        let received = async {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut packet = [0; 6];
            stream.read_exact(&mut packet).await.unwrap();
            packet
        };
        let (outcome, packet) = tokio::join!(cancel(&spec, &request), received);
        outcome.unwrap();
        assert_eq!(&packet, b"cancel");
    }
}
