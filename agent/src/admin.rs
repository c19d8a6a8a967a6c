//! `admin`: metrics, health and the API, for operators on this machine.
//!
//! | | |
//! |---|---|
//! | `GET /metrics` | Prometheus text |
//! | `GET /healthz` | 200 while the agent runs |
//! | `GET /readyz` | 200 when every function is served, else 503 and which are not |
//! | `GET /api/v1/starts` | the last 256 cold starts, oldest first |
//! | `GET /api/v1/functions` | every function with its state |
//! | `GET /api/v1/functions/NAME` | the same of one |
//! | `GET /api/v1/backends` | every pool with its connections and its last error |
//! | `POST /api/v1/functions/NAME/wake` | start it as if a client had come |
//! | `POST /api/v1/functions/NAME/freeze` | freeze the idle instances |
//! | `POST /api/v1/functions/NAME/stop` | stop the running instances |
//! | `POST /api/v1/reload` | read the configuration again: 200 and what has changed, else 409 and why nothing has |

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use headstart_config::Function;
use headstart_injector::{Pool, PoolStatus};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::measure::{self, Export, StartHistory, Timeline};
use crate::node::{FunctionStatus, NodeHandle, Operation};
use crate::reload::ReloadRequest;
use crate::syn::Attached;

/// A configured function that cannot be served, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Unavailable {
    /// Configured name.
    pub name: String,
    /// What is wrong and what to do.
    pub reason: String,
}

impl Unavailable {
    /// Also says so in the log.
    pub(crate) fn because(function: &Function, reason: String) -> Self {
        tracing::error!(function = function.name, "not served: {reason}");
        Self { name: function.name.clone(), reason }
    }
}

/// What the configuration says of, apart from functions that are served.
#[derive(Default)]
pub struct Shown {
    /// Every pool.
    pub pools: Vec<Pool>,
    /// What is configured and not served.
    pub unavailable: Vec<Unavailable>,
}

/// What the pages show.
pub struct Admin {
    /// The node.
    pub node: NodeHandle,
    /// The last cold starts.
    pub starts: Arc<StartHistory>,
    /// The recorder of the metrics.
    pub export: Export,
    /// The rest, as that changes.
    pub shown: watch::Receiver<Shown>,
    /// Where the kernel half is attached, as that changes.
    pub attached: watch::Receiver<Vec<Attached>>,
    /// Has the configuration read again.
    pub reload: mpsc::Sender<ReloadRequest>,
}

/// Answers requests until `stop` resolves.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    admin: Admin,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(Arc::new(admin))).with_graceful_shutdown(stop).await
}

fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/api/v1/starts", get(starts))
        .route("/api/v1/functions", get(functions))
        .route("/api/v1/functions/{name}", get(function))
        .route("/api/v1/backends", get(backends))
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/functions/{name}/{operation}", post(operate))
        .layer(middleware::from_fn(refuse_browsers))
        .with_state(admin)
}

/// A web page must not steer the agent of whoever looks at it: browsers say
/// where a cross-site request comes from, and rebound names do not match.
async fn refuse_browsers(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) || !is_local(request.headers()) {
        let text = "the admin address is not for web pages: use an IP address or localhost, without Origin\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
}

fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return true };
    let name =
        host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    admin.node.scrape().await;
    for pool in &admin.shown.borrow().pools {
        scrape_pool(&pool.status());
    }
    for Attached { interface, mode, on } in &*admin.attached.borrow() {
        measure::scrape::syn_sensor(interface, mode.as_str(), *on);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.export.render())
}

fn scrape_pool(status: &PoolStatus) {
    let backend = &status.backend;
    for (state, connections) in
        [("idle", status.idle), ("connecting", status.connecting), ("leased", status.leased)]
    {
        measure::scrape::pool(backend, state, connections);
    }
    for (reason, total) in &status.tally.discards {
        measure::scrape::pool_discards(backend, reason.as_str(), *total);
    }
    for (reason, total) in &status.tally.fallbacks {
        measure::scrape::pool_fallbacks(backend, reason.as_str(), *total);
    }
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let shown = admin.shown.borrow();
    if shown.unavailable.is_empty() {
        return "ready\n".into_response();
    }
    let list: String = shown
        .unavailable
        .iter()
        .map(|function| format!("{}: {}\n", function.name, function.reason))
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, list).into_response()
}

async fn starts(State(admin): State<Arc<Admin>>) -> Json<Vec<Timeline>> {
    Json(admin.starts.list())
}

/// One row of `GET /api/v1/functions`.
#[derive(Serialize)]
#[serde(untagged)]
enum Row {
    Served(Box<FunctionStatus>),
    Unavailable {
        #[serde(flatten)]
        function: Unavailable,
        state: &'static str,
    },
}

async fn functions(State(admin): State<Arc<Admin>>) -> Json<Vec<Row>> {
    Json(rows(&admin, None).await)
}

async fn function(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Response {
    // One that leaves comes before the one that takes its name.
    match rows(&admin, Some(name.clone())).await.pop() {
        Some(row) => Json(row).into_response(),
        None => (StatusCode::NOT_FOUND, format!("no function {name:?} is configured\n")).into_response(),
    }
}

async fn rows(admin: &Admin, name: Option<String>) -> Vec<Row> {
    let served = admin.node.status(name.clone()).await.into_iter();
    let shown = admin.shown.borrow();
    let rest = shown.unavailable.iter().filter(|row| name.as_ref().is_none_or(|name| row.name == *name));
    let rest = rest.cloned().map(|function| Row::Unavailable { function, state: "unavailable" });
    served.map(|function| Row::Served(Box::new(function))).chain(rest).collect()
}

async fn backends(State(admin): State<Arc<Admin>>) -> Json<Vec<PoolStatus>> {
    Json(admin.shown.borrow().pools.iter().map(Pool::status).collect())
}

async fn reload(State(admin): State<Arc<Admin>>) -> Response {
    let (request, answer) = oneshot::channel();
    let asked = admin.reload.send(request).await.is_ok();
    match answer.await {
        Ok(Ok(outcome)) if asked => Json(outcome).into_response(),
        Ok(Err(refusal)) => (StatusCode::CONFLICT, format!("{refusal}\n")).into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n").into_response(),
    }
}

async fn operate(
    State(admin): State<Arc<Admin>>,
    Path((name, operation)): Path<(String, String)>,
) -> (StatusCode, String) {
    let operation = match operation.as_str() {
        "wake" => Operation::Wake,
        "freeze" => Operation::Freeze,
        "stop" => Operation::Stop,
        _ => return (StatusCode::NOT_FOUND, "there are wake, freeze and stop\n".into()),
    };
    if admin.node.operate(name.clone(), operation).await {
        (StatusCode::ACCEPTED, String::new())
    } else {
        (StatusCode::NOT_FOUND, format!("no function {name:?} is served\n"))
    }
}

/// Opens the admin listener.
///
/// # Errors
/// With what to do about it.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        format!("cannot listen on the admin address {address}: {error}; choose another `admin` in [agent]")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_names_and_addresses_are_hosts() {
        for (host, local) in [
            ("127.0.0.1:9464", true),
            ("127.0.0.1", true),
            ("[::1]:9464", true),
            ("[::1]", true),
            ("localhost:9464", true),
            ("node7.example:9464", false),
            ("localhost.example", false),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            assert_eq!(is_local(&headers), local, "{host}");
        }
        assert!(is_local(&HeaderMap::new()));
    }
}
