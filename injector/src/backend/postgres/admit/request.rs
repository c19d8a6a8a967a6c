//! The first packet of a client, and what a session must have for it (PostgreSQL documentation, "Message Formats").

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{PostgresRefusal, refuse};
use crate::PostgresLogin;
use crate::backend::postgres::login::ENCODING;
use crate::backend::{AdmissionError, LoginVariant};
use crate::sockets::CancelKey;

/// Largest first packet that a server accepts (`MAX_STARTUP_PACKET_LENGTH`).
const REQUEST_MAX_BYTES: i32 = 10_000;
/// TLS and GSSAPI may be asked for once each.
const DECLINED_MAX: usize = 2;

pub(super) const PROTOCOL_3_0: i32 = 196_608;
const CANCEL_REQUEST: i32 = 80_877_102;
const SSL_REQUEST: i32 = 80_877_103;
const GSSENC_REQUEST: i32 = 80_877_104;

/// What the first packet asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FirstPacket {
    Startup(StartupMessage),
    Cancel(CancelKey),
}

/// A StartupMessage.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StartupMessage {
    /// Its protocol is 3.`minor`.
    pub(super) minor: i32,
    /// Options of the protocol, of which none is known.
    pub(super) unknown: Vec<String>,
    pub(super) parameters: Vec<(String, String)>,
}

/// Reads the first packet after those that ask for encryption, which is declined. An error when the client has left, or sends something else.
pub(super) async fn read<S>(client: &mut S) -> Result<FirstPacket, AdmissionError<PostgresRefusal>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let left = |_: io::Error| AdmissionError::Left;
    for _ in 0..=DECLINED_MAX {
        let length = client.read_i32().await.map_err(left)?;
        if !(8..=REQUEST_MAX_BYTES).contains(&length) {
            return Err(refuse("08P01", "invalid length of startup packet").into());
        }
        let mut body = vec![0; usize::try_from(length - 4).unwrap_or_default()];
        client.read_exact(&mut body).await.map_err(left)?;
        match parse(&body)? {
            Some(request) => return Ok(request),
            // The socket is local: its bytes cross no network.
            None => client.write_all(b"N").await.map_err(left)?,
        }
    }
    Err(refuse("08P01", "TLS was declined already").into())
}

/// A packet without its length. `None` when TLS or GSSAPI is asked for.
pub(super) fn parse(body: &[u8]) -> Result<Option<FirstPacket>, PostgresRefusal> {
    let malformed = || refuse("08P01", "invalid startup packet");
    let number = |at: usize| {
        let bytes = body.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        bytes.map(i32::from_be_bytes).ok_or_else(malformed)
    };
    match number(0)? {
        SSL_REQUEST | GSSENC_REQUEST => Ok(None),
        CANCEL_REQUEST => {
            let (process_id, _) = (number(4)?, number(8)?);
            Ok(Some(FirstPacket::Cancel((process_id, body[8..].to_vec()))))
        }
        code if code >> 16 == 3 => {
            let mut start = StartupMessage { minor: code & 0xffff, ..StartupMessage::default() };
            let mut rest = &body[4..];
            loop {
                let name = text(&mut rest).ok_or_else(malformed)?;
                if name.is_empty() {
                    return Ok(Some(FirstPacket::Startup(start)));
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

/// A text up to its zero byte.
fn text(rest: &mut &[u8]) -> Option<String> {
    let end = rest.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&rest[..end]).ok()?.to_owned();
    *rest = &rest[end + 1..];
    Some(text)
}

/// What the login of the client's session must carry beside what is configured.
pub(super) fn variant(
    login: &PostgresLogin,
    start: &StartupMessage,
) -> Result<LoginVariant, PostgresRefusal> {
    let mut parameters: Vec<(String, String)> = Vec::new();
    // The last one of a name counts.
    for (name, value) in wanted(login, start)? {
        parameters.retain(|(known, _)| !known.eq_ignore_ascii_case(&name));
        parameters.push((name, value));
    }
    parameters.retain(|(name, value)| !is_configured(login, name, value));
    Ok(if parameters.is_empty() { LoginVariant::Plain } else { LoginVariant::Parameters(parameters.into()) })
}

/// Whether each login has this parameter.
fn is_configured(login: &PostgresLogin, name: &str, value: &str) -> bool {
    if let Some(configured) = login.options.get(name) {
        return configured == value;
    }
    // Drivers spell encodings in many ways; like the server, this ignores case and punctuation.
    let plain = |text: &str| {
        text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
    };
    name.eq_ignore_ascii_case(ENCODING.0) && plain(value) == plain(ENCODING.1)
}

/// The parameters that a session must have, in the order in which they were given.
fn wanted(login: &PostgresLogin, start: &StartupMessage) -> Result<Vec<(String, String)>, PostgresRefusal> {
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
    // The default is the database of the user's name.
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
fn options(text: &str) -> Result<Vec<(String, String)>, PostgresRefusal> {
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

#[cfg(test)]
mod tests;
