//! Continues TLS sessions that the agent began (RFC 8446): the stream.
//!
//! The agent hands over key, IV and sequence number of each direction, to the kernel if it supports that ([`kernel`]).
//! It keeps the secrets from which later keys are derived, so a `KeyUpdate` of either side waits for the agent's
//! answer. Session tickets are discarded, because this process makes no new connection with them.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod kernel;
mod record;

use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use headstart_wire::{Flow, Suite, TrafficKey, TrafficKeys};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::agent::Agent;
use crate::freeze::BoxFuture;
pub(crate) use kernel::KernelStream;
use record::{Fault, Opener, PLAIN_MAX, RECORD_MAX, RecordContent, Sealer};

/// The plaintext stream of a TLS session whose records this process encrypts and decrypts.
pub(crate) struct UserTlsStream {
    socket: TcpStream,
    keys: KeyUpdates,
    opener: Opener,
    sealer: Sealer,
    /// Received bytes that are no whole record yet.
    incoming: BytesMut,
    /// Decrypted bytes that the caller has not read.
    plain: BytesMut,
    /// Encrypted bytes that are not sent yet.
    outgoing: BytesMut,
    /// The server has sent close_notify.
    ended: bool,
    /// This side has sent close_notify.
    closed: bool,
    /// The error that ended the session.
    broken: Option<String>,
}

type NextKey = BoxFuture<'static, Result<TrafficKey, String>>;

/// The next keys: the agent that derives them, and the directions that need one.
pub(crate) struct KeyUpdates {
    agent: Arc<Agent>,
    connection: u64,
    wait: Duration,
    /// The server has changed its key; its next record waits for the new key.
    from_server: Option<NextKey>,
    /// The server has requested that this side change its key before it sends data.
    requested: bool,
    to_server: Option<NextKey>,
}

impl KeyUpdates {
    /// `wait` is the longest wait for each later key of this connection.
    pub(crate) fn new(agent: Arc<Agent>, connection: u64, wait: Duration) -> Self {
        Self { agent, connection, wait, from_server: None, requested: false, to_server: None }
    }

    fn next(&self, flow: Flow) -> NextKey {
        let (agent, connection, wait) = (Arc::clone(&self.agent), self.connection, self.wait);
        Box::pin(async move {
            let answer = timeout(wait, agent.next_key(connection, flow)).await;
            let key = answer.unwrap_or_else(|_| Err(crate::Reason::Deadline(wait)));
            key.map_err(|reason| format!("there is no next key: {reason}"))
        })
    }

    /// The server has changed its key, and may have requested that this side change its own.
    fn updated(&mut self, requested: bool) {
        self.requested |= requested;
        self.from_server = Some(self.next(Flow::FromServer));
    }

    /// The key for the server's next record, if it has changed.
    fn poll_from_server(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<TrafficKey>, String>> {
        let Some(next) = &mut self.from_server else { return Poll::Ready(Ok(None)) };
        let key = ready!(next.as_mut().poll(cx));
        self.from_server = None;
        Poll::Ready(key.map(Some))
    }

    /// The key for this side's next record, if the last one is `worn` or the server has requested a change.
    fn poll_to_server(
        &mut self,
        cx: &mut Context<'_>,
        worn: bool,
    ) -> Poll<Result<Option<TrafficKey>, String>> {
        if !self.requested && !worn {
            return Poll::Ready(Ok(None));
        }
        let mut next = self.to_server.take().unwrap_or_else(|| self.next(Flow::ToServer));
        let Poll::Ready(key) = next.as_mut().poll(cx) else {
            self.to_server = Some(next);
            return Poll::Pending;
        };
        self.requested = false;
        Poll::Ready(key.map(Some))
    }
}

impl UserTlsStream {
    /// Continues the session on `socket` with the keys `first`.
    pub(crate) fn new(
        socket: TcpStream,
        suite: Suite,
        first: &TrafficKeys,
        keys: KeyUpdates,
    ) -> io::Result<Self> {
        Ok(Self {
            socket,
            keys,
            opener: Opener::new(suite, &first.from_server)?,
            sealer: Sealer::new(suite, &first.to_server)?,
            incoming: BytesMut::new(),
            plain: BytesMut::new(),
            outgoing: BytesMut::new(),
            ended: false,
            closed: false,
            broken: None,
        })
    }

