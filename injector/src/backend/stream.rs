//! The transports: TCP, TLS over it, and unix sockets, behind one type.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::client::TlsStream;

use super::{ConnectCause, is_quiet, relay, tls};
use crate::{Address, BackendSpec, DiscardReason};

/// First keep-alive probe after this much silence.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Pause between probes; with three lost ones a dead peer is noticed after a minute.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// A connected, non-blocking, close-on-exec stream socket.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Stream {
    /// Connects, up to the end of the TLS handshake where the backend has TLS.
    pub(crate) async fn dial(spec: &BackendSpec) -> Result<Self, ConnectCause> {
        let protocol = spec.kind.protocol();
        match (&spec.address, &spec.tls) {
            (Address::Tcp(host_port), None) => dial_tcp(host_port).await.map(Self::Tcp),
            (Address::Tcp(host_port), Some(tls)) => {
                let mut stream = dial_tcp(host_port).await?;
                protocol.start_tls(&mut stream).await?;
                Ok(Self::Tls(Box::new(tls.handshake(stream).await?)))
            }
            (Address::Unix(path), _) => UnixStream::connect(protocol.socket_path(path))
                .await
                .map(Self::Unix)
                .map_err(ConnectCause::Dial),
        }
    }

    /// A socket that was taken out of the reactor with [`Stream::into_fd`].
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if SockRef::from(&fd).domain()? == Domain::UNIX {
            return UnixStream::from_std(fd.into()).map(Self::Unix);
        }
        TcpStream::from_std(fd.into()).map(Self::Tcp)
    }

    /// Whether nobody on a network can listen in.
    pub(crate) fn is_private(&self) -> bool {
        matches!(self, Self::Tls(_) | Self::Unix(_))
    }

    /// What a login can be bound to, so that nobody can pass it on (RFC 5929).
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Tls(stream) => tls::end_point(stream),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// Pending as long as the idle connection is good, and then wakes `cx`. Sees what the reactor has
    /// seen; [`is_quiet`] asks the socket.
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<DiscardReason> {
        loop {
            let readiness = match self {
                Self::Tcp(stream) => stream.poll_read_ready(cx),
                Self::Tls(stream) => stream.get_ref().0.poll_read_ready(cx),
                Self::Unix(stream) => stream.poll_read_ready(cx),
            };
            match readiness {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(DiscardReason::SocketError),
                Poll::Ready(Ok(())) => {}
            }
            // "Would block" makes the reactor forget a readiness that was none.
            let look = || is_quiet(self).map_or_else(Ok, |()| Err(io::ErrorKind::WouldBlock.into()));
            let end = match self {
                Self::Tcp(stream) => stream.try_io(Interest::READABLE, look),
                Self::Tls(stream) => stream.get_ref().0.try_io(Interest::READABLE, look),
                Self::Unix(stream) => stream.try_io(Interest::READABLE, look),
            };
            if let Ok(reason) = end {
                return Poll::Ready(reason);
            }
        }
    }

    /// What the receiver reads and writes: the socket itself, out of the reactor, or the near end of a relay into the
    /// TLS session. It is non-blocking.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(stream) => stream.into_std().map(OwnedFd::from),
            Self::Tls(stream) => relay::begin(*stream),
            Self::Unix(stream) => stream.into_std().map(OwnedFd::from),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.get_ref().0.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Tries the addresses in the resolver's order, and reports the last failure.
async fn dial_tcp(host_port: &str) -> Result<TcpStream, ConnectCause> {
    let mut failure = ConnectCause::Resolve(io::Error::from(io::ErrorKind::NotFound));
    for address in lookup_host(host_port).await.map_err(ConnectCause::Resolve)? {
        match TcpStream::connect(address).await {
            Ok(stream) => return tune(stream).map_err(ConnectCause::Dial),
            Err(error) => failure = ConnectCause::Dial(error),
        }
    }
    Err(failure)
}

fn tune(stream: TcpStream) -> io::Result<TcpStream> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    stream.set_nodelay(true)?;
    Ok(stream)
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
