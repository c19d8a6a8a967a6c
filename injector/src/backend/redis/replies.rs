//! Commands of our own and their replies, which are lines (RESP2).

use tokio::io::{AsyncRead, AsyncReadExt};

use super::RedisLogin;
use crate::Secret;
use crate::backend::ConnectCause;
use crate::backend::error::printable;

/// Longest reply that is read: a login has only one-line ones.
const MAX_REPLY_BYTES: usize = 512;

/// Longest text that is read: a session's state has some 500 bytes.
const MAX_TEXT_BYTES: usize = 8 * 1024;

pub(super) fn unexpected(login: &RedisLogin, expected: &'static str, found: &str) -> ConnectCause {
    ConnectCause::Unexpected { expected, found: printable(&Secret::hide(login.password.as_ref(), found)) }
}

pub(super) fn nothing_more(read: &[u8]) -> Result<(), ConnectCause> {
    match read.is_empty() {
        true => Ok(()),
        false => Err(ConnectCause::Unexpected { expected: "nothing more", found: "more".to_owned() }),
    }
}

/// An array of bulk strings.
pub(super) fn command(bytes: &mut Vec<u8>, words: &[&str]) {
    bytes.extend(format!("*{}\r\n", words.len()).into_bytes());
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend(word.as_bytes());
        bytes.extend(b"\r\n");
    }
}

/// The next line, without its end; what comes after it stays in `read`.
pub(super) async fn line<S>(
    login: &RedisLogin,
    stream: &mut S,
    read: &mut Vec<u8>,
) -> Result<String, ConnectCause>
where
    S: AsyncRead + Unpin,
{
    loop {
        if let Some(end) = read.windows(2).position(|end| end == b"\r\n") {
            let line = String::from_utf8_lossy(&read[..end]).into_owned();
            read.drain(..end + 2);
            return Ok(line);
        }
        if read.len() > MAX_REPLY_BYTES {
            return Err(unexpected(login, "a short line", &String::from_utf8_lossy(read)));
        }
        if stream.read_buf(read).await.map_err(ConnectCause::Lost)? == 0 {
            return Err(ConnectCause::Closed);
        }
    }
}

/// The next reply, which is a text of any characters.
pub(super) async fn text<S>(
    login: &RedisLogin,
    stream: &mut S,
    read: &mut Vec<u8>,
) -> Result<String, ConnectCause>
where
    S: AsyncRead + Unpin,
{
    let head = line(login, stream, read).await?;
    let bytes = head.strip_prefix('$').and_then(|bytes| bytes.parse::<usize>().ok());
    let Some(bytes) = bytes.filter(|bytes| *bytes <= MAX_TEXT_BYTES) else {
        return Err(unexpected(login, "a text", &head));
    };
    while read.len() < bytes + 2 {
        if stream.read_buf(read).await.map_err(ConnectCause::Lost)? == 0 {
            return Err(ConnectCause::Closed);
        }
    }
    let text = String::from_utf8_lossy(&read[..bytes]).into_owned();
    read.drain(..bytes + 2);
    Ok(text)
}

/// The first word of an error is its kind.
pub(super) fn refused(password: Option<&Secret>, text: &str) -> ConnectCause {
    let text = Secret::hide(password, text);
    let code = text.split(' ').next().unwrap_or_default();
    ConnectCause::Refused {
        transient: is_transient(code) || text.contains("max number of clients"),
        message: printable(&text),
    }
}

/// Kinds of temporary errors: the server loads its data, runs a script, has lost its master, or moves data.
fn is_transient(code: &str) -> bool {
    ["LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "MISCONF", "OOM"].contains(&code)
}
