//! Backends: how to reach a server, log in, and recognise that the connection is still good.
//!
//! Every protocol is one sibling module with one `Protocol` implementation. A new one is a file, a
//! [`BackendKind`] with its line in `protocol()`, and what its [`Session`] tells the function.

mod certificate;
mod error;
mod liveness;
pub(crate) mod mysql;
pub(crate) mod postgres;
mod redis;
mod relay;
pub(crate) mod stream;
mod tcp;
mod tls;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

pub use error::{ConnectCause, ConnectError};
pub use headstart_wire::Session;
use liveness::{farewell, is_quiet};
pub use postgres::ProtocolError;
pub(crate) use stream::Stream;
pub(crate) use tls::{Kept, NoHandOver};
pub use tls::{Tls, TlsSettings, TlsSettingsError};

use crate::sockets::{Admitted, Door};
use crate::{BackendKind, BackendSpec};

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connection that is logged in and quiet.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    pub(crate) session: Session,
    pub(crate) cancel: Option<CancelRequest>,
    pub(crate) connect_time: std::time::Duration,
    /// Since when it is logged in.
    pub(crate) since: Instant,
}

/// The whole packet that cancels the connection's query when sent on a connection of its own. It is
/// as good as the cancel key in it.
pub(crate) struct CancelRequest(pub(crate) Zeroizing<Vec<u8>>);

impl fmt::Debug for CancelRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CancelRequest(***)")
    }
}

/// What a protocol knows after its login.
#[derive(Debug)]
pub(crate) struct LoggedIn {
    pub(crate) session: Session,
    pub(crate) cancel: Option<CancelRequest>,
}

/// A protocol: the part in which backends differ.
pub(crate) trait Protocol: Send + Sync {
    /// Asks for TLS, where that is not simply begun. Returns what the server has said that is for the login.
    fn start_tls<'a>(&'a self, _: &'a mut TcpStream) -> BoxFuture<'a, Result<Vec<u8>, ConnectCause>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// The name of the protocol (RFC 7301) that servers expect which take TLS without being asked.
    fn direct_tls(&self) -> Option<&'static [u8]> {
        None
    }

    /// Logs in on a fresh stream, and leaves it quiet. `said` is what came before TLS.
    fn log_in<'a>(
        &'a self,
        stream: &'a mut Stream,
        said: Vec<u8>,
    ) -> BoxFuture<'a, Result<LoggedIn, ConnectCause>>;

    /// The socket file that a configured path means.
    fn socket_path(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }

    /// The name of the socket file that drivers look for in a directory.
    fn socket_name(&self) -> &'static str {
        "socket"
    }

    /// Has a client that knows nothing of pools believe that it has connected and logged in. `None` when it is not
    /// admitted: then it has been told.
    fn admit<'a, 'd: 'a>(&'a self, _: &'a mut Stream, door: &'d Door) -> BoxFuture<'a, Option<Admitted<'d>>> {
        Box::pin(async {
            let leased = door.lease().await.inspect_err(|error| tracing::warn!("{error}")).ok()?;
            let (server, session, slot) = leased;
            Some(Admitted { server, session, slot: Arc::new(slot), key: None })
        })
    }

    /// Finds out when a client says goodbye, in a protocol whose sessions can be cleaned.
    fn goodbye(&self) -> Option<Box<dyn Goodbye>> {
        None
    }

    /// Makes a session as it was after its login. Whatever is not as expected is an error, and its end.
    fn clean<'a>(&'a self, _: &'a mut Stream) -> BoxFuture<'a, Result<(), ConnectCause>> {
        Box::pin(async { Err(ConnectCause::Closed) })
    }

    /// Tells a client that there are too many.
    fn turn_away(&self, client: Stream) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(client) })
    }

    /// What a polite client says before it closes.
    fn farewell(&self) -> &'static [u8] {
        &[]
    }
}

/// Watches what a client and its server say.
pub(crate) trait Goodbye: Send {
    /// Where the client's goodbye begins in its next bytes, if it is there.
    fn find(&mut self, bytes: &[u8]) -> Option<usize>;

    /// The next bytes of the server.
    fn answered(&mut self, _: &[u8]) {}

    /// Whether a client that leaves now without a word has left nothing undone.
    fn is_through(&self) -> bool {
        false
    }
}

impl BackendKind {
    pub(crate) fn protocol(&self) -> &dyn Protocol {
        match self {
            Self::Tcp => &tcp::Bare,
            Self::Postgres(login) => login,
            Self::Redis(login) => login,
            Self::Mysql(login) => login,
        }
    }
}

/// Connects and logs in, within the connect timeout.
pub(crate) async fn connect(spec: &BackendSpec) -> Result<Connection, ConnectError> {
    let protocol = spec.kind.protocol();
    let begun = Instant::now();
    let attempt = async {
        let (mut stream, said) = Stream::dial(spec).await?;
        let LoggedIn { session, cancel } = protocol.log_in(&mut stream, said).await?;
        Ok(Connection { stream, session, cancel, connect_time: begun.elapsed(), since: Instant::now() })
    };
    let limit = spec.pool.connect_timeout;
    let outcome = timeout(limit, attempt).await.unwrap_or(Err(ConnectCause::Timeout { limit }));
    outcome.map_err(|cause| ConnectError::new(spec, cause))
}

/// Asks the server to cancel what a connection is doing.
///
/// The server answers by closing, whether it found something to cancel or not (PostgreSQL
/// documentation, "Canceling Requests in Progress").
pub(crate) async fn cancel(spec: &BackendSpec, request: &CancelRequest) -> Result<(), ConnectError> {
    let attempt = async {
        let (mut stream, _) = Stream::dial(spec).await?;
        stream.write_all(&request.0).await.map_err(ConnectCause::Lost)?;
        stream.read(&mut [0]).await.map_err(ConnectCause::Lost)?;
        Ok(())
    };
    let limit = spec.pool.connect_timeout;
    let outcome = timeout(limit, attempt).await.unwrap_or(Err(ConnectCause::Timeout { limit }));
    outcome.map_err(|cause| ConnectError::new(spec, cause))
}
