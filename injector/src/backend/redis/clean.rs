//! Using a session again: finding the end of a client's conversation, and cleaning the session.
//!
//! RESP: redis.io/docs/latest/develop/reference/protocol-spec.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::RedisLogin;
use super::login::ask;
use super::replies::{command, line, nothing_more, text, unexpected};
use crate::backend::{ConnectCause, TerminationDetector};

/// The longest line that is followed: no command or answer that must be understood has a longer one.
const LINE_MAX_BYTES: usize = 64 * 1024;
/// How deep answers may be nested.
const DEPTH_MAX: usize = 64;

/// Follows both sides of a conversation: most clients leave without `QUIT`, and then the question is whether a command was
/// left incomplete or unanswered.
#[derive(Debug, Default)]
pub(super) struct RespDetector {
    client: RespFrames,
    server: RespFrames,
    commands: u64,
    answers: u64,
    /// The conversation cannot be followed: subscriptions, for instance, have answers without commands.
    lost: bool,
}

impl TerminationDetector for RespDetector {
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        match self.client.follow(bytes, false) {
            Some(frames) => self.commands += frames,
            None => self.lost = true,
        }
        None
    }

    fn server_sent(&mut self, bytes: &[u8]) {
        match self.server.follow(bytes, true) {
            Some(frames) => self.answers += frames,
            None => self.lost = true,
        }
        self.lost |= self.answers > self.commands;
    }

    fn is_read_only(&self) -> bool {
        self.server.read_only
    }

    fn is_complete(&self) -> bool {
        !self.lost && self.answers == self.commands && self.client.is_between() && self.server.is_between()
    }
}

/// One direction.
#[derive(Debug, Default)]
struct RespFrames {
    /// The beginning of a line.
    line: Vec<u8>,
    /// Bytes of a bulk string that follow, with its line end.
    bulk: u64,
    /// How many elements of each open aggregate follow, the innermost last.
    open: Vec<u64>,
    /// The frame is an attribute or a push message, not an answer.
    aside: bool,
    /// There was an error of the kind `READONLY`.
    read_only: bool,
}

impl RespFrames {
    fn is_between(&self) -> bool {
        self.line.is_empty() && self.bulk == 0 && self.open.is_empty() && !self.aside
    }

    /// How many frames end in the next bytes. A line that is not RESP is an inline command, unless the bytes are `answers`.
    fn follow(&mut self, mut bytes: &[u8], answers: bool) -> Option<u64> {
        let mut ended = 0;
        while !bytes.is_empty() {
            if self.bulk > 0 {
                let skipped = bytes.len().min(usize::try_from(self.bulk).unwrap_or(usize::MAX));
                bytes = &bytes[skipped..];
                self.bulk -= skipped as u64;
                ended += if self.bulk == 0 { self.element() } else { 0 };
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                self.line.extend_from_slice(bytes);
                return (self.line.len() <= LINE_MAX_BYTES).then_some(ended);
            };
            self.line.extend_from_slice(&bytes[..=end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            ended += self.read(line.trim_ascii_end(), answers)?;
        }
        Some(ended)
    }

    /// Reads a line; returns how many frames end with it.
    fn read(&mut self, line: &[u8], answers: bool) -> Option<u64> {
        let number = || -> Option<i64> { std::str::from_utf8(line.get(1..)?).ok()?.parse().ok() };
        // A null is -1.
        let count = |each: u64| u64::try_from(number()?.max(0)).ok()?.checked_mul(each);
        match line.first() {
            Some(b'$' | b'=' | b'!') if answers || !self.open.is_empty() => match number()? {
                -1 => Some(self.element()),
                bytes => {
                    self.bulk = u64::try_from(bytes).ok()?.checked_add(2)?;
                    Some(0)
                }
            },
            Some(b'*') if !answers => self.begin(count(1)?),
            _ if !answers => {
                // A command contains only bulk strings. An empty line is no command.
                (self.open.is_empty()).then_some(u64::from(!line.is_empty()))
            }
            Some(b'*' | b'~') => self.begin(count(1)?),
            Some(b'%') => self.begin(count(2)?),
            // Attributes come before an answer, push messages without a command.
            Some(b'|') if self.open.is_empty() && !self.aside => {
                self.aside = true;
                self.begin(count(2)?)
            }
            Some(b'>') if self.open.is_empty() && !self.aside => {
                self.aside = true;
                self.begin(count(1)?)
            }
            Some(b'-') => {
                self.read_only |= line.starts_with(b"-READONLY ");
                Some(self.element())
            }
            Some(b'+' | b':' | b'_' | b',' | b'#' | b'(') => Some(self.element()),
            _ => None,
        }
    }

    fn begin(&mut self, elements: u64) -> Option<u64> {
        if elements == 0 {
            return Some(self.element());
        }
        self.open.push(elements);
        (self.open.len() <= DEPTH_MAX).then_some(0)
    }

    /// Counts an element that has ended; returns 1 if its frame has ended with it, else 0.
    fn element(&mut self) -> u64 {
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return 0;
            }
            self.open.pop();
        }
        u64::from(!std::mem::take(&mut self.aside))
    }
}

