//! A handler for AWS Lambda with the client library that its makers publish for Rust.

use std::sync::atomic::{AtomicUsize, Ordering};

use lambda_runtime::streaming::{Body, Response, channel};
use lambda_runtime::{Error, FunctionResponse, LambdaEvent, MetadataPrelude, service_fn};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// Invocations that have met, and what tells the others of one more.
static MET: AtomicUsize = AtomicUsize::new(0);
static ONE_MORE: Notify = Notify::const_new();

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    lambda_runtime::run_concurrent(service_fn(handle)).await
}

async fn handle(event: LambdaEvent<Value>) -> Result<FunctionResponse<Value, Body>, Error> {
    let (event, _context) = event.into_parts();
    let path = event["rawPath"].as_str().unwrap_or_default();
    if path == "/stream" {
        return Ok(FunctionResponse::StreamingResponse(streamed()));
    }
    if let Some(bytes) = path.strip_prefix("/big/") {
        let text = "x".repeat(bytes.parse::<usize>()?.saturating_sub(2));
        return Ok(FunctionResponse::BufferedResponse(text.into()));
    }
    if let Some(all) = path.strip_prefix("/meet/") {
        meet(all.parse()?).await;
    }
    if path == "/fail" {
        return Err("not today".into());
    }
    // The client's own example.
    let name = event["firstName"].as_str().unwrap_or("world");
    Ok(FunctionResponse::BufferedResponse(json!({ "message": format!("Hello, {name}!") })))
}

/// Returns when so many invocations are under way.
async fn meet(all: usize) {
    let mut met = MET.fetch_add(1, Ordering::Relaxed) + 1;
    ONE_MORE.notify_waiters();
    while met < all {
        let one_more = ONE_MORE.notified();
        met = MET.load(Ordering::Relaxed);
        if met < all {
            one_more.await;
        }
    }
}

fn streamed() -> Response<Body> {
    let (mut sender, body) = channel();
    tokio::spawn(async move {
        for piece in ["one ", "two ", "three"] {
            if sender.send_data(piece.into()).await.is_err() {
                return;
            }
        }
    });
    let mut head = MetadataPrelude { cookies: vec!["a=1".to_owned()], ..MetadataPrelude::default() };
    head.status_code = axum::http::StatusCode::ACCEPTED;
    head.headers.insert("x-streamed", axum::http::HeaderValue::from_static("yes"));
    Response { metadata_prelude: head, stream: body }
}
