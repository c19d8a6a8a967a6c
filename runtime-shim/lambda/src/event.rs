//! The event of an HTTP request, as Function URLs have it (payload 2.0).

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::header::{CONTENT_TYPE, COOKIE, HOST, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, request::Parts};
use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use time::UtcDateTime;

use crate::desk::Event;

const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED_PROTO: &str = "x-forwarded-proto";
const TRACE: &str = "x-amzn-trace-id";

/// The event of a request that came from this address. `function` is the name of the function.
pub(crate) fn of(parts: &Parts, body: &Bytes, peer: IpAddr, function: &str) -> Event {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let random = random();
    let id = uuid(random);
    let said =
        |name: HeaderName| parts.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let trace = said(HeaderName::from_static(TRACE)).map(String::from);
    // The form of X-Ray: a time and 96 bits.
    let trace =
        trace.unwrap_or_else(|| format!("Root=1-{:08x}-{:024x};Sampled=0", now.as_secs(), random >> 32));
    let host = said(HOST).unwrap_or_default();
    let query = parts.uri.query().unwrap_or_default();
    let mut event = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": parts.uri.path(),
        "rawQueryString": query,
        "headers": headers(&parts.headers, peer),
        "requestContext": {
            "accountId": "anonymous",
            "apiId": function,
            "domainName": host,
            "domainPrefix": host.split(['.', ':']).next(),
            "http": {
                "method": parts.method.as_str(),
                "path": parts.uri.path(),
                "protocol": "HTTP/1.1",
                "sourceIp": peer.to_string(),
                "userAgent": said(USER_AGENT),
            },
            "requestId": id,
            "routeKey": "$default",
            "stage": "$default",
            "time": common_log_time(now.as_secs()),
            "timeEpoch": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        },
    });
    if let Some(event) = event.as_object_mut() {
        add_optional(event, parts, query);
    }
    Event { id, body: with_body(event.to_string(), &parts.headers, body).into(), trace }
}

/// Appends the body, which may be large: it is copied once.
fn with_body(event: String, headers: &HeaderMap, body: &Bytes) -> Vec<u8> {
    let mut event = event.into_bytes();
    event.pop();
    let text = std::str::from_utf8(body).ok().filter(|_| is_text(headers));
    let encoded: &[u8] = if text.is_some() || body.is_empty() {
        b",\"isBase64Encoded\":false"
    } else {
        b",\"isBase64Encoded\":true"
    };
    event.extend_from_slice(encoded);
    if !body.is_empty() {
        event.extend_from_slice(b",\"body\":");
        // Memory takes all that is written.
        let _ = match text {
            Some(text) => serde_json::to_writer(&mut event, text).map_err(io::Error::from),
            None => quote_base64(&mut event, body),
        };
    }
    event.push(b'}');
    event
}

fn quote_base64(event: &mut Vec<u8>, body: &[u8]) -> io::Result<()> {
    event.push(b'"');
    let mut encoder = EncoderWriter::new(&mut *event, &STANDARD);
    encoder.write_all(body)?;
    encoder.finish()?;
    drop(encoder);
    event.push(b'"');
    Ok(())
}

fn add_optional(event: &mut Map<String, Value>, parts: &Parts, query: &str) {
    let cookies: Vec<_> = parts
        .headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
        .map(|cookie| String::from_utf8_lossy(cookie.trim_ascii()))
        .filter(|cookie| !cookie.is_empty())
        .collect();
    if !cookies.is_empty() {
        event.insert("cookies".to_owned(), json!(cookies));
    }
    if !query.is_empty() {
        event.insert("queryStringParameters".to_owned(), parameters(query).into());
    }
}

/// Several headers of one name are one, with commas; the cookies are elsewhere.
fn headers(all: &HeaderMap, peer: IpAddr) -> Map<String, Value> {
    let mut headers = Map::new();
    for name in all.keys().filter(|name| **name != COOKIE) {
        let values: Vec<_> =
            all.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        headers.insert(name.to_string(), values.join(",").into());
    }
    let before = headers.get(FORWARDED_FOR).and_then(Value::as_str).map(|before| format!("{before}, "));
    headers.insert(FORWARDED_FOR.to_owned(), format!("{}{peer}", before.unwrap_or_default()).into());
    headers.entry(FORWARDED_PROTO).or_insert_with(|| "http".into());
    headers
}

/// What Function URLs pass on as it is. They encode anything else, forms too.
fn is_text(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return true };
    let kind = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let known = ["application/json", "application/javascript", "application/xml"];
    kind.starts_with("text/") || known.contains(&kind) || kind.ends_with("+json") || kind.ends_with("+xml")
}

/// Several parameters of one name are one, with commas.
fn parameters(query: &str) -> Map<String, Value> {
    let mut parameters = Map::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let value = match parameters.get(name.as_ref()).and_then(Value::as_str) {
            Some(before) => format!("{before},{value}"),
            None => value.into_owned(),
        };
        parameters.insert(name.into_owned(), value.into());
    }
    parameters
}

/// A time in seconds since 1970 as in a log of Apache, "12/Mar/2020:19:03:58 +0000".
fn common_log_time(seconds: u64) -> String {
    // A clock that is past the year 9999 says 1970.
    let seconds = i64::try_from(seconds).unwrap_or_default();
    let time = UtcDateTime::from_unix_timestamp(seconds).unwrap_or(UtcDateTime::UNIX_EPOCH);
    let month = time.month().to_string();
    let month = month.get(..3).unwrap_or_default();
    let (day, year, hour, minute, second) =
        (time.day(), time.year(), time.hour(), time.minute(), time.second());
    format!("{day:02}/{month}/{year}:{hour:02}:{minute:02}:{second:02} +0000")
}

/// A random number that cannot be guessed.
pub(crate) fn random() -> u128 {
    let mut bytes = [0; 16];
    // It fails on no kernel that the agent runs on, and the number is no secret.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u128::from_ne_bytes(bytes)
}

/// The same as a UUID of version 4.
pub(crate) fn uuid(random: u128) -> String {
    uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid().to_string()
}

#[cfg(test)]
mod tests;
