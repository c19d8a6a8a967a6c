//! Answers the login of a client, on a connection that the pool has logged in before (PostgreSQL documentation, "Message
//! Flow" and "Message Formats").
//!
//! The client is asked for no password; TLS and GSSAPI are declined. Parameters of its StartupMessage are those of the login
//! that its session has begun with: `RESET` goes back to them. Nothing of the message becomes SQL.

mod request;

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::backend::{AdmissionError, ConnectCause, Session, Stream};
use crate::sockets::{BackendSocket, CancelKey, CancelRegistration, ClientSession};
use crate::{LeaseError, PostgresLogin};
use request::{FirstPacket, PROTOCOL_3_0, StartupMessage};

/// From the connection to the whole first packet.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// From 3.2 on (PostgreSQL 18) keys have up to 256 bytes.
const LONG_KEYS_MINOR: i32 = 2;

/// Why a client is not admitted, as the server would say it (PostgreSQL documentation, appendix A).
#[derive(Debug, PartialEq, Eq)]
struct PostgresRefusal {
    sqlstate: String,
    message: String,
}

fn refuse(sqlstate: &str, message: impl Into<String>) -> PostgresRefusal {
    PostgresRefusal { sqlstate: sqlstate.to_owned(), message: message.into() }
}

impl From<LeaseError> for PostgresRefusal {
    fn from(error: LeaseError) -> Self {
        if let LeaseError::Connect(error) = &error
            && let ConnectCause::Server { sqlstate, message } = &error.cause
            && error.cause.is_about_parameters()
        {
            return refuse(sqlstate, message);
        }
        let sqlstate = if matches!(error, LeaseError::Exhausted { .. }) { "53300" } else { "08001" };
        refuse(sqlstate, error.to_string())
    }
}

/// See [`crate::backend::Protocol::admit`].
pub(super) async fn admit<'a>(
    login: &PostgresLogin,
    client: &mut Stream,
    socket: &'a BackendSocket,
) -> Option<ClientSession<'a>> {
    let request = match timeout(REQUEST_LIMIT, request::read(client)).await {
        Ok(Ok(request)) => request,
        Ok(Err(AdmissionError::Left)) | Err(_) => return None,
        Ok(Err(AdmissionError::Refused(refusal))) => return tell(client, &refusal).await,
    };
    let start = match request {
        FirstPacket::Startup(start) => start,
        FirstPacket::Cancel(key) => {
            // Only keys of this instance are known here: a client cannot cancel what another instance does.
            let slot = socket.cancels().get(&key).map(Arc::clone);
            if let Some(slot) = slot
                && let Err(error) = slot.cancel_query().await
            {
                tracing::warn!("a query is not cancelled: {error}");
            }
            return None;
        }
    };
    match welcome(login, client, socket, start).await {
        Ok(admitted) => admitted,
        Err(refusal) => tell(client, &refusal).await,
    }
}

/// Tells the client why; the connection is closed next.
async fn tell<'a>(client: &mut Stream, refusal: &PostgresRefusal) -> Option<ClientSession<'a>> {
    // The client may have left already: then the error does not matter.
    let _ = client.write_all(&error_response(refusal)).await;
    None
}

/// See [`crate::backend::Protocol::turn_away`].
pub(super) async fn turn_away(mut client: Stream) {
    let full = refuse("53300", "this instance has as many connections as it may have: close some");
    // The kernel resets a connection that is closed with unread bytes, and the client may lose the answer.
    if timeout(REQUEST_LIMIT, request::read(&mut client)).await.is_ok() {
        tell(&mut client, &full).await;
    }
}

/// `None` when the client has left.
async fn welcome<'a>(
    login: &PostgresLogin,
    client: &mut Stream,
    socket: &'a BackendSocket,
    start: StartupMessage,
) -> Result<Option<ClientSession<'a>>, PostgresRefusal> {
    let variant = request::variant(login, &start)?;
    let (server, session, slot) = socket.lease(variant).await?;
    let Session::Postgres { process_id, parameters, .. } = &session else {
        return Err(refuse("XX000", "the pool gave a connection of another kind"));
    };
    let slot = Arc::new(slot);
    let newest = newest_minor(parameters);
    let secret = rand::rng().random::<[u8; 32]>();
    let secret = if start.minor.min(newest) >= LONG_KEYS_MINOR { &secret[..] } else { &secret[..4] };
    let key = (*process_id, secret.to_vec());
    let greeting = greeting(&start, newest, &key, parameters);
    let registered = CancelRegistration::new(socket, key, &slot);
    let admitted = ClientSession { server, session, slot, cancel: Some(registered) };
    let sent = client.write_all(&greeting).await;
    Ok(sent.is_ok().then_some(admitted))
}

/// A packet without its length, as far as no pool is needed.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz_first_packet(login: &PostgresLogin, body: &[u8]) {
    if let Ok(Some(FirstPacket::Startup(start))) = request::parse(body)
        && request::variant(login, &start).is_ok()
    {
        greeting(&start, newest_minor(&start.parameters), &(1, vec![2]), &start.parameters);
    }
}

/// The newest protocol, 3.x, that the server speaks. Towards a client nothing but the key differs, so the agent's own login
/// may be of an older one.
fn newest_minor(parameters: &[(String, String)]) -> i32 {
    let version = parameters.iter().find(|(name, _)| name == "server_version");
    let major = version
        .and_then(|(_, version)| version.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
    if major >= Some(18) { LONG_KEYS_MINOR } else { 0 }
}

/// The server's messages after a login without a password. The secret is not the server's: with the server's, the client
/// could later cancel a query of the next user of this connection.
fn greeting(
    start: &StartupMessage,
    newest: i32,
    (process_id, secret): &CancelKey,
    parameters: &[(String, String)],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    if start.minor > newest || !start.unknown.is_empty() {
        let count = u32::try_from(start.unknown.len()).unwrap_or(u32::MAX);
        let mut body = [(PROTOCOL_3_0 + start.minor.min(newest)).to_be_bytes(), count.to_be_bytes()].concat();
        for name in &start.unknown {
            body.extend([name.as_bytes(), &[0]].concat());
        }
        message(&mut bytes, b'v', &[&body]);
    }
    message(&mut bytes, b'R', &[&0_i32.to_be_bytes()]);
    for (name, value) in parameters {
        message(&mut bytes, b'S', &[name.as_bytes(), &[0], value.as_bytes(), &[0]]);
    }
    message(&mut bytes, b'K', &[&process_id.to_be_bytes(), secret]);
    message(&mut bytes, b'Z', &[b"I"]);
    bytes
}

fn error_response(PostgresRefusal { sqlstate, message: text }: &PostgresRefusal) -> Vec<u8> {
    let mut bytes = Vec::new();
    let fields = [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', text)];
    let fields: Vec<u8> =
        fields.iter().flat_map(|(tag, value)| [&[*tag], value.as_bytes(), &[0]].concat()).collect();
    message(&mut bytes, b'E', &[&fields, &[0]]);
    bytes
}

fn message(bytes: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let length = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
    bytes.push(tag);
    // The limits of a login and of a first packet keep it far below.
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
}

#[cfg(test)]
mod tests;
