//! A login that has happened already, for drivers that know nothing of it (PostgreSQL documentation, "Message Flow" and
//! "Message Formats").
//!
//! The driver's StartupMessage is answered here: no password is asked for, TLS and GSSAPI are declined. What it asks for
//! is honoured, by `set_config` on the server, or refused in the server's own format; nothing of it becomes SQL.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::{backend::Message, frontend};
use rand::RngExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::frames::{Frames, encode};
use crate::backend::{ConnectCause, Session, Stream};
use crate::sockets::{Admitted, CancelKey, Door, Registered};
use crate::{LeaseError, PostgresLogin};

/// Largest first packet that a server accepts (`MAX_STARTUP_PACKET_LENGTH`).
const REQUEST_MAX_BYTES: i32 = 10_000;
/// From the connection to the whole first packet.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// TLS and GSSAPI may be asked for once each.
const DECLINED_MAX: usize = 2;

const PROTOCOL_3_0: i32 = 196_608;
const CANCEL_REQUEST: i32 = 80_877_102;
const SSL_REQUEST: i32 = 80_877_103;
const GSSENC_REQUEST: i32 = 80_877_104;

/// Why a client is not admitted, as the server would say it (PostgreSQL documentation, appendix A).
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    sqlstate: String,
    message: String,
}

fn refuse(sqlstate: &str, message: impl Into<String>) -> Refusal {
    Refusal { sqlstate: sqlstate.to_owned(), message: message.into() }
}

impl From<ConnectCause> for Refusal {
    fn from(cause: ConnectCause) -> Self {
        match cause {
            ConnectCause::Server { sqlstate, message } => Self { sqlstate, message },
            other => refuse("08006", other.to_string()),
        }
    }
}

impl From<LeaseError> for Refusal {
    fn from(error: LeaseError) -> Self {
        let sqlstate = if matches!(error, LeaseError::Exhausted { .. }) { "53300" } else { "08001" };
        refuse(sqlstate, error.to_string())
    }
}

/// What a client wants first.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Start(Start),
    Cancel(CancelKey),
}

/// A StartupMessage.
#[derive(Debug, Default, PartialEq, Eq)]
struct Start {
    /// Newer than 3.0: it is told that there is nothing newer.
    newer: bool,
    /// Options of the protocol that 3.0 does not know.
    unknown: Vec<String>,
    parameters: Vec<(String, String)>,
}

/// See [`crate::backend::Protocol::admit`].
pub(super) async fn admit<'a>(
    login: &PostgresLogin,
    client: &mut Stream,
    door: &'a Door,
) -> Option<Admitted<'a>> {
    let request = match timeout(REQUEST_LIMIT, read(client)).await {
        Ok(Ok(request)) => request,
        Ok(Err(None)) | Err(_) => return None,
        Ok(Err(Some(refusal))) => return tell(client, &refusal).await,
    };
    let start = match request {
        Request::Start(start) => start,
        Request::Cancel(key) => {
            // Found only among this instance's own: nobody can hit another borrower.
            let slot = door.cancels().get(&key).map(Arc::clone);
            if let Some(slot) = slot
                && let Err(error) = slot.cancel_query().await
            {
                tracing::warn!("a query is not cancelled: {error}");
            }
            return None;
        }
    };
    match welcome(login, client, door, start).await {
        Ok(admitted) => admitted,
        Err(refusal) => tell(client, &refusal).await,
    }
}

/// Says why, and nothing more.
async fn tell<'a>(client: &mut Stream, refusal: &Refusal) -> Option<Admitted<'a>> {
    // It may have left already.
    let _ = client.write_all(&error_response(refusal)).await;
    None
}

/// See [`crate::backend::Protocol::turn_away`].
pub(super) async fn turn_away(mut client: Stream) {
    let full = refuse("53300", "this instance has as many connections as it may have: close some");
    // What it has sent must be read, or it may lose the answer.
    if timeout(REQUEST_LIMIT, read(&mut client)).await.is_ok() {
        tell(&mut client, &full).await;
    }
}

/// `None` when the client has gone or may ask for something else only by leaving.
async fn welcome<'a>(
    login: &PostgresLogin,
    client: &mut Stream,
    door: &'a Door,
    start: Start,
) -> Result<Option<Admitted<'a>>, Refusal> {
    let wanted = wanted(login, &start)?;
    let (mut server, session, slot) = door.lease().await?;
    let Session::Postgres { process_id, parameters, .. } = &session else {
        return Err(refuse("XX000", "the pool gave a connection of another kind"));
    };
    let (process_id, mut parameters) = (*process_id, parameters.clone());
    set(&mut server, &wanted, &mut parameters).await?;
    let slot = Arc::new(slot);
    let key = (process_id, rand::rng().random());
    let registered = Registered::new(door, key, &slot);
    let admitted = Admitted { server, session, slot, key: Some(registered) };
    let said = client.write_all(&greeting(&start, key, &parameters)).await;
    Ok(said.is_ok().then_some(admitted))
}

