//! `admin`: metrics, health and the API, for operators on this machine.
//!
//! Everyone who reaches the TCP address may read. Only root and the agent's user may change something (POST), over the
//! unix socket `admin.sock` in the state directory, which answers everything.
//!
//! | | |
//! |---|---|
//! | `GET /metrics` | Prometheus text |
//! | `GET /healthz` | 200 while the agent runs |
//! | `GET /readyz` | 200 when every function is served and its containers can be made, else 503 and which are not |
//! | `GET /api/v1/starts` | the last 256 cold starts, oldest first |
//! | `GET /api/v1/functions` | every function with its state |
//! | `GET /api/v1/functions/NAME` | the same of one |
//! | `GET /api/v1/agent` | where the unix socket is |
//! | `GET /api/v1/fronts` | every front with its certificates |
//! | `GET /api/v1/backends` | every pool with its connections and its last error |
//! | `POST /api/v1/functions/NAME/wake` | start it as if a client had come |
//! | `POST /api/v1/functions/NAME/freeze` | freeze the idle instances |
//! | `POST /api/v1/functions/NAME/stop` | stop the running instances |
//! | `POST /api/v1/reload` | read the configuration again: 200 and what has changed, else 409 and why nothing has |

mod connections;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use headstart_injector::{Pool, PoolStatus};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::connections::Routes;
use super::socket_path::SocketPath;
use super::{
    AGENT, AgentStatus, BACKENDS, FRONTS, FUNCTIONS, FailureCause, FrontStatus, Function, FunctionStatus,
    Operation, RELOAD, ReloadOutcome, STARTS, Timeline, Unavailable,
};
use crate::measure::{self, Export, StartHistory};
use crate::serve::front::ConnectionCount;
use crate::syn::AttachedSensor;

/// What the server asks of the task that owns the state of the functions.
pub trait Control: Clone + Send + Sync + 'static {
    /// The state of every served function, or of those with this name.
    fn status(&self, name: Option<String>) -> impl Future<Output = Vec<FunctionStatus>> + Send;

    /// Begins an operation; false when no function with this name is served.
    fn operate(&self, name: String, operation: Operation) -> impl Future<Output = bool> + Send;

    /// Brings gauges and kernel counters up to date.
    fn scrape(&self) -> impl Future<Output = ()> + Send;
}

/// Asks for the configuration to be read again. The answer is what has changed, or why nothing has.
pub type ReloadRequest = oneshot::Sender<Result<ReloadOutcome, String>>;

/// What the server shows beside the served functions.
#[derive(Default)]
pub struct Overview {
    /// Every pool.
    pub pools: Vec<Pool>,
    /// What is configured and not served.
    pub unavailable: Vec<Unavailable>,
    /// What is served as soon as its address is bound again.
    pub without_listener: Vec<Unavailable>,
    /// Every front.
    pub fronts: Vec<FrontView>,
}

/// A front, and what counts its connections while it accepts.
pub struct FrontView {
    /// As it was when it was last changed.
    pub status: FrontStatus,
    /// Counts.
    pub count: Option<ConnectionCount>,
}

impl FrontView {
    fn now(&self) -> FrontStatus {
        let connections = self.count.as_ref().map_or(0, ConnectionCount::open);
        FrontStatus { connections, ..self.status.clone() }
    }
}

/// What the server reads and controls.
#[derive(Clone)]
pub struct Server<C> {
    /// The owner of the functions' state.
    pub control: C,
    /// The last cold starts.
    pub starts: Arc<StartHistory>,
    /// The recorder of the metrics.
    pub export: Export,
    /// The rest, as that changes.
    pub overview: watch::Receiver<Overview>,
    /// Where the kernel half is attached, as that changes.
    pub attached: watch::Receiver<Vec<AttachedSensor>>,
    /// Takes requests to read the configuration again.
    pub reload: mpsc::Sender<ReloadRequest>,
}

