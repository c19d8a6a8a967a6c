//! Carries requests of HTTP/1.1 and HTTP/2: each goes to the function that its host and path name, in HTTP/1.1.
//!
//! A request has a connection of its own to its function, so that an instance has a connection exactly while it serves:
//! connections are what demand and idleness are counted in.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};

use super::connection::{Connection, OpenRequest};
use super::routes::{Found, Target};
use crate::event::Trigger;
use crate::http::HEAD_MAX;
use crate::measure::RequestOutcome;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// A request that goes to no function, with what its client is told.
struct Refusal(RequestOutcome, StatusCode, &'static str);

const NO_HOST: Refusal = Refusal(
    RequestOutcome::UnknownHost,
    StatusCode::NOT_FOUND,
    "no function is configured for this host and path\n",
);
const BAD_HOST: Refusal = Refusal(
    RequestOutcome::UnknownHost,
    StatusCode::BAD_REQUEST,
    "one host has to be named, without a user\n",
);
const BUSY: Refusal = Refusal(
    RequestOutcome::Unserved,
    StatusCode::SERVICE_UNAVAILABLE,
    "too many requests wait for answers\n",
);
const NO_TUNNEL: Refusal =
    Refusal(RequestOutcome::UnknownHost, StatusCode::METHOD_NOT_ALLOWED, "this is no proxy for CONNECT\n");
const OTHER_HOST: Refusal = Refusal(
    RequestOutcome::Misdirected,
    StatusCode::MISDIRECTED_REQUEST,
    "the TLS session was begun for another host\n",
);
const UNSERVED: Refusal = Refusal(
    RequestOutcome::Unserved,
    StatusCode::SERVICE_UNAVAILABLE,
    "the function is not served at present\n",
);
const TOO_MANY: Refusal = Refusal(
    RequestOutcome::SourceLimit,
    StatusCode::TOO_MANY_REQUESTS,
    "too many requests at a time from this address\n",
);
const UNREACHABLE: Refusal = Refusal(
    RequestOutcome::Unreachable,
    StatusCode::BAD_GATEWAY,
    "the function ended before it had answered\n",
);

/// Bytes that a client of HTTP/2 may send ahead of a function, in a request and in all; and that wait for a client.
const WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Requests of one client of HTTP/2 that are answered at a time (RFC 9113, 6.5.2 recommends 100 at least).
const STREAMS_MAX: u32 = 100;

/// Serves a client until it leaves.
pub(super) async fn carry(
    client: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    connection: Arc<Connection>,
    is_http2: bool,
) {
    let limit = connection.settings.handshake_timeout;
    let of_request = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&of_request);
        async move {
            let (outcome, response) = match answer(request, &connection).await {
                Ok(response) => (RequestOutcome::Carried, response),
                Err(refusal) => refusal.response(),
            };
            connection.count_request(outcome);
            Ok::<_, Infallible>(response)
        }
    });
    // What a client does wrong is answered by hyper, which then ends the connection.
    if is_http2 {
        let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX))
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(WINDOW as usize)
            .serve_connection(TokioIo::new(client), service);
        let mut served = std::pin::pin!(served);
        tokio::select! {
            _ = served.as_mut() => return,
            // Other frames than those of requests keep no place.
            () = connection.unasked(limit) => served.as_mut().graceful_shutdown(),
        }
        let _ = tokio::time::timeout(limit, served).await;
        return;
    }
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .half_close(true)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades()
        .await;
}

impl Refusal {
    fn response(self) -> (RequestOutcome, Response<Body>) {
        let Self(outcome, status, text) = self;
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        (outcome, response)
    }
}

async fn answer(
    mut request: Request<Incoming>,
    connection: &Arc<Connection>,
) -> Result<Response<Body>, Refusal> {
    let open = OpenRequest::of(connection);
    let host = host(&request)?;
    let target = route(&request, &host, connection)?;
    let upgrade = upgrade(request.headers());
    let of_client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    forward(&mut request, &host, connection, upgrade.as_ref());

    let (client, limit) = (connection.client.ip(), connection.settings.source_connections);
    let of_source = connection.requests.enter(client, limit).ok_or(TOO_MANY)?;
    let waits = connection.requests.at_function(&target.function);
    let limit = connection.settings.handshake_timeout;
    let of_function = tokio::time::timeout(limit, waits).await.ok().flatten().ok_or(BUSY)?;
    // The connection to the function has them, and what becomes of it after an upgrade.
    let places = Arc::new((open, of_source, of_function));
    let of_tunnel = Arc::clone(&places);
    let announced = connection.announce(&target, Trigger::Host);
    let stream = target.connect(announced).await.map_err(|_| UNREACHABLE)?;
    let (mut sender, carrier) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| UNREACHABLE)?;
    // It ends when the request and its answer are dropped, which happens at the end of the client's connection at the latest.
    tokio::spawn(async move {
        let _ = carrier.with_upgrades().await;
        drop(places);
    });
    let mut response = sender.send_request(request).await.map_err(|_| UNREACHABLE)?;

    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if switches && let Some(of_client) = of_client {
        let (of_function, connection) = (hyper::upgrade::on(&mut response), Arc::clone(connection));
        tokio::spawn(async move {
            let _places = of_tunnel;
            if let (Ok(client), Ok(function)) = tokio::join!(of_client, of_function) {
                let (mut client, mut function) = (TokioIo::new(client), TokioIo::new(function));
                connection.unless_idle(copy_bidirectional(&mut client, &mut function)).await;
            }
        });
    } else if switches {
        return Err(UNREACHABLE);
    }
    remove_connection_headers(response.headers_mut());
    if let (true, Some(protocol)) = (switches, upgrade) {
        set_upgrade(response.headers_mut(), protocol);
    }
    *response.version_mut() = Version::HTTP_11;
    Ok(response.map(Body::new))
}

