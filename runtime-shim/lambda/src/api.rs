//! The Runtime API, 2018-06-01, on loopback.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::answer::{Answer, Failure};
use crate::desk::{Desk, Taken, UnknownInvocation};
use crate::life::say;
use crate::{PAYLOAD_MAX, extension, stream};

/// Where it is. The handler learns of it by a variable, and this is the port that it always had.
pub(crate) const ADDRESS: &str = "127.0.0.1:9001";

/// Connections beside two for each invocation; others wait in the kernel's queue.
const CONNECTIONS_MORE: usize = 64;

/// The most bytes of an error's report.
const REPORT_MAX: usize = 64 * 1024;

/// The most characters of an error that are printed.
const SHOWN_MAX: usize = 1000;

/// Pause before the next accept when the process has no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

pub(crate) const ERROR_TYPE: &str = "lambda-runtime-function-error-type";
const RESPONSE_MODE: &str = "lambda-runtime-function-response-mode";

pub(crate) type ApiResponse = Response<Full<Bytes>>;

/// The server of one handler. Its connections end with it.
pub(crate) struct RuntimeApi {
    task: JoinSet<()>,
}

impl RuntimeApi {
    pub(crate) async fn start(desk: Arc<Desk>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(ADDRESS).await.map_err(|error| {
            std::io::Error::new(error.kind(), format!("the Runtime API cannot listen on {ADDRESS}: {error}"))
        })?;
        let mut task = JoinSet::new();
        task.spawn(accept(listener, desk));
        Ok(Self { task })
    }

    /// Ends it; its port is free then.
    pub(crate) async fn end(&mut self) {
        self.task.shutdown().await;
    }
}

async fn accept(listener: TcpListener, desk: Arc<Desk>) {
    let most = desk.places().saturating_mul(2).saturating_add(CONNECTIONS_MORE);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < most => match accepted {
                Ok((stream, _)) => drop(connections.spawn(converse(stream, Arc::clone(&desk)))),
                Err(_) => sleep(EXHAUSTED_PAUSE).await,
            },
        }
    }
}

async fn converse(stream: TcpStream, desk: Arc<Desk>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(respond(request, &desk).await) }
    });
    // A handler may think for long between two requests, and be frozen.
    let conversation =
        http1::Builder::new().header_read_timeout(None).serve_connection(TokioIo::new(stream), service);
    // An error means that the handler has closed it, or does not speak HTTP.
    let _ = conversation.await;
}

async fn respond(request: Request<Incoming>, desk: &Arc<Desk>) -> ApiResponse {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let words: Vec<_> = path.trim_start_matches('/').split('/').collect();
    match (method, words.as_slice()) {
        (Method::GET, ["2018-06-01", "runtime", "invocation", "next"]) => next(desk).await,
        (Method::POST, ["2018-06-01", "runtime", "invocation", id, "response"]) => {
            answer(request, id, desk).await
        }
        (Method::POST, ["2018-06-01", "runtime", "invocation", id, "error"]) => {
            let deadline = match desk.deadline_of(id) {
                Ok(deadline) => deadline,
                Err(UnknownInvocation) => return unknown_invocation(),
            };
            let Ok(error) = tokio::time::timeout_at(deadline, report(request)).await else {
                return unknown_invocation();
            };
            say(&format!("invocation {id} has failed: {error}"));
            accepted(desk.answer(id, Answer::Failed(Failure::Error)))
        }
        (Method::POST, ["2018-06-01", "runtime", "init", "error"]) => {
            if desk.init_failed(report(request).await) {
                accepted(Ok(()))
            } else {
                refused(StatusCode::FORBIDDEN, "InvalidStateTransition", "the handler has started")
            }
        }
        (method, ["2020-01-01", "extension", rest @ ..]) => {
            extension::respond(&method, rest, request, desk).await
        }
        _ => refused(StatusCode::NOT_FOUND, "NotFound", "there is no such resource"),
    }
}

