//! A login that has happened already, played back to the driver.
//!
//! The driver writes its StartupMessage: it is swallowed. It then reads what the
//! server said to the agent: AuthenticationOk, each ParameterStatus, BackendKeyData,
//! ReadyForQuery. From there on every call goes to the socket, behind one check of
//! the state. (PostgreSQL documentation, "Message Flow" and "Message Formats".)

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Protocol 3.0, as the StartupMessage carries it: the version that was logged in with.
const PROTOCOL: i32 = 196_608;

/// Largest StartupMessage that a server accepts (`MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_MAX_BYTES: usize = 10_000;

/// Length and protocol version: the beginning of a StartupMessage.
const STARTUP_HEAD_BYTES: usize = 8;

/// What the server answers to a login without a password.
///
/// The secret key is zero: the real one stays in the agent, as it would let the
/// function cancel the queries of whoever uses the session next.
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

/// A stream whose login is played back.
#[derive(Debug)]
pub(super) struct Replay<S> {
    stream: S,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The driver writes its StartupMessage.
    Startup(Startup),
    /// The driver reads the greeting, of which this many bytes it has.
    Greeting { bytes: Vec<u8>, read: usize },
    /// The socket itself.
    Open,
}

#[derive(Debug)]
struct Startup {
    head: [u8; STARTUP_HEAD_BYTES],
    /// How many bytes of the message have been written.
    written: usize,
    greeting: Vec<u8>,
    /// A driver that reads before it has written everything.
    reader: Option<Waker>,
}

impl<S> Replay<S> {
    pub(super) fn new(stream: S, greeting: Vec<u8>) -> Self {
        let startup = Startup { head: [0; STARTUP_HEAD_BYTES], written: 0, greeting, reader: None };
        Self { stream, state: State::Startup(startup) }
    }

    /// Takes what belongs to the StartupMessage; returns how much that was.
    fn swallow(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let State::Startup(startup) = &mut self.state else { return Ok(0) };
        let (taken, finished) = startup.swallow(bytes)?;
        if finished {
            let bytes = std::mem::take(&mut startup.greeting);
            let reader = startup.reader.take();
            self.state = State::Greeting { bytes, read: 0 };
            reader.into_iter().for_each(Waker::wake);
        }
        Ok(taken)
    }

    fn greet(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Startup(startup) => {
                startup.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            State::Greeting { bytes, read } => {
                let part = (bytes.len() - *read).min(buf.remaining());
                buf.put_slice(&bytes[*read..*read + part]);
                *read += part;
                if *read == bytes.len() {
                    self.state = State::Open;
                }
                Poll::Ready(Ok(()))
            }
            // Not reached: poll_read has looked.
            State::Open => Poll::Ready(Ok(())),
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
        if let State::Open = self.state {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        self.greet(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let State::Startup(_) = self.state {
            return Poll::Ready(self.swallow(buf));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let State::Startup(_) = self.state {
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