/// The first packet that is not declined. `Err(None)` when the client left.
async fn read<S>(client: &mut S) -> Result<Request, Option<Refusal>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let lost = |_: io::Error| None;
    for _ in 0..=DECLINED_MAX {
        let length = client.read_i32().await.map_err(lost)?;
        if !(8..=REQUEST_MAX_BYTES).contains(&length) {
            return Err(Some(refuse("08P01", "invalid length of startup packet")));
        }
        let mut body = vec![0; usize::try_from(length - 4).unwrap_or_default()];
        client.read_exact(&mut body).await.map_err(lost)?;
        match parse(&body).map_err(Some)? {
            Some(request) => return Ok(request),
            // Nobody can listen in on a unix socket.
            None => client.write_all(b"N").await.map_err(lost)?,
        }
    }
    Err(Some(refuse("08P01", "TLS was declined already")))
}

/// A packet without its length. `None` when TLS or GSSAPI is asked for.
fn parse(body: &[u8]) -> Result<Option<Request>, Refusal> {
    let malformed = || refuse("08P01", "invalid startup packet");
    let number = |at: usize| {
        let bytes = body.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        bytes.map(i32::from_be_bytes).ok_or_else(malformed)
    };
    match number(0)? {
        SSL_REQUEST | GSSENC_REQUEST => Ok(None),
        CANCEL_REQUEST => Ok(Some(Request::Cancel((number(4)?, number(8)?)))),
        code if code >> 16 == 3 => {
            let mut start = Start { newer: code != PROTOCOL_3_0, ..Start::default() };
            let mut rest = &body[4..];
            loop {
                let name = text(&mut rest).ok_or_else(malformed)?;
                if name.is_empty() {
                    return Ok(Some(Request::Start(start)));
                }
                let value = text(&mut rest).ok_or_else(malformed)?;
                if name.starts_with("_pq_.") {
                    start.unknown.push(name);
                } else {
                    start.parameters.push((name, value));
                }
            }
        }
        code => {
            let (major, minor) = (code >> 16, code & 0xffff);
            Err(refuse(
                "0A000",
                format!("unsupported frontend protocol {major}.{minor}: server supports 3.0"),
            ))
        }
    }
}

/// A packet without its length, as far as a pool is not needed for it.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_first_packet(login: &PostgresLogin, body: &[u8]) {
    if let Ok(Some(Request::Start(start))) = parse(body)
        && wanted(login, &start).is_ok()
    {
        greeting(&start, (1, 2), &start.parameters);
    }
}

/// A text up to its zero byte.
fn text(rest: &mut &[u8]) -> Option<String> {
    let end = rest.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&rest[..end]).ok()?.to_owned();
    *rest = &rest[end + 1..];
    Some(text)
}

/// The parameters that a session must have, in the order in which they were given.
fn wanted(login: &PostgresLogin, start: &Start) -> Result<Vec<(String, String)>, Refusal> {
    let mut wanted = Vec::new();
    let (mut user, mut database) = (None, None);
    for (name, value) in &start.parameters {
        match name.as_str() {
            "user" => user = Some(value.as_str()),
            "database" => database = Some(value.as_str()).filter(|database| !database.is_empty()),
            "replication" if matches!(value.as_str(), "false" | "off" | "no" | "0") => {}
            "replication" => {
                return Err(refuse("0A000", "replication is not possible through the agent's pool"));
            }
            "options" => wanted.extend(options(value)?),
            _ => wanted.push((name.clone(), value.clone())),
        }
    }
    match user {
        None | Some("") => {
            return Err(refuse("28000", "no PostgreSQL user name specified in startup packet"));
        }
        Some(user) if user != login.user => {
            let text = format!("the agent logs in as \"{}\" here, not as \"{user}\"", login.user);
            return Err(refuse("28000", text));
        }
        Some(_) => {}
    }
    // Without one it is that of the user's name.
    let database = database.unwrap_or(&login.user);
    if database != login.database {
        let text = format!(
            "the agent's connections lead to the database \"{}\", not to \"{database}\"",
            login.database
        );
        return Err(refuse("3D000", text));
    }
    Ok(wanted)
}

