//! The transports: TCP, TLS over it, and unix sockets, behind one type.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use headstart_wire::TlsSession;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;

use super::dial::dial;
use super::liveness::{is_quiet, send_termination};
use super::tls::{NoHandOver, RetainedSecrets, TlsStream};
use super::{ConnectCause, LoginVariant, relay, tls};
use crate::{Address, BackendSpec, DiscardReason};

/// A connected, non-blocking, close-on-exec stream socket.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
    Unix(UnixStream),
}

impl Stream {
    /// Connects, up to the end of the TLS handshake where the backend has TLS; with what the server sent before that. With
    /// a `peer` to that one, wherever the name leads to now.
    pub(crate) async fn dial(
        spec: &BackendSpec,
        variant: &LoginVariant,
        peer: Option<SocketAddr>,
    ) -> Result<(Self, Vec<u8>), ConnectCause> {
        let protocol = spec.kind.protocol();
        let host_port = match &spec.address {
            Address::Tcp(host_port) => host_port,
            Address::Unix(path) => {
                let connected = UnixStream::connect(protocol.socket_path(path)).await;
                return Ok((Self::Unix(connected.map_err(ConnectCause::Dial)?), Vec::new()));
            }
        };
        let socket = dial(host_port, peer, spec.pool.peer_timeout).await?;
        let Some(tls) = &spec.tls else { return Ok((Self::Tcp(socket), Vec::new())) };
        let (stream, greeting) = tls.begin(protocol, socket, variant).await?;
        Ok((Self::Tls(Box::new(stream)), greeting))
    }

    /// The server that it leads to, if that is over TCP.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Tls(stream) => stream.socket().peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Whether no network sees the bytes in the clear.
    pub(crate) fn is_private(&self) -> bool {
        matches!(self, Self::Tls(_) | Self::Unix(_))
    }

    /// Whether a network has seen the bytes in the clear, as far as the address tells.
    pub(crate) fn is_exposed(&self) -> bool {
        !self.is_private() && self.peer().is_some_and(|peer| !peer.ip().to_canonical().is_loopback())
    }

    /// What a login can be bound to, so that an attacker in between cannot pass it on (RFC 5929).
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Tls(stream) => tls::end_point(stream),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// Checks, without blocking and without reading bytes that belong to the next owner, whether the idle connection can
    /// be handed over.
    pub(crate) fn is_quiet(&mut self) -> Result<(), DiscardReason> {
        match self {
            Self::Tls(stream) => stream.is_quiet(),
            Self::Tcp(_) | Self::Unix(_) => is_quiet(self),
        }
    }

    /// Pending as long as the idle connection is good; wakes `cx` when it no longer is. Knows what the reactor has
    /// noticed; [`Stream::is_quiet`] asks the socket.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<DiscardReason> {
        match self {
            Self::Tls(stream) => stream.poll_end(cx),
            Self::Tcp(stream) => poll_end(
                || stream.poll_read_ready(cx),
                || stream.try_io(Interest::READABLE, || end(is_quiet(&*stream))),
            ),
            Self::Unix(stream) => poll_end(
                || stream.poll_read_ready(cx),
                || stream.try_io(Interest::READABLE, || end(is_quiet(&*stream))),
            ),
        }
    }

    /// Closes the connection, after `message` if the socket takes that at once.
    pub(crate) fn terminate(mut self, message: &[u8]) {
        match &mut self {
            Self::Tls(stream) => stream.send_termination(message),
            Self::Tcp(_) | Self::Unix(_) => send_termination(&self, message),
        }
    }

    /// What the receiver reads and writes: the socket itself, out of the reactor, or the near end of a relay into the
    /// TLS session, which runs on `data` and keeps `place`. It is non-blocking.
    pub(crate) fn into_fd(self, data: &Handle, place: impl Send + 'static) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(stream) => stream.into_std().map(OwnedFd::from),
            Self::Tls(stream) => relay::begin(*stream, data, place),
            Self::Unix(stream) => stream.into_std().map(OwnedFd::from),
        }
    }

    /// The socket out of the reactor, with the TLS session if there is one that can be handed over. Otherwise what
    /// [`Stream::into_fd`] gives, and the reason.
    pub(crate) fn hand_over(
        self,
        data: &Handle,
        place: impl Send + 'static,
        to_kernel: bool,
    ) -> io::Result<StreamHandOver> {
        let Self::Tls(mut stream) = self else {
            return self.into_fd(data, place).map(|fd| StreamHandOver { fd, tls: None, relayed: None });
        };
        // The extraction would silently lose buffered bytes: there are none, and nothing runs between check and extraction.
        if let Err(reason) = stream.is_quiet() {
            return Err(io::Error::other(format!("the session is not quiet: {}", reason.as_str())));
        }
        match stream.check_hand_over() {
            Ok(()) => {
                let (fd, session, kept) = stream.hand_over(to_kernel)?;
                Ok(StreamHandOver { fd, tls: Some((session, kept)), relayed: None })
            }
            Err(reason) => {
                let fd = relay::begin(*stream, data, place)?;
                Ok(StreamHandOver { fd, tls: None, relayed: Some(reason) })
            }
        }
    }
}

/// What comes of [`Stream::hand_over`].
pub(crate) struct StreamHandOver {
    pub(crate) fd: OwnedFd,
    /// For the function, and for the agent.
    pub(crate) tls: Option<(TlsSession, RetainedSecrets)>,
    /// Why the agent keeps the session.
    pub(crate) relayed: Option<NoHandOver>,
}

/// Calls `look` whenever the reactor reports readiness, until it finds something.
pub(super) fn poll_end(
    mut ready: impl FnMut() -> Poll<io::Result<()>>,
    mut look: impl FnMut() -> io::Result<DiscardReason>,
) -> Poll<DiscardReason> {
    loop {
        if ready!(ready()).is_err() {
            return Poll::Ready(DiscardReason::SocketError);
        }
        if let Ok(reason) = look() {
            return Poll::Ready(reason);
        }
    }
}

/// "Would block" makes the reactor forget a readiness without bytes.
pub(super) fn end(quiet: Result<(), DiscardReason>) -> io::Result<DiscardReason> {
    quiet.map_or_else(Ok, |()| Err(io::ErrorKind::WouldBlock.into()))
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.socket().as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            // Sockets have no buffer of their own to flush.
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
