//! Replays the agent's login to the driver.
//!
//! The driver writes its StartupMessage, which the replay discards. The driver then
//! reads what the server sent to the agent: AuthenticationOk, each ParameterStatus,
//! BackendKeyData, ReadyForQuery. After that every call goes to the socket, after one
//! check of the state. (PostgreSQL documentation, "Message Flow" and "Message Formats".)

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Protocol 3.0 in a StartupMessage: the version of the agent's login.
const PROTOCOL: i32 = 196_608;

/// Largest StartupMessage that a server accepts (`MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_MAX_BYTES: usize = 10_000;

/// Length of the beginning of a StartupMessage: its length and the protocol version.
const STARTUP_HEAD_BYTES: usize = 8;

/// The server's answer to a login without a password.
///
/// The secret key is zero. The real key stays in the agent, because with it the
/// function could cancel queries of the session's next user.
pub(super) fn greeting(process_id: i32, parameters: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    message(&mut bytes, b'R', &[&0i32.to_be_bytes()]);
    for (name, value) in parameters {
        message(&mut bytes, b'S', &[name.as_bytes(), &[0], value.as_bytes(), &[0]]);
    }
    message(&mut bytes, b'K', &[&process_id.to_be_bytes(), &0i32.to_be_bytes()]);
    message(&mut bytes, b'Z', &[b"I"]);
    bytes
}

fn message(bytes: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let length = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
    bytes.push(tag);
    // Bounded by the 64 KiB of the lease that the parts came with.
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
}

/// A stream that first replays the login.
#[derive(Debug)]
pub(super) struct Replay<S> {
    stream: S,
    state: ReplayState,
}

#[derive(Debug)]
enum ReplayState {
    /// The driver writes its StartupMessage.
    Startup(Startup),
    /// The driver reads the greeting, and has read this many bytes.
    Greeting { bytes: Vec<u8>, read: usize },
    /// Calls go to the socket.
    Open,
}

#[derive(Debug)]
struct Startup {
    head: [u8; STARTUP_HEAD_BYTES],
    /// How many bytes of the message have been written.
    written: usize,
    greeting: Vec<u8>,
    /// Wakes a driver that reads before it has written the whole message.
    reader: Option<Waker>,
}

impl<S> Replay<S> {
    pub(super) fn new(stream: S, greeting: Vec<u8>) -> Self {
        let startup = Startup { head: [0; STARTUP_HEAD_BYTES], written: 0, greeting, reader: None };
        Self { stream, state: ReplayState::Startup(startup) }
    }

    /// Discards the bytes of the StartupMessage; returns their number.
    fn swallow(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ReplayState::Startup(startup) = &mut self.state else { return Ok(0) };
        let (taken, finished) = startup.swallow(bytes)?;
        if finished {
            let bytes = std::mem::take(&mut startup.greeting);
            let reader = startup.reader.take();
            self.state = ReplayState::Greeting { bytes, read: 0 };
            reader.into_iter().for_each(Waker::wake);
        }
        Ok(taken)
    }

    fn greet(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            ReplayState::Startup(startup) => {
                startup.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            ReplayState::Greeting { bytes, read } => {
                let part = (bytes.len() - *read).min(buf.remaining());
                buf.put_slice(&bytes[*read..*read + part]);
                *read += part;
                if *read == bytes.len() {
                    self.state = ReplayState::Open;
                }
                Poll::Ready(Ok(()))
            }
            // Not reached, because poll_read checks the state first.
            ReplayState::Open => Poll::Ready(Ok(())),
        }
    }
}

impl Startup {
    fn swallow(&mut self, bytes: &[u8]) -> io::Result<(usize, bool)> {
        let head_part = STARTUP_HEAD_BYTES.saturating_sub(self.written).min(bytes.len());
        if head_part > 0 {
            self.head[self.written..self.written + head_part].copy_from_slice(&bytes[..head_part]);
            self.written += head_part;
        }
        if self.written < STARTUP_HEAD_BYTES {
            return Ok((head_part, false));
        }
        let length = self.length()?;
        let body_part = (length - self.written).min(bytes.len() - head_part);
        self.written += body_part;
        Ok((head_part + body_part, self.written == length))
    }

    /// The length of the message, from its head.
    fn length(&self) -> io::Result<usize> {
        let [a, b, c, d, version @ ..] = self.head;
        let length = usize::try_from(i32::from_be_bytes([a, b, c, d])).unwrap_or(0);
        if i32::from_be_bytes(version) != PROTOCOL {
            let problem = "the driver does not begin with a StartupMessage of protocol 3.0";
            return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
        }
        if !(STARTUP_HEAD_BYTES + 1..=STARTUP_MAX_BYTES).contains(&length) {
            let problem = "the driver's StartupMessage has an impossible length";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(length)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let ReplayState::Open = self.state {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        self.greet(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let ReplayState::Startup(_) = self.state {
            return Poll::Ready(self.swallow(buf));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let ReplayState::Startup(_) = self.state {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return Poll::Ready(first.map_or(Ok(0), |buf| self.swallow(buf)));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
