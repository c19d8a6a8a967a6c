//! A function for all kinds of clients: it answers with what it gets.
//!
//! - `GET /` answers `hello`; `POST /` answers with the body, as it comes.
//! - `POST /size` answers with the size of the body, once it is there.
//! - `POST /grpc/Echo` answers with the messages of gRPC that it gets, of any number.
//! - `GET /upgrade` with `Upgrade: echo` makes the connection one that says back what it hears.

use std::process::ExitCode;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::routing::{get, post};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;

fn main() -> ExitCode {
    headstart::run(async |function| {
        let app = Router::new()
            .route("/", get(async || "hello").post(echo))
            .route("/grpc/Echo", post(grpc))
            .route("/size", post(async |body: Bytes| body.len().to_string()))
            .route("/upgrade", get(upgrade))
            .layer(DefaultBodyLimit::disable());
        function.serve(app).await
    })
}

async fn echo(request: Request) -> Response<Body> {
    let kind = request.headers().get(CONTENT_TYPE).cloned();
    let mut response = Response::new(request.into_body());
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

/// Messages are framed in both directions alike. The status comes after them.
async fn grpc(request: Request) -> Response<Body> {
    let status =
        HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let body = request.into_body().with_trailers(async { Some(Ok(status)) });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

async fn upgrade(mut request: Request) -> Response<Body> {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(connection) = upgraded.await {
            let (mut hears, mut says) = tokio::io::split(TokioIo::new(connection));
            // The client ends it.
            let _ = tokio::io::copy(&mut hears, &mut says).await;
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("echo"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
}
