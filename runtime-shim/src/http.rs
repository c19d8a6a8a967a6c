//! HTTP/1.1 on the accept loop: an axum router, and an end that loses no request.

use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::middleware::map_response;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::time::sleep;

use crate::{Connection, Error, Function};

/// How long a client may take to send the head of a request, or stay idle between two.
const HEAD_WAIT: Duration = Duration::from_secs(60);

/// How long after SIGTERM a client that has connected may still begin its first
/// request: it was accepted, so nobody else will answer it.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(300);

impl Function {
    /// Serves this router over HTTP/1.1 (with upgrades) until SIGTERM; the whole
    /// of a function that speaks HTTP.
    ///
    /// Like [`serve_connections`](Self::serve_connections); on SIGTERM requests in
    /// flight are answered, and idle keep-alive connections are closed at once.
    /// When the last place of [`concurrency`](Self::concurrency) is taken it is the same: others may be waiting for
    /// one. With a concurrency of 1 each connection has one request.
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

/// Says that the connection ends where the last place is taken. Hyper says so by itself only while it still waits for
/// the answer.
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
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    let mut conversation = pin!(conversation);
    // Errors are the client's: it went away, or does not speak HTTP.
    tokio::select! {
        // The conversation first: a request that is there already is in flight.
        biased;
        _ = conversation.as_mut() => return,
        () = function.stopping() => {}
        () = function.places().full() => {}
    }
    conversation.as_mut().graceful_shutdown();
    let _ = conversation.await;
}

/// Waits for the client's first bytes: true when they are there. Whether the socket is said to be readable does not
/// tell: a new one is, until somebody has tried.
async fn speaks(connection: &Connection, function: &Function) -> bool {
    let too_late = async {
        function.stopping().await;
        sleep(FIRST_REQUEST_GRACE).await;
    };
    let mut first = [0];
    tokio::select! {
        biased;
        bytes = connection.get_ref().peek(&mut first) => bytes.is_ok_and(|bytes| bytes > 0),
        () = too_late => false,
        () = sleep(HEAD_WAIT) => false,
    }
}