/// The function of a request.
fn route(request: &Request<Incoming>, host: &str, connection: &Connection) -> Result<Arc<Target>, Refusal> {
    if request.method() == Method::CONNECT {
        return Err(NO_TUNNEL);
    }
    // A certificate for one host is no proof for another one (RFC 9110, 7.4).
    if connection.host.as_ref().is_some_and(|named| named != host) {
        return Err(OTHER_HOST);
    }
    match connection.current().routes.of_request(host, request.uri().path()) {
        Some(Found::Target(target)) => Ok(target),
        Some(Found::Unserved) => Err(UNSERVED),
        None => Err(NO_HOST),
    }
}

/// The host that a request names, without its port, in lower case; empty if it names none. What the request line says goes
/// before the header (RFC 9112, 3.2.2). A function must not read another host than this one, so there may be only one.
fn host(request: &Request<Incoming>) -> Result<String, Refusal> {
    let mut headers = request.headers().get_all(header::HOST).iter();
    let named = headers.next().map(|host| host.to_str().map_err(|_| BAD_HOST)).transpose()?;
    let Some(host) = request.uri().authority().map(|authority| authority.as_str()).or(named) else {
        return Ok(String::new());
    };
    if headers.next().is_some() || host.contains('@') {
        return Err(BAD_HOST);
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    Ok(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}

/// The protocol that a client asks for in place of HTTP (RFC 9110, 7.8).
fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let listed = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let mut words = listed.flat_map(|list| list.split(','));
    let asked = words.any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    // HTTP/2 inside of the tunnel would be requests that nothing routes.
    let is_http2 = |protocol: &&HeaderValue| protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2");
    headers.get(header::UPGRADE).filter(|_| asked).filter(|protocol| !is_http2(protocol)).cloned()
}

/// Makes of a client's request the one that its function gets.
fn forward(
    request: &mut Request<Incoming>,
    host: &str,
    connection: &Connection,
    upgrade: Option<&HeaderValue>,
) {
    let authority =
        request.uri().authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    remove_connection_headers(headers);
    // Its body is read at once.
    headers.remove(header::EXPECT);
    match upgrade {
        Some(protocol) => set_upgrade(headers, protocol.clone()),
        None => drop(headers.insert(header::CONNECTION, HeaderValue::from_static("close"))),
    }
    let client = connection.client.ip().to_canonical();
    let proto = if connection.is_tls { "https" } else { "http" };
    let node = match client {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    // A client's own say about where it comes from is worth nothing. Many servers take `_` for `-`.
    let forged: Vec<_> = headers.keys().filter(|name| is_forged(name)).cloned().collect();
    forged.iter().for_each(|name| drop(headers.remove(name)));
    let forwarded = format!("for={node};proto={proto};host={host:?}");
    for (name, value) in [
        (FORWARDED_FOR, client.to_string()),
        (FORWARDED_PROTO, proto.to_owned()),
        (FORWARDED_HOST, host.to_owned()),
        (header::FORWARDED, forwarded),
    ] {
        match HeaderValue::try_from(value) {
            Ok(value) => drop(headers.insert(name, value)),
            Err(_) => drop(headers.remove(name)),
        }
    }
    if let Some(authority) = authority {
        headers.insert(header::HOST, authority);
    }
    join_cookies(headers);
}

/// Whether a header says where a client comes from, or may be read as one that does.
fn is_forged(name: &HeaderName) -> bool {
    name.as_str().contains('_') || name.as_str().starts_with("x-forwarded-") || name == X_REAL_IP
}

/// Removes what is for one connection only (RFC 9110, 7.6.1).
fn remove_connection_headers(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|word| word.trim().parse().ok())
        .collect();
    let known = [
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRANSFER_ENCODING,
        header::PROXY_AUTHORIZATION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
    ];
    // Hosts and lengths are no matter of the connection, whatever a client says.
    let kept = [header::HOST, header::CONTENT_LENGTH];
    for name in listed.iter().filter(|name| !kept.contains(name)).chain(&known) {
        headers.remove(name);
    }
}

/// Makes one header of the parts into which HTTP/2 cuts cookies (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let parts: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if parts.len() > 1
        && let Ok(cookies) = HeaderValue::from_bytes(&parts.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, cookies);
    }
}

fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}
