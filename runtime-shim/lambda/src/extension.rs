//! The Extensions API, 2020-01-01, as far as there is one: an extension inside the handler may register for no event, as clients
//! do that want to be told of the end by SIGTERM. No event is ever sent, so no extension may register for one.

use std::sync::Arc;

use axum::http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::api::{ApiResponse, accepted, json_response, refused};
use crate::desk::Desk;
use crate::event::{random, uuid};

const REGISTER_MAX: usize = 4 * 1024;

const NAME: &str = "lambda-extension-name";
const IDENTIFIER: &str = "lambda-extension-identifier";

/// Answers a request below `/2020-01-01/extension/`.
pub(crate) async fn respond(
    method: &Method,
    words: &[&str],
    request: Request<Incoming>,
    desk: &Arc<Desk>,
) -> ApiResponse {
    match (method, words) {
        (&Method::POST, ["register"]) => register(request).await,
        (&Method::GET, ["event", "next"]) if request.headers().contains_key(IDENTIFIER) => {
            // There is none before the end, which SIGTERM tells.
            desk.closed().await;
            refused(StatusCode::GONE, "Extension.Closed", "the function ends")
        }
        (&Method::POST, ["init" | "exit", "error"]) => accepted(Ok(())),
        _ => refused(
            StatusCode::FORBIDDEN,
            "Extension.InvalidExtensionIdentifier",
            "no such extension has registered",
        ),
    }
}

async fn register(request: Request<Incoming>) -> ApiResponse {
    if !request.headers().contains_key(NAME) {
        let words = "the header Lambda-Extension-Name is missing";
        return refused(StatusCode::BAD_REQUEST, "Extension.InvalidExtensionName", words);
    }
    let body = Limited::new(request.into_body(), REGISTER_MAX).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let wanted: Value = serde_json::from_slice(&body).unwrap_or_default();
    if wanted.get("events").and_then(Value::as_array).is_some_and(|events| !events.is_empty()) {
        let words = "Headstart sends no events to extensions: register for none, and take SIGTERM as the end";
        return refused(StatusCode::BAD_REQUEST, "Extension.InvalidEventType", words);
    }
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let registered = json!({
        "functionName": variable("AWS_LAMBDA_FUNCTION_NAME"),
        "functionVersion": variable("AWS_LAMBDA_FUNCTION_VERSION"),
        "handler": variable("_HANDLER"),
    });
    let mut response = json_response(StatusCode::OK, &registered);
    if let Ok(identifier) = HeaderValue::try_from(uuid(random())) {
        response.headers_mut().insert(IDENTIFIER, identifier);
    }
    response
}