/// A server that answers requests.
pub struct ServerTask {
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

/// Where clients come in.
pub struct Doors {
    address: TcpListener,
    socket: UnixListener,
    path: PathBuf,
}

impl ServerTask {
    /// Answers requests from now on.
    pub fn start<C: Control>(doors: Doors, server: Server<C>) -> Self {
        let (stop, stopped) = watch::channel(());
        let Doors { address, socket, path } = doors;
        let routes = routes(Arc::new(server), path.display().to_string());
        let serving = async {
            // Each has its own limit of connections: readers cannot keep the operator out.
            let by_address = connections::serve(address, routes.clone(), stopped.clone());
            tokio::join!(by_address, connections::serve(socket, routes, stopped));
        };
        Self { stop, task: tokio::spawn(serving) }
    }

    /// Answers requests in flight, within 2 s, and ends.
    ///
    /// # Errors
    /// When the task has failed.
    pub async fn stop(self) -> io::Result<()> {
        drop(self.stop);
        self.task.await.map_err(io::Error::other)
    }
}

/// `socket` is the path of the unix socket.
fn routes<C: Control>(server: Arc<Server<C>>, socket: String) -> Routes {
    let status = AgentStatus { admin_socket: socket.clone() };
    let refusal: Arc<str> = format!(
        "only root and the agent's user may change something, over the unix socket {socket}: run `headstart` as root, or \
         `curl --unix-socket {socket}`\n"
    )
    .into();
    let changes = Router::new()
        .route("/metrics", get(metrics::<C>))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz::<C>))
        .route(STARTS, get(starts::<C>))
        .route(FUNCTIONS, get(functions::<C>))
        .route(&format!("{FUNCTIONS}/{{name}}"), get(function::<C>))
        .route(AGENT, get(async || Json(status)))
        .route(FRONTS, get(fronts::<C>))
        .route(BACKENDS, get(backends::<C>))
        .route(RELOAD, post(reload::<C>))
        .route(&format!("{FUNCTIONS}/{{name}}/{{operation}}"), post(operate::<C>))
        .layer(middleware::from_fn(refuse_browsers))
        .with_state(server);
    let refuse = move |request: Request, next: Next| refuse_changes(Arc::clone(&refusal), request, next);
    Routes { reads: changes.clone().layer(middleware::from_fn(refuse)), changes }
}

/// What is safe (RFC 9110, 9.2.1) changes nothing.
async fn refuse_changes(refusal: Arc<str>, request: Request, next: Next) -> Response {
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, refusal.to_string()).into_response()
}

/// A web page must not control the agent on the machine where it is shown. Browsers send an `Origin` with a cross-site
/// request, and a name that was rebound to this machine is not a local one.
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

async fn metrics<C: Control>(State(server): State<Arc<Server<C>>>) -> impl IntoResponse {
    server.control.scrape().await;
    for pool in &server.overview.borrow().pools {
        scrape_pool(&pool.status());
    }
    for FrontView { status, .. } in &server.overview.borrow().fronts {
        for certificate in &status.certificates {
            measure::front_expiry(&status.name, &certificate.file, certificate.expires_unix);
        }
    }
    for AttachedSensor { interface, mode, on } in &*server.attached.borrow() {
        measure::scrape::syn_sensor(interface, mode.as_str(), *on);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], server.export.render())
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

async fn readyz<C: Control>(State(server): State<Arc<Server<C>>>) -> Response {
    let functions = server.functions(None).await;
    let mut list: String = functions.iter().filter_map(unready).collect();
    let overview = server.overview.borrow();
    let without_listener = overview.without_listener.iter();
    list.extend(without_listener.map(|function| format!("{}: {}\n", function.name, function.reason)));
    let fronts = overview.fronts.iter().map(|front| &front.status);
    list.extend(
        fronts.filter_map(|front| Some(format!("front {}: {}\n", front.name, front.error.as_ref()?))),
    );
    if list.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, list).into_response()
}

