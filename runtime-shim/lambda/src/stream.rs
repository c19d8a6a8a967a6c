//! An answer that the handler streams: status and headers as JSON, eight NULs, the body; or the body alone.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use crate::answer::{Answer, Failure, Head};
use crate::api::{self, ApiResponse, ERROR_TYPE};
use crate::desk::{Desk, UnknownInvocation};
use crate::life::say;

/// The type of an answer that begins with its status and headers.
const WITH_HEAD: &str = "application/vnd.awslambda.http-integration-response";

const SEPARATOR: &[u8; 8] = &[0; 8];

/// The most bytes of status and headers.
const HEAD_MAX: usize = 64 * 1024;

/// The most bytes of a streamed answer: 200 MiB, as on Lambda ("Lambda quotas" in its developer guide).
const STREAM_MAX: usize = 200 << 20;

/// Pieces that wait for the client.
const PIECES: usize = 4;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Why an answer has not been streamed to its end.
#[derive(Debug)]
enum Broken {
    /// The invocation's time is over.
    Late,
    /// The handler has cut it off.
    CutOff,
    /// The handler says so.
    Reported(String),
    /// It is longer than the limit.
    TooLong,
    /// Its head cannot be understood.
    Malformed(String),
}

impl Broken {
    fn words(&self) -> String {
        match self {
            Self::Late => "its time is over".to_owned(),
            Self::CutOff => "the handler has cut it off".to_owned(),
            Self::Reported(kind) => kind.clone(),
            Self::TooLong => format!("it is larger than {STREAM_MAX} bytes"),
            Self::Malformed(problem) => problem.clone(),
        }
    }
}

/// Passes the answer on. Returns when it has ended.
pub(crate) async fn answer(
    request: Request<Incoming>,
    id: &str,
    deadline: Instant,
    desk: &Arc<Desk>,
) -> ApiResponse {
    let (parts, body) = request.into_parts();
    let mut pieces = Pieces { body, deadline, bytes: 0 };
    let (head, rest) = match begin(&parts.headers, &mut pieces).await {
        Ok(begun) => begun,
        Err(broken) => {
            say(&format!("the answer to invocation {id} is not streamed: {}", broken.words()));
            // What is late is answered with that, and the handler is ended for it.
            if !matches!(broken, Broken::Late) {
                let _ = desk.answer(id, Answer::Failed(Failure::Malformed));
            }
            return refused(&broken);
        }
    };
    let (sender, channel) = Channel::new(PIECES);
    if let Err(UnknownInvocation) = desk.streams(id, Answer::Stream(head, Body::new(channel))) {
        return api::unknown_invocation();
    }
    let mut client = Client(Some(sender));
    let broken = match pass(rest, &mut pieces, &mut client).await {
        Ok(()) => {
            // Dropped as it is, the sender ends the answer.
            client.0 = None;
            desk.streamed(id);
            return api::accepted(Ok(()));
        }
        Err(broken) => broken,
    };
    say(&format!("the answer to invocation {id} is broken off: {}", broken.words()));
    // The handler is ended for what is late, as long as it is under way.
    if !matches!(broken, Broken::Late) {
        desk.streamed(id);
    }
    refused(&broken)
}

/// A client that waits for the rest of an answer. Unless the answer is complete, it learns that it is not.
struct Client(Option<Sender<Bytes, std::io::Error>>);

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            sender.abort(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn refused(broken: &Broken) -> ApiResponse {
    match broken {
        Broken::Reported(_) => api::accepted(Ok(())),
        Broken::TooLong => api::too_large(),
        Broken::Late | Broken::CutOff | Broken::Malformed(_) => {
            api::refused(StatusCode::BAD_REQUEST, "InvalidResponse", &broken.words())
        }
    }
}

/// What the handler sends, until the invocation's time is over.
struct Pieces {
    body: Incoming,
    deadline: Instant,
    bytes: usize,
}

impl Pieces {
    /// The next piece; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            let frame = timeout_at(self.deadline, self.body.frame()).await.map_err(|_| Broken::Late)?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| Broken::CutOff)?;
            let piece = match frame.into_data() {
                Ok(piece) => piece,
                Err(frame) => match frame.trailers_ref().and_then(|trailers| trailers.get(ERROR_TYPE)) {
                    Some(kind) => {
                        return Err(Broken::Reported(String::from_utf8_lossy(kind.as_bytes()).into_owned()));
                    }
                    None => continue,
                },
            };
            self.bytes = self.bytes.saturating_add(piece.len());
            if self.bytes > STREAM_MAX {
                return Err(Broken::TooLong);
            }
            return Ok(Some(piece));
        }
    }
}

/// Reads status and headers. Returns them with what has come of the body.
async fn begin(headers: &HeaderMap, pieces: &mut Pieces) -> Result<(Head, Bytes), Broken> {
    let kind = headers.get(CONTENT_TYPE).cloned().unwrap_or(OCTETS);
    if kind != WITH_HEAD {
        return Ok((Head::of_type(kind), Bytes::new()));
    }
    let mut read = BytesMut::new();
    let end = loop {
        if let Some(end) = read.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) {
            break end;
        }
        if read.len() > HEAD_MAX {
            return Err(Broken::Malformed("its status and headers are too long".to_owned()));
        }
        let cut =
            || Broken::Malformed("it ends before eight NULs, which follow status and headers".to_owned());
        read.extend_from_slice(&pieces.next().await?.ok_or_else(cut)?);
    };
    let head = read.split_to(end);
    let rest = read.split_off(SEPARATOR.len()).freeze();
    let malformed = |problem: String| Broken::Malformed(problem);
    let json: serde_json::Value = serde_json::from_slice(&head)
        .map_err(|error| malformed(format!("status and headers are no JSON: {error}")))?;
    let object =
        json.as_object().ok_or_else(|| malformed("status and headers are no JSON object".to_owned()))?;
    Ok((Head::read(object, OCTETS).map_err(malformed)?, rest))
}

/// Passes the body on.
async fn pass(first: Bytes, pieces: &mut Pieces, client: &mut Client) -> Result<(), Broken> {
    let mut piece = Some(first);
    while let Some(bytes) = piece {
        if let Some(sender) = client.0.as_mut().filter(|_| !bytes.is_empty()) {
            let sent =
                timeout_at(pieces.deadline, sender.send_data(bytes)).await.map_err(|_| Broken::Late)?;
            // A client that has gone does not concern the handler.
            if sent.is_err() {
                client.0 = None;
            }
        }
        piece = pieces.next().await?;
    }
    Ok(())
}