/// Arguments of the server's command line, of which parameters can be set: `-c NAME=VALUE` and `--NAME=VALUE`. Words end
/// at white space, a backslash takes the next character as it is.
fn options(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    let mut words = vec![String::new()];
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (char, words.last_mut()) {
            ('\\', Some(word)) => word.extend(chars.next()),
            (char, _) if char.is_whitespace() => words.push(String::new()),
            (char, Some(word)) => word.push(char),
            (_, None) => {}
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            "-c" => words.next(),
            word => word.strip_prefix("-c").or_else(|| word.strip_prefix("--")).map(str::to_owned),
        };
        let pair = setting.as_deref().and_then(|setting| setting.split_once('='));
        let Some((name, value)) = pair else {
            return Err(refuse("0A000", format!("only parameters can be set in options: not \"{word}\"")));
        };
        found.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(found)
}

/// Has the server set what is not so already: in one round trip, or none.
async fn set<S>(
    server: &mut S,
    wanted: &[(String, String)],
    parameters: &mut Vec<(String, String)>,
) -> Result<(), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let is_so = |(name, value): &&(String, String)| {
        !parameters.iter().any(|(known, is)| known.eq_ignore_ascii_case(name) && same(name, value, is))
    };
    let news: Vec<_> = wanted.iter().filter(is_so).collect();
    if news.is_empty() {
        return Ok(());
    }
    let mut request =
        encode(|buf| frontend::parse("", "select pg_catalog.set_config($1, $2, false)", [25, 25], buf))?;
    for (name, value) in news {
        request.extend(bind(name, value)?);
        request.extend(encode(|buf| frontend::execute("", 0, buf))?);
    }
    request.extend(encode(|buf| {
        frontend::sync(buf);
        Ok(())
    })?);
    let mut frames = Frames::new(server, None);
    frames.send(&request).await?;
    loop {
        match frames.next().await? {
            Message::ParameterStatus(body) => {
                let malformed =
                    |error| Refusal::from(ConnectCause::from(super::ProtocolError::Malformed(error)));
                let (name, value) = (body.name().map_err(malformed)?, body.value().map_err(malformed)?);
                match parameters.iter_mut().find(|(known, _)| known == name) {
                    Some((_, known)) => value.clone_into(known),
                    None => parameters.push((name.to_owned(), value.to_owned())),
                }
            }
            Message::ReadyForQuery(body) if body.status() == b'I' => break,
            Message::ReadyForQuery(_) => return Err(ConnectCause::from(frames.unexpected()).into()),
            _ => {}
        }
    }
    if frames.is_quiet() { Ok(()) } else { Err(ConnectCause::from(super::ProtocolError::NotQuiet).into()) }
}

/// Drivers spell encodings in many ways; the server ignores case and punctuation too.
fn same(name: &str, wanted: &str, is: &str) -> bool {
    let plain = |text: &str| {
        text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
    };
    wanted == is || (name.eq_ignore_ascii_case("client_encoding") && plain(wanted) == plain(is))
}

fn bind(name: &str, value: &str) -> Result<BytesMut, ConnectCause> {
    encode(|buf| {
        let values = [name, value];
        let write = |value: &str, buf: &mut BytesMut| {
            buf.extend_from_slice(value.as_bytes());
            Ok(postgres_protocol::IsNull::No)
        };
        frontend::bind("", "", [], values, write, [], buf).map_err(|error| match error {
            frontend::BindError::Conversion(error) => io::Error::other(error),
            frontend::BindError::Serialization(error) => error,
        })
    })
}

/// All that a server says to a login without a password. The secret is not the server's: with that one could cancel what
/// the next one does on this connection.
fn greeting(start: &Start, (process_id, secret): CancelKey, parameters: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    if start.newer || !start.unknown.is_empty() {
        let count = u32::try_from(start.unknown.len()).unwrap_or(u32::MAX);
        let mut body = [PROTOCOL_3_0.to_be_bytes(), count.to_be_bytes()].concat();
        for name in &start.unknown {
            body.extend([name.as_bytes(), &[0]].concat());
        }
        message(&mut bytes, b'v', &[&body]);
    }
    message(&mut bytes, b'R', &[&0_i32.to_be_bytes()]);
    for (name, value) in parameters {
        message(&mut bytes, b'S', &[name.as_bytes(), &[0], value.as_bytes(), &[0]]);
    }
    message(&mut bytes, b'K', &[&process_id.to_be_bytes(), &secret.to_be_bytes()]);
    message(&mut bytes, b'Z', &[b"I"]);
    bytes
}

fn error_response(Refusal { sqlstate, message: text }: &Refusal) -> Vec<u8> {
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
    // Bounded by what a login may say, and by a first packet.
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
}

#[cfg(test)]
#[path = "admit/tests.rs"]
mod tests;