async fn next(desk: &Desk) -> ApiResponse {
    let Ok(Taken { event, time_left }) = desk.next().await else {
        return refused(StatusCode::GONE, "Runtime.Closed", "the function ends");
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let deadline_ms = (now + time_left).as_millis().to_string();
    let name = std::env::var("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_default();
    let headers = [
        ("lambda-runtime-aws-request-id", event.id),
        ("lambda-runtime-deadline-ms", deadline_ms),
        ("lambda-runtime-invoked-function-arn", arn(&name)),
        ("lambda-runtime-trace-id", event.trace),
    ];
    let mut response = Response::new(Full::new(event.body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// A name in the form that clients take apart, with an account number that does not exist.
fn arn(function: &str) -> String {
    let region = std::env::var("AWS_REGION").unwrap_or_else(|_| "local".to_owned());
    format!("arn:aws:lambda:{region}:000000000000:function:{function}")
}

async fn answer(request: Request<Incoming>, id: &str, desk: &Arc<Desk>) -> ApiResponse {
    let deadline = match desk.deadline_of(id) {
        Ok(deadline) => deadline,
        Err(UnknownInvocation) => return unknown_invocation(),
    };
    if request.headers().get(RESPONSE_MODE).is_some_and(|mode| mode == "streaming") {
        return stream::answer(request, id, deadline, desk).await;
    }
    let read = Limited::new(request.into_body(), PAYLOAD_MAX).collect();
    match tokio::time::timeout_at(deadline, read).await {
        // By then it is answered.
        Err(_) => unknown_invocation(),
        Ok(Ok(body)) => accepted(desk.answer(id, Answer::Whole(body.to_bytes()))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            say(&format!("the answer to invocation {id} is larger than {PAYLOAD_MAX} bytes"));
            let known = desk.answer(id, Answer::Failed(Failure::TooLong));
            known.map_or_else(|UnknownInvocation| unknown_invocation(), |()| too_large())
        }
        Ok(Err(_)) => {
            say(&format!("the answer to invocation {id} has been cut off"));
            let known = desk.answer(id, Answer::Failed(Failure::Malformed));
            known.map_or_else(
                |UnknownInvocation| unknown_invocation(),
                |()| refused(StatusCode::BAD_REQUEST, "InvalidResponse", "the answer has been cut off"),
            )
        }
    }
}

pub(crate) fn accepted(known: Result<(), UnknownInvocation>) -> ApiResponse {
    match known {
        Ok(()) => json_response(StatusCode::ACCEPTED, &json!({ "status": "OK" })),
        Err(UnknownInvocation) => unknown_invocation(),
    }
}

pub(crate) fn unknown_invocation() -> ApiResponse {
    refused(StatusCode::BAD_REQUEST, "InvalidRequestID", "no such invocation is under way")
}

pub(crate) fn too_large() -> ApiResponse {
    let words = format!("the answer is larger than {PAYLOAD_MAX} bytes");
    refused(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", &words)
}

pub(crate) fn refused(status: StatusCode, kind: &str, words: &str) -> ApiResponse {
    json_response(status, &json!({ "errorType": kind, "errorMessage": words }))
}

pub(crate) fn json_response(status: StatusCode, body: &Value) -> ApiResponse {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What the handler says of an error, in one line.
async fn report(request: Request<Incoming>) -> String {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, REPORT_MAX).collect().await.map(http_body_util::Collected::to_bytes);
    shown(&parts.headers, &body.unwrap_or_default())
}

fn shown(headers: &HeaderMap, body: &[u8]) -> String {
    let report: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = |key: &str| report.get(key).and_then(Value::as_str).map(str::to_owned);
    let header = headers.get(ERROR_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()).into_owned());
    let kind = said("errorType").or(header).unwrap_or_else(|| "an error without a type".to_owned());
    let message = said("errorMessage").unwrap_or_default();
    let line = if message.is_empty() { kind } else { format!("{kind}: {message}") };
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests;