/// What a session says of itself.
const INFO: [&str; 2] = ["CLIENT", "INFO"];

/// `RESET` (Redis 6.2) ends transactions, subscriptions and the login, and goes back to RESP2; a new login follows. What is
/// left then is undone one by one, or the session is given up.
pub(super) async fn clean<S>(login: &RedisLogin, stream: &mut S) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut commands, mut read) = (Vec::new(), Vec::new());
    command(&mut commands, &["RESET"]);
    stream.write_all(&commands).await.map_err(ConnectCause::Lost)?;
    stream.flush().await.map_err(ConnectCause::Lost)?;
    let (expected, found) = ("+RESET", line(login, stream, &mut read).await?);
    if found != expected {
        return Err(unexpected(login, expected, &found));
    }
    // The password is sent when the server has understood.
    nothing_more(&read)?;
    ask(login, stream, &mut read, &INFO).await?;
    let info = text(login, stream, &mut read).await?;
    let left = remains(login, &info);
    if !left.is_empty() {
        undo(login, stream, &mut read, &left).await?;
    }
    nothing_more(&read)
}

/// Undoes what `RESET` has left, and looks whether that was all.
async fn undo<S>(
    login: &RedisLogin,
    stream: &mut S,
    read: &mut Vec<u8>,
    left: &[(&str, &str)],
) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let has = |name, part| left.iter().any(|(field, value)| *field == name && value.contains(part));
    let orders = [
        (has("flags", "e"), &["CLIENT", "NO-EVICT", "OFF"][..]),
        (has("flags", "T"), &["CLIENT", "NO-TOUCH", "OFF"]),
        (has("lib-name", ""), &["CLIENT", "SETINFO", "LIB-NAME", ""]),
        (has("lib-ver", ""), &["CLIENT", "SETINFO", "LIB-VER", ""]),
    ];
    let orders = orders.iter().filter(|(needed, _)| *needed);
    let mut commands = Vec::new();
    orders.clone().for_each(|(_, words)| command(&mut commands, words));
    command(&mut commands, &INFO);
    stream.write_all(&commands).await.map_err(ConnectCause::Lost)?;
    stream.flush().await.map_err(ConnectCause::Lost)?;
    for _ in orders {
        line(login, stream, read).await?; // whether it helped is seen next
    }
    let info = text(login, stream, read).await?;
    match remains(login, &info).first() {
        None => Ok(()),
        Some((field, value)) => {
            Err(unexpected(login, "a session as after its login", &format!("{field}={value}")))
        }
    }
}

/// Fields of `CLIENT INFO` that are not as after a login. Servers lack those that they have no use for.
fn remains<'i>(login: &RedisLogin, info: &'i str) -> Vec<(&'i str, &'i str)> {
    let (database, user) = (login.database.to_string(), login.user.as_deref().unwrap_or("default"));
    let fields = info.split_ascii_whitespace().filter_map(|field| field.split_once('='));
    fields
        .filter(|(name, value)| match *name {
            // A normal client, over a unix socket; in no transaction, for instance. (`multi` may be 0 then.)
            "flags" => value.contains(|flag| flag != 'N' && flag != 'U'),
            "db" => *value != database,
            "user" => *value != user,
            "sub" | "psub" | "ssub" | "watch" => *value != "0",
            "redir" => *value != "-1",
            "resp" => *value != "2",
            "name" | "lib-name" | "lib-ver" | "capa" => !value.is_empty(),
            _ => false,
        })
        .collect()
}

#[cfg(test)]
mod tests;
