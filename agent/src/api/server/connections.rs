//! The connections of the admin server, and their limits: a client that sends or reads slowly holds up neither the other
//! clients nor the end of the agent.

use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Most connections at a time. Further ones wait in the accept queue until one of these ends, for [`HEAD_WAIT`] at most if
/// these are idle.
const CONNECTIONS_MAX: usize = 64;

/// Longest time until the head of a request is complete, counted from the start of the connection or from the previous
/// answer. It is also how long a connection may be idle.
const HEAD_WAIT: Duration = Duration::from_secs(5);

/// Longest time that a client of the TCP address may leave an answer unread once its receive window is full. The kernel
/// then ends the connection (`TCP_USER_TIMEOUT`, tcp(7)).
const UNREAD_MAX: Duration = Duration::from_secs(10);

/// Most bytes of a request that the agent keeps before they are processed, so the longest head too. Tools send a few hundred.
const BUFFER_MAX: usize = 16 * 1024;

/// Most bytes that a request may announce as its body. No route reads one; some clients send an empty object with a POST.
const BODY_MAX: u64 = 4 * 1024;

/// Time for requests in flight when the agent stops. Then their connections are dropped, because the agent has no instances
/// left and must exit.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// The pause after an error of `accept`: it is mostly a lack of descriptors, which lasts.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Where clients come in.
pub(super) trait Door: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and whether its client may change anything.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, bool)>> + Send;
}

/// Every local user reaches it.
impl Door for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, bool)> {
        let (stream, _) = Self::accept(self).await?;
        if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_MAX)) {
            tracing::warn!("the time limit of a connection to the admin address cannot be set: {error}");
        }
        Ok((stream, false))
    }
}

/// Its file is for the agent's user alone. The kernel says who connects, whatever became of the file's mode.
impl Door for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, bool)> {
        let (stream, _) = Self::accept(self).await?;
        let user = stream.peer_cred()?.uid();
        let may_change = user == 0 || user == nix::unistd::geteuid().as_raw();
        Ok((stream, may_change))
    }
}

/// What clients get: those who may change something, and the others.
#[derive(Clone)]
pub(super) struct Routes {
    pub(super) changes: Router,
    pub(super) reads: Router,
}

/// Serves `routes` until the sender of `stopped` is gone, and for [`STOP_WAIT`] at most after that.
pub(super) async fn serve(door: impl Door, routes: Routes, mut stopped: watch::Receiver<()>) {
    let service = |routes: Router| TowerToHyperService::new(routes.layer(middleware::from_fn(refuse_bodies)));
    let (changes, reads) = (service(routes.changes), service(routes.reads));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            Some(_) = connections.join_next() => {}
            (stream, may_change) = accept(&door), if connections.len() < CONNECTIONS_MAX => {
                let service = if may_change { &changes } else { &reads };
                connections.spawn(converse(stream, service.clone(), stopped.clone()));
            }
        }
    }
    drop(door);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_WAIT, ended).await.is_err() {
        tracing::info!(
            connections = connections.len(),
            "connections to the admin address did not end within {STOP_WAIT:?}: dropped"
        );
        connections.shutdown().await;
    }
}

async fn accept<D: Door>(door: &D) -> (D::Stream, bool) {
    loop {
        match door.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!("a connection to the admin address cannot be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: TowerToHyperService<Router>,
    mut stopped: watch::Receiver<()>,
) {
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut conversation = pin!(conversation);
    // An error means that the client has gone, was too slow, or does not speak HTTP.
    tokio::select! {
        // First the conversation: a request that has arrived is in flight.
        biased;
        _ = conversation.as_mut() => return,
        _ = stopped.changed() => {}
    }
    conversation.as_mut().graceful_shutdown();
    let _ = conversation.await;
}

/// Refuses what announces a long body. A body of unknown length stays unread: the server ends the connection after the
/// answer.
async fn refuse_bodies(request: Request, next: Next) -> Response {
    if request.body().size_hint().lower() > BODY_MAX {
        let text =
            format!("requests to the admin address need no body, and may have {BODY_MAX} bytes at most\n");
        return (StatusCode::PAYLOAD_TOO_LARGE, text).into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests;
