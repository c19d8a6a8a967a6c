//! TLS sessions that the agent began and this process goes on with (RFC 8446): the stream.
//!
//! The agent gives key, IV and sequence number of each direction, to the kernel if that takes them ([`kernel`]), and
//! keeps the secrets that later keys are made of. So a `KeyUpdate`, the server's or our own, waits for the agent's
//! answer. Session tickets are of no use here, where nobody connects anew, and are thrown away.

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
use crate::rest::BoxFuture;
pub(crate) use kernel::KernelStream;
use record::{Fault, Opener, PLAIN_MAX, RECORD_MAX, Said, Sealer};

/// A stream of plaintext over a session that was handed over.
pub(crate) struct TlsStream {
    socket: TcpStream,
    keys: Keys,
    opener: Opener,
    sealer: Sealer,
    /// Came from the server, and is no whole record yet.
    incoming: BytesMut,
    /// Decrypted, to be read.
    plain: BytesMut,
    /// Encrypted, to be sent.
    outgoing: BytesMut,
    /// The server has said that nothing follows.
    ended: bool,
    /// We have.
    closed: bool,
    /// What ended the session before its time.
    broken: Option<String>,
}

type NextKey = BoxFuture<'static, Result<TrafficKey, String>>;

/// Who makes the next keys, and which are due.
pub(crate) struct Keys {
    agent: Arc<Agent>,
    connection: u64,
    wait: Duration,
    /// The server has new keys from here on; its next record waits for them.
    from_server: Option<NextKey>,
    /// The server wants us to have new keys before we say anything else.
    owed: bool,
    to_server: Option<NextKey>,
}

impl Keys {
    /// Later keys of this connection are waited for as long as `wait`.
    pub(crate) fn new(agent: Arc<Agent>, connection: u64, wait: Duration) -> Self {
        Self { agent, connection, wait, from_server: None, owed: false, to_server: None }
    }

    fn next(&self, flow: Flow) -> NextKey {
        let (agent, connection, wait) = (Arc::clone(&self.agent), self.connection, self.wait);
        Box::pin(async move {
            let answer = timeout(wait, agent.next_key(connection, flow)).await;
            let key = answer.unwrap_or_else(|_| Err(crate::Reason::Deadline(wait)));
            key.map_err(|reason| format!("there is no next key: {reason}"))
        })
    }

    /// The server has changed its keys, and may want us to change ours.
    fn updated(&mut self, requested: bool) {
        self.owed |= requested;
        self.from_server = Some(self.next(Flow::FromServer));
    }

    /// The key for what the server sends next, if it has changed.
    fn poll_from_server(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<TrafficKey>, String>> {
        let Some(next) = &mut self.from_server else { return Poll::Ready(Ok(None)) };
        let key = ready!(next.as_mut().poll(cx));
        self.from_server = None;
        Poll::Ready(key.map(Some))
    }

    /// The key for what we send next, if the last one is `worn` or the server wants another.
    fn poll_to_server(
        &mut self,
        cx: &mut Context<'_>,
        worn: bool,
    ) -> Poll<Result<Option<TrafficKey>, String>> {
        if !self.owed && !worn {
            return Poll::Ready(Ok(None));
        }
        let mut next = self.to_server.take().unwrap_or_else(|| self.next(Flow::ToServer));
        let Poll::Ready(key) = next.as_mut().poll(cx) else {
            self.to_server = Some(next);
            return Poll::Pending;
        };
        self.owed = false;
        Poll::Ready(key.map(Some))
    }
}

impl TlsStream {
    /// `socket` is where the agent has left off, with the keys of `first`.
    pub(crate) fn new(socket: TcpStream, suite: Suite, first: &TrafficKeys, keys: Keys) -> io::Result<Self> {
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

    /// Ends the session: nothing that comes later can be trusted.
    fn fail(&mut self, why: String) -> io::Error {
        self.broken = Some(why.clone());
        io::Error::new(ErrorKind::InvalidData, why)
    }

    /// Until there is something to read, or there never will be.
    fn poll_plain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        while self.plain.is_empty() && !self.ended {
            match ready!(self.keys.poll_from_server(cx)) {
                Ok(None) => {}
                Ok(Some(key)) => self.opener.rekey(&key),
                Err(why) => return Poll::Ready(Err(self.fail(why))),
            }
            match self.opener.open(&mut self.incoming, &mut self.plain) {
                Ok(Some(Said::Data | Said::Nothing)) => {}
                Ok(Some(Said::End)) => self.ended = true,
                Ok(Some(Said::KeyUpdate { requested })) => self.keys.updated(requested),
                Ok(None) => ready!(self.poll_more(cx))?,
                Err(fault) => return Poll::Ready(Err(self.refuse(fault, cx))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// More from the socket.
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

    /// Sends what is to be sent.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.outgoing))?;
            self.outgoing.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    /// Gets new keys for what we send, if the old ones are due.
    fn poll_key_update(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = match ready!(self.keys.poll_to_server(cx, self.sealer.is_worn())) {
            Ok(None) => Ok(()),
            Ok(Some(key)) => self.sealer.key_update(&key, &mut self.outgoing),
            Err(why) => Err(why),
        };
        Poll::Ready(outcome.map_err(|why| self.fail(why)))
    }
}

impl AsyncRead for TlsStream {
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

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.check()?;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // One record at a time: what does not fit the socket waits here.
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

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
