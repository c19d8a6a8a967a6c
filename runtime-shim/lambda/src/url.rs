//! The function's URL: requests become events, and answers responses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;

use crate::answer::refused;
use crate::desk::Desk;
use crate::life::say;
use crate::{PAYLOAD_MAX, event};

/// Longest time for a client to send the body of its request.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// The header in which a client finds the number of its invocation, as from a Function URL. The log has it too.
const REQUEST_ID: &str = "x-amzn-requestid";

#[derive(Clone)]
struct Site {
    desk: Arc<Desk>,
    function: Arc<str>,
}

/// Takes every request.
pub(crate) fn router(desk: &Arc<Desk>, function: Option<&str>) -> Router {
    let site = Site { desk: Arc::clone(desk), function: function.unwrap_or("function").into() };
    Router::new().fallback(call).with_state(site)
}

async fn call(
    State(site): State<Site>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let too_large =
        || refused(StatusCode::PAYLOAD_TOO_LARGE, "the event of the request is larger than 6291556 bytes");
    let (parts, body) = request.into_parts();
    let body = match timeout(BODY_WAIT, Limited::new(body, PAYLOAD_MAX).collect()).await {
        Err(_) => {
            return refused(StatusCode::REQUEST_TIMEOUT, "the body of the request has not come in time");
        }
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return too_large(),
        Ok(Err(_)) => return refused(StatusCode::BAD_REQUEST, "the body of the request cannot be read"),
        Ok(Ok(body)) => body.to_bytes(),
    };
    let event = event::of(&parts, &body, peer.ip().to_canonical(), &site.function);
    drop(body);
    if event.body.len() > PAYLOAD_MAX {
        return too_large();
    }
    let id = event.id.clone();
    let (mut response, problem) = site.desk.invoke(event).await.response();
    if let Some(problem) = problem {
        say(&format!("the answer to invocation {id} cannot be used: {problem}"));
    }
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
