//! Using a session again: finding the end of a client's conversation, and cleaning the session.
//!
//! RESP: redis.io/docs/latest/develop/reference/protocol-spec.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::RedisLogin;
use super::login::log_in;
use super::replies::{command, line, nothing_more, unexpected};
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
            Some(b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(') => Some(self.element()),
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

/// `RESET` (Redis 6.2) ends transactions, subscriptions and the login, and goes back to RESP2; a new login follows.
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
    nothing_more(&read)?;
    log_in(login, stream).await.map(drop)
}

#[cfg(test)]
mod tests;