/// Why clients of a function are not served: what the function or a backend does wrong is not the agent's.
fn unready(function: &Function) -> Option<String> {
    match function {
        Function::Unavailable(function) => Some(format!("{}: {}\n", function.name, function.reason)),
        Function::Served(function) if function.failure == Some(FailureCause::Node) => {
            let error = function.last_error.as_deref().unwrap_or("no container can be made");
            Some(format!("{}: {error}\n", function.name))
        }
        Function::Served(_) => None,
    }
}

async fn starts<C: Control>(State(server): State<Arc<Server<C>>>) -> Json<Vec<Timeline>> {
    Json(server.starts.list())
}

async fn functions<C: Control>(State(server): State<Arc<Server<C>>>) -> Json<Vec<Function>> {
    Json(server.functions(None).await)
}

async fn function<C: Control>(State(server): State<Arc<Server<C>>>, Path(name): Path<String>) -> Response {
    // A function that is being removed comes before the one that takes its name.
    match server.functions(Some(name.clone())).await.pop() {
        Some(function) => Json(function).into_response(),
        None => (StatusCode::NOT_FOUND, format!("no function {name:?} is configured\n")).into_response(),
    }
}

impl<C: Control> Server<C> {
    /// Every configured function, or those with this name.
    async fn functions(&self, name: Option<String>) -> Vec<Function> {
        let served = self.control.status(name.clone()).await.into_iter();
        let overview = self.overview.borrow();
        let others = overview.unavailable.iter();
        let others = others.filter(|function| name.as_ref().is_none_or(|name| function.name == *name));
        let others = others.cloned().map(Function::Unavailable);
        served.map(|function| Function::Served(Box::new(function))).chain(others).collect()
    }
}

async fn backends<C: Control>(State(server): State<Arc<Server<C>>>) -> Json<Vec<PoolStatus>> {
    Json(server.overview.borrow().pools.iter().map(Pool::status).collect())
}

async fn fronts<C: Control>(State(server): State<Arc<Server<C>>>) -> Json<Vec<FrontStatus>> {
    Json(server.overview.borrow().fronts.iter().map(FrontView::now).collect())
}

async fn reload<C: Control>(State(server): State<Arc<Server<C>>>) -> Response {
    let (request, answer) = oneshot::channel();
    let sent = server.reload.send(request).await.is_ok();
    match answer.await {
        Ok(Ok(outcome)) if sent => Json(outcome).into_response(),
        Ok(Err(refusal)) => (StatusCode::CONFLICT, format!("{refusal}\n")).into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n").into_response(),
    }
}

async fn operate<C: Control>(
    State(server): State<Arc<Server<C>>>,
    Path((name, operation)): Path<(String, String)>,
) -> (StatusCode, String) {
    let Some(operation) = Operation::ALL.into_iter().find(|known| known.as_str() == operation) else {
        return (StatusCode::NOT_FOUND, "there are wake, freeze and stop\n".into());
    };
    if server.control.operate(name.clone(), operation).await {
        (StatusCode::ACCEPTED, String::new())
    } else {
        (StatusCode::NOT_FOUND, format!("no function {name:?} is served\n"))
    }
}

impl Doors {
    /// Opens the admin address, and the unix socket in the agent's state directory, which is locked.
    ///
    /// # Errors
    /// With what to do about it.
    pub async fn open(address: SocketAddr, state_dir: &FilePath) -> Result<Self, String> {
        let address = TcpListener::bind(address).await.map_err(|error| {
            format!(
                "cannot listen on the admin address {address}: {error}; choose another `admin` in [agent]"
            )
        })?;
        let path = state_dir.join("admin.sock");
        let socket = private_socket(&path).map_err(|error| {
            format!("cannot listen on {}: {error}; choose another `state_dir` in [agent]", path.display())
        })?;
        Ok(Self { address, socket, path })
    }

    /// Where everyone may read.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.address.local_addr()
    }
}

/// A socket for this user alone. An earlier agent's file may be there.
fn private_socket(path: &FilePath) -> io::Result<UnixListener> {
    let path = SocketPath::of(path)?;
    let path = path.short();
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
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
