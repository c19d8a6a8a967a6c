//! What a client gets: the handler's answer in the format of Function URLs (payload 2.0), or why there is none.

use axum::body::Body;
use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The answer to an invocation.
#[derive(Debug)]
pub(crate) enum Answer {
    /// What the handler has returned, JSON.
    Whole(Bytes),
    /// What it streams.
    Stream(Head, Body),
    /// There is none.
    Failed(Failure),
}

/// Why an invocation has no answer of the handler. What the handler says of itself is in the log and not for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The handler has reported an error.
    Error,
    /// Its answer is longer than the limit.
    TooLong,
    /// Its answer cannot be understood.
    Malformed,
    /// It took longer than `timeout`.
    Timeout,
    /// The handler did not ask for it within `timeout`.
    NotTaken,
    /// The handler has ended meanwhile.
    Ended,
}

impl Failure {
    fn status(self) -> StatusCode {
        match self {
            Self::Error | Self::TooLong | Self::Malformed | Self::Ended => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::NotTaken => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Error => "the function has failed",
            Self::TooLong => "the answer of the function is larger than 6291556 bytes",
            Self::Malformed => "the answer of the function is not in the format of a Function URL",
            Self::Timeout => "the function has taken too long",
            Self::NotTaken => "the function is busy",
            Self::Ended => "the function has ended",
        }
    }

    fn response(self) -> Response {
        refused(self.status(), self.words())
    }
}

/// An answer that is not the handler's.
pub(crate) fn refused(status: StatusCode, words: &str) -> Response {
    (status, [(CONTENT_TYPE, JSON)], json!({ "message": words }).to_string()).into_response()
}

impl Answer {
    /// What the client gets, and what was wrong with the handler's answer.
    pub(crate) fn response(self) -> (Response, Option<String>) {
        match self {
            Self::Whole(body) => match whole(&body) {
                Ok((head, body)) => (head.response(body.into()), None),
                Err(problem) => (Failure::Malformed.response(), Some(problem)),
            },
            Self::Stream(head, body) => (head.response(body), None),
            Self::Failed(failure) => (failure.response(), None),
        }
    }
}

/// Status and headers.
#[derive(Debug, PartialEq)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

impl Head {
    /// Status 200 and this type.
    pub(crate) fn of_type(content_type: HeaderValue) -> Self {
        Self { status: StatusCode::OK, headers: HeaderMap::from_iter([(CONTENT_TYPE, content_type)]) }
    }

    /// Reads `statusCode`, `headers` and `cookies`.
    pub(crate) fn read(object: &Map<String, Value>, default_type: HeaderValue) -> Result<Self, String> {
        let [status, headers, cookies] = ["statusCode", "headers", "cookies"].map(|key| object.get(key));
        Self::of(status, headers, cookies, default_type)
    }

    fn of(
        status: Option<&Value>,
        all: Option<&Value>,
        cookies: Option<&Value>,
        default_type: HeaderValue,
    ) -> Result<Self, String> {
        let status = match status {
            None | Some(Value::Null) => Some(200),
            Some(Value::String(text)) => text.parse().ok(),
            Some(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        };
        // 1xx are no answers.
        let status = status.filter(|status| (200..=599).contains(status));
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.ok_or_else(|| "statusCode is no number from 200 to 599".to_owned())?;
        let mut headers = HeaderMap::new();
        for (name, value) in all.and_then(Value::as_object).into_iter().flatten() {
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            for value in values {
                add(&mut headers, name, value)?;
            }
        }
        headers.entry(CONTENT_TYPE).or_insert(default_type);
        for cookie in cookies.and_then(Value::as_array).into_iter().flatten() {
            add(&mut headers, SET_COOKIE.as_str(), cookie)?;
        }
        Ok(Self { status, headers })
    }

    fn response(self, body: Body) -> Response {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

fn add(headers: &mut HeaderMap, name: &str, value: &Value) -> Result<(), String> {
    let text = match value {
        Value::Null => return Ok(()),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let wrong = || format!("the header {name:?} cannot be sent");
    let name = HeaderName::try_from(name).map_err(|_| wrong())?;
    // What belongs to the connection is not the handler's.
    if [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, TE, TRAILER, UPGRADE].contains(&name)
        || name == "keep-alive"
    {
        return Ok(());
    }
    headers.append(name, HeaderValue::try_from(text).map_err(|_| wrong())?);
    Ok(())
}

/// What has a `statusCode`. Other keys are passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Structured {
    status_code: Option<Value>,
    headers: Option<Value>,
    cookies: Option<Value>,
    body: Option<Value>,
    is_base64_encoded: Option<Value>,
}

/// An answer that is a JSON object with a `statusCode`; or any other JSON, which is the body and not taken apart.
fn whole(answer: &Bytes) -> Result<(Head, Bytes), String> {
    let no_json = |error: serde_json::Error| format!("it is no JSON: {error}");
    let is_object = answer.trim_ascii_start().first() == Some(&b'{');
    let structured: Option<Structured> = match is_object {
        true => Some(serde_json::from_slice(answer).map_err(no_json)?),
        false => serde_json::from_slice::<IgnoredAny>(answer).map(|_| None).map_err(no_json)?,
    };
    let Some((status, object)) = structured.and_then(|mut object| Some((object.status_code.take()?, object)))
    else {
        return Ok((Head::of_type(JSON), answer.clone()));
    };
    let head = Head::of(Some(&status), object.headers.as_ref(), object.cookies.as_ref(), JSON)?;
    let encoded = object.is_base64_encoded == Some(Value::Bool(true));
    let body = match object.body {
        None => Bytes::new(),
        Some(Value::String(text)) if encoded => {
            let decoded = STANDARD.decode(text).map_err(|error| format!("its body is no base64: {error}"))?;
            decoded.into()
        }
        Some(Value::String(text)) => text.into(),
        Some(other) => other.to_string().into(),
    };
    Ok((head, body))
}

#[cfg(test)]
mod tests;