    fn check(&self) -> io::Result<()> {
        match &self.broken {
            Some(why) => Err(io::Error::new(ErrorKind::InvalidData, why.clone())),
            None => Ok(()),
        }
    }

    /// Ends the session, because later records cannot be trusted.
    fn fail(&mut self, why: String) -> io::Error {
        self.broken = Some(why.clone());
        io::Error::new(ErrorKind::InvalidData, why)
    }

    /// Reads until there is plaintext, or the session has ended.
    fn poll_plain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        while self.plain.is_empty() && !self.ended {
            match ready!(self.keys.poll_from_server(cx)) {
                Ok(None) => {}
                Ok(Some(key)) => self.opener.rekey(&key),
                Err(why) => return Poll::Ready(Err(self.fail(why))),
            }
            match self.opener.open(&mut self.incoming, &mut self.plain) {
                Ok(Some(RecordContent::Data | RecordContent::Nothing)) => {}
                Ok(Some(RecordContent::End)) => self.ended = true,
                Ok(Some(RecordContent::KeyUpdate { requested })) => self.keys.updated(requested),
                Ok(None) => ready!(self.poll_more(cx))?,
                Err(fault) => return Poll::Ready(Err(self.refuse(fault, cx))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Receives more bytes from the socket.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.incoming.reserve(RECORD_MAX);
        if ready!(pin!(self.socket.read_buf(&mut self.incoming)).poll(cx))? == 0 {
            // Without close_notify something may be missing (RFC 8446, section 6.1).
            return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the server, if it can be told at once, and the caller.
    fn refuse(&mut self, fault: Fault, cx: &mut Context<'_>) -> io::Error {
        if let Some(alert) = fault.alert()
            && self.sealer.alert(alert, &mut self.outgoing).is_ok()
        {
            let _ = self.poll_send(cx);
        }
        self.fail(fault.to_string())
    }

    /// Sends all of `outgoing`.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.outgoing))?;
            self.outgoing.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    /// Changes the key for sending, if that is due.
    fn poll_key_update(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = match ready!(self.keys.poll_to_server(cx, self.sealer.is_worn())) {
            Ok(None) => Ok(()),
            Ok(Some(key)) => self.sealer.key_update(&key, &mut self.outgoing),
            Err(why) => Err(why),
        };
        Poll::Ready(outcome.map_err(|why| self.fail(why)))
    }
}

impl AsyncRead for UserTlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if stream.plain.is_empty() {
            ready!(stream.poll_plain(cx))?;
        }
        let bytes = stream.plain.len().min(buf.remaining());
        buf.put_slice(&stream.plain[..bytes]);
        stream.plain.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UserTlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.check()?;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // One record at a time: bytes for which the socket has no room stay in `outgoing`.
        ready!(stream.poll_send(cx))?;
        ready!(stream.poll_key_update(cx))?;
        let part = &buf[..buf.len().min(PLAIN_MAX)];
        if let Err(why) = stream.sealer.data(part, &mut stream.outgoing) {
            return Poll::Ready(Err(stream.fail(why)));
        }
        if let Poll::Ready(Err(error)) = stream.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if !stream.closed && stream.broken.is_none() {
            stream.closed = true;
            if let Err(why) = stream.sealer.close_notify(&mut stream.outgoing) {
                return Poll::Ready(Err(stream.fail(why)));
            }
        }
        ready!(stream.poll_send(cx))?;
        Pin::new(&mut stream.socket).poll_shutdown(cx)
    }
}

impl fmt::Debug for UserTlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserTlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
