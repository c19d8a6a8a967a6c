//! A connection of a client that begins with HTTP/2.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::server::conn::http2;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::HEAD_WAIT;
use crate::{Connection, Function};

/// Requests of a connection at a time, unless the agent's configuration allows fewer; what hyper has.
const STREAMS_MAX: u32 = 200;

/// The beginning of HTTP/2 (RFC 9113, 3.4), and of no request of HTTP/1.1.
const BEGINNING: &[u8; 4] = b"PRI ";

/// Pause before another look at a client that has sent less than that, which is rare: the socket says no more than that
/// there is something.
const PEEK_PAUSE: Duration = Duration::from_millis(5);

/// Whether a client that has sent something begins with HTTP/2.
pub(super) async fn begins(connection: &Connection, function: &Function) -> bool {
    let look = async {
        let mut first = [0; BEGINNING.len()];
        loop {
            match connection.get_ref().peek(&mut first).await {
                Ok(length)
                    if (1..first.len()).contains(&length) && BEGINNING.starts_with(&first[..length]) =>
                {
                    sleep(PEEK_PAUSE).await;
                }
                Ok(_) => return first == *BEGINNING,
                Err(_) => return false,
            }
        }
    };
    tokio::select! {
        begins = look => begins,
        () = super::too_late(function) => false,
    }
}

pub(super) async fn converse(
    mut connection: Connection,
    service: TowerToHyperService<Router>,
    function: Function,
) {
    // The first bytes that are written are no response.
    let first = Arc::new(Mutex::new(connection.take_first()));
    let (begun, mut requests) = watch::channel(());
    let peer = connection.peer_addr();
    let service = service_fn(move |mut request| {
        begun.send_replace(());
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = service.call(request);
        let first = Arc::clone(&first);
        async move {
            let response = response.await;
            if let Some(first) = first.lock().unwrap_or_else(PoisonError::into_inner).take() {
                first.report();
            }
            response
        }
    });
    let conversation = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(function.concurrency().unwrap_or(STREAMS_MAX).min(STREAMS_MAX))
        .serve_connection(TokioIo::new(connection), service);
    let mut conversation = pin!(conversation);
    let mut requests_at_the_limit = requests.clone();
    let idle = async { while matches!(timeout(HEAD_WAIT, requests.changed()).await, Ok(Ok(()))) {} };
    let full = async {
        // The client is connected, and no other instance can answer its first request.
        let _ = requests_at_the_limit.changed().await;
        function.places().full().await;
    };
    tokio::select! {
        biased;
        _ = conversation.as_mut() => return,
        () = function.stopping() => {}
        () = full => {}
        () = idle => {}
    }
    // Requests that have begun are answered.
    conversation.as_mut().graceful_shutdown();
    let _ = conversation.await;
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use axum::routing::get;
    use hyper::client::conn::http2::handshake;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{advance, pause, resume};

    use super::*;
    use crate::testing::{PATIENCE, attached};

    /// The clock stands still only for that: it would run ahead of what is on its way.
    async fn pass(time: Duration) {
        pause();
        advance(time).await;
        resume();
    }

    /// It would keep its instance from being frozen.
    #[tokio::test]
    async fn a_client_without_requests_is_let_go() {
        let (_agent, function) = attached(Vec::new()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let accepted = Connection::new(accepted, peer, function.places().open(), &function);
        let service = TowerToHyperService::new(Router::new().route("/", get("here")));
        tokio::spawn(converse(accepted, service, function));
        let (mut client, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        for _ in 0..3 {
            pass(HEAD_WAIT * 2 / 3).await;
            client.ready().await.unwrap();
            let request = Request::get("http://test/").body(Body::empty()).unwrap();
            assert_eq!(client.send_request(request).await.unwrap().status(), 200);
        }
        assert!(!connection.is_finished());
        pass(HEAD_WAIT).await;
        timeout(PATIENCE, connection).await.unwrap().unwrap().unwrap();
    }
}
