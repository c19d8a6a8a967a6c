//! The transports: TCP and unix sockets behind one type.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::{ConnectCause, Protocol, is_quiet};
use crate::{Address, DiscardReason};

/// First keep-alive probe after this much silence.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Pause between probes; with three lost ones a dead peer is noticed after a minute.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// A connected, non-blocking, close-on-exec stream socket.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(crate) async fn dial(address: &Address, protocol: &dyn Protocol) -> Result<Self, ConnectCause> {
        match address {
            Address::Tcp(host_port) => dial_tcp(host_port).await.map(Self::Tcp),
            Address::Unix(path) => UnixStream::connect(protocol.socket_path(path))
                .await
                .map(Self::Unix)
                .map_err(ConnectCause::Dial),
        }
    }

    /// Whether nobody on a network can listen in.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// Pending as long as the idle connection is good, and then wakes `cx`. Sees what the reactor has
    /// seen; [`is_quiet`] asks the socket.
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<DiscardReason> {
        loop {
            let readiness = match self {
                Self::Tcp(stream) => stream.poll_read_ready(cx),
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
                Self::Unix(stream) => stream.try_io(Interest::READABLE, look),
            };
            if let Ok(reason) = end {
                return Poll::Ready(reason);
            }
        }
    }

    /// Takes the socket out of the reactor. It stays non-blocking.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(stream) => stream.into_std().map(OwnedFd::from),
            Self::Unix(stream) => stream.into_std().map(OwnedFd::from),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
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
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // sockets have no buffer of their own to flush
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
