//! HTTP on the accept loop: an axum router, and a graceful stop that loses no request.

#[cfg(feature = "http2")]
mod http2;

use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::middleware::map_response;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::time::{sleep, timeout};

use crate::{Connection, Error, Function};

/// Longest time for a client to send the head of a request, or to stay idle between two requests.
const HEAD_WAIT: Duration = Duration::from_secs(60);

/// Longest time after SIGTERM for a connected client to begin its first request: this
/// instance has accepted it, so no other instance can answer it.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(300);

impl Function {
    /// Serves this router over HTTP/1.1 (with upgrades) until SIGTERM; with the feature `http2` also over HTTP/2, to clients
    /// that begin with it ("prior knowledge", as in gRPC). A function that speaks HTTP needs no other call.
    ///
    /// A client that has closed its half of the connection still gets its answer. Handlers find its address with axum's
    /// `ConnectInfo<SocketAddr>`.
    ///
    /// Like [`serve_connections`](Self::serve_connections). On SIGTERM it answers requests
    /// in flight and closes idle keep-alive connections at once. It does the same when
    /// [`concurrency`](Self::concurrency) is reached, because other clients may wait for a place. With a concurrency of
    /// 1, each connection has one request. Over HTTP/2 a connection has several requests at a time, at most as many as
    /// [`concurrency`](Self::concurrency) says; in that version the connection ends a minute after its last request began.
    ///
    /// # Errors
    /// Those of [`serve_connections`](Self::serve_connections).
    pub async fn serve(&self, app: Router) -> Result<(), Error> {
        let app = match self.concurrency() {
            None => app,
            Some(_) => {
                let function = self.clone();
                app.layer(map_response(move |response| std::future::ready(announced(&function, response))))
            }
        };
        let service = TowerToHyperService::new(app);
        self.serve_connections(|connection| converse(connection, service.clone(), self.clone())).await
    }
}

/// Announces the end of the connection in `response` when no place is free. Hyper itself does so only while it still
/// waits for the response.
fn announced(function: &Function, mut response: Response) -> Response {
    if function.places().is_full() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn converse(connection: Connection, service: TowerToHyperService<Router>, function: Function) {
    if !speaks(&connection, &function).await {
        return;
    }
    #[cfg(feature = "http2")]
    if http2::begins(&connection, &function).await {
        return http2::converse(connection, service, function).await;
    }
    let peer = connection.peer_addr();
    let service = service_fn(move |mut request| {
        request.extensions_mut().insert(ConnectInfo(peer));
        service.call(request)
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .half_close(true)
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    let mut conversation = pin!(conversation);
    // An error means that the client has gone, or does not speak HTTP.
    tokio::select! {
        // First the conversation: a request that has arrived is in flight.
        biased;
        _ = conversation.as_mut() => return,
        () = function.stopping() => {}
        () = function.places().full() => {}
    }
    conversation.as_mut().graceful_shutdown();
    let _ = conversation.await;
}

/// Waits for the client's first bytes; true when they have arrived. It peeks, because tokio reports a new socket as
/// readable until the first attempt.
async fn speaks(connection: &Connection, function: &Function) -> bool {
    let mut first = [0];
    tokio::select! {
        biased;
        bytes = connection.get_ref().peek(&mut first) => bytes.is_ok_and(|bytes| bytes > 0),
        () = too_late(function) => false,
    }
}

/// When a client that has sent nothing, or too little, is given up.
async fn too_late(function: &Function) {
    let stopping = async {
        function.stopping().await;
        sleep(FIRST_REQUEST_GRACE).await;
    };
    // Whichever comes first.
    let _ = timeout(HEAD_WAIT, stopping).await;
}
