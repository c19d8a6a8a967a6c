//! What a protocol must know: the part in which backends differ.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::{CancelRequest, ConnectCause, LoginVariant, Session, Stream};
use crate::sockets::{BackendSocket, ClientSession};

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What comes of a login.
#[derive(Debug)]
pub(crate) struct LoginResult {
    pub(crate) session: Session,
    pub(crate) cancel: Option<CancelRequest>,
    /// What an operator should know if a network has seen the login in the clear.
    pub(crate) exposed: Option<&'static str>,
}

/// A protocol, with the data of its login.
pub(crate) trait Protocol: Send + Sync {
    /// Asks the server for TLS, in protocols where TLS follows a request. Returns the server's bytes that belong to the
    /// login.
    fn start_tls<'a>(
        &'a self,
        _: &'a mut TcpStream,
        _: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<Vec<u8>, ConnectCause>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// The name of the protocol (RFC 7301) that servers expect when TLS begins without a request.
    fn direct_tls(&self) -> Option<&'static [u8]> {
        None
    }

    /// Logs in on a fresh stream, and leaves it quiet. `greeting` is the result of [`Protocol::start_tls`].
    fn log_in<'a>(
        &'a self,
        stream: &'a mut Stream,
        greeting: Vec<u8>,
        variant: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<LoginResult, ConnectCause>>;

    /// The socket file that a configured path means.
    fn socket_path(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }

    /// The name of the socket file that drivers look for in a directory.
    fn socket_name(&self) -> &'static str {
        "socket"
    }

    /// Answers the login of a client with a connection of the pool: the client cannot tell that the login happened before.
    /// `None` when the client is not admitted; it was told why.
    fn admit<'a, 's: 'a>(
        &'a self,
        _: &'a mut Stream,
        socket: &'s BackendSocket,
    ) -> BoxFuture<'a, Option<ClientSession<'s>>> {
        Box::pin(async {
            let lease = socket
                .lease(LoginVariant::Plain)
                .await
                .inspect_err(|error| tracing::warn!("{error}"))
                .ok()?;
            let (server, session, slot) = lease;
            Some(ClientSession { server, session, slot: Arc::new(slot), cancel: None })
        })
    }

    /// Tells a client that there are too many.
    fn turn_away(&self, client: Stream) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(client) })
    }

    /// Finds the end of a client's conversation, in protocols whose sessions can be cleaned.
    fn termination_detector(&self) -> Option<Box<dyn TerminationDetector>> {
        None
    }

    /// Brings a session back to its state after the login of this kind. Every unexpected answer is an error, and ends the session.
    fn clean<'a>(
        &'a self,
        _: &'a mut Stream,
        _: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<(), ConnectCause>> {
        Box::pin(async { Err(ConnectCause::Closed) })
    }

    /// The last message before the connection is closed; empty if the protocol has none.
    fn termination_message(&self) -> &'static [u8] {
        &[]
    }

    /// Parses the first packet of a client, as far as no pool is needed for that.
    #[cfg(feature = "fuzzing")]
    fn fuzz_first_packet(&self, _: &[u8]) {}
}

/// Why the login of a client has failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AdmissionError<R> {
    /// The client has left.
    Left,
    /// The client cannot be served, and must be told so.
    Refused(R),
}

impl<R> From<R> for AdmissionError<R> {
    fn from(refusal: R) -> Self {
        Self::Refused(refusal)
    }
}

/// Follows a client and its server, to find out where their conversation ends.
pub(crate) trait TerminationDetector: Send {
    /// Where the client's termination message begins in its next bytes, if it is there.
    fn find(&mut self, bytes: &[u8]) -> Option<usize>;

    /// The next bytes of the server.
    fn server_sent(&mut self, _: &[u8]) {}

    /// Whether the server has refused a write because it is a replica.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Whether a client that leaves now without a termination message has left nothing unfinished.
    fn is_complete(&self) -> bool {
        false
    }
}
