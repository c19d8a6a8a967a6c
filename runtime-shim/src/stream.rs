//! The plaintext stream of a backend connection, over TCP, a unix socket or TLS.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

#[cfg(feature = "tls")]
use headstart_wire::TlsSession;
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::net::{TcpStream, UnixStream};

#[cfg(feature = "tls")]
use crate::tls::{KernelStream, KeyUpdates, UserTlsStream};

/// A backend connection, from [`Backend::stream`](crate::Backend::stream). Flush it to send at once, and shut it down to
/// end a TLS session properly.
#[derive(Debug)]
pub struct BackendStream(StreamKind);

#[derive(Debug)]
enum StreamKind {
    Tcp(TcpStream),
    Unix(UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<UserTlsStream>),
    #[cfg(feature = "tls")]
    KernelTls(Box<KernelStream>),
}

impl BackendStream {
    pub(crate) fn tcp(stream: TcpStream) -> Self {
        Self(StreamKind::Tcp(stream))
    }

    /// A TCP or unix socket.
    pub(crate) fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let address: SockaddrStorage = getsockname(socket.as_raw_fd())?;
        if address.family() == Some(AddressFamily::Unix) {
            let stream = std::os::unix::net::UnixStream::from(socket);
            stream.set_nonblocking(true)?;
            return Ok(Self(StreamKind::Unix(UnixStream::from_std(stream)?)));
        }
        Ok(Self::tcp(adopt_tcp(socket)?))
    }

    /// A socket with a TLS session that the agent began.
    #[cfg(feature = "tls")]
    pub(crate) fn tls(socket: OwnedFd, session: &TlsSession, later: KeyUpdates) -> io::Result<Self> {
        let (socket, suite) = (adopt_tcp(socket)?, session.suite);
        Ok(Self(match &session.keys {
            Some(first) => StreamKind::Tls(Box::new(UserTlsStream::new(socket, suite, first, later)?)),
            None => StreamKind::KernelTls(Box::new(KernelStream::new(socket, suite, later)?)),
        }))
    }

    /// One end of a socket pair; a task relays between the other end and this stream.
    pub(crate) fn relay(mut self) -> io::Result<OwnedFd> {
        let (mut near, far) = UnixStream::pair()?;
        tokio::spawn(async move {
            // When one end closes or fails, both are closed.
            let _ = copy_bidirectional(&mut near, &mut self).await;
        });
        far.into_std().map(OwnedFd::from)
    }
}

fn adopt_tcp(socket: OwnedFd) -> io::Result<TcpStream> {
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().0 {
            StreamKind::Tcp($stream) => $call,
            StreamKind::Unix($stream) => $call,
            #[cfg(feature = "tls")]
            StreamKind::Tls($stream) => $call,
            #[cfg(feature = "tls")]
            StreamKind::KernelTls($stream) => $call,
        }
    };
}

impl AsyncRead for BackendStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for BackendStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
