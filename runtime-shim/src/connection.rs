//! A client's connection, which notices its first response.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::places::Open;
use crate::{Function, now_ns};

/// A client's TCP connection, as [`Function::serve_connections`] hands it out.
///
/// It reads and writes like the `TcpStream` inside. Until the first response of
/// the instance's life was written it also watches for that one; afterwards it
/// costs one check per write. Until it is dropped the instance counts as busy.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    first: Option<First>,
    open: Open,
}

/// A connection on which the first response may be written.
#[derive(Debug)]
struct First {
    function: Function,
    accept_ns: u64,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, peer: SocketAddr, open: Open, function: &Function) -> Self {
        // Small responses leave at once; a socket that refuses is only slower.
        let _ = stream.set_nodelay(true);
        let first = || First { function: function.clone(), accept_ns: now_ns() };
        Self { stream, peer, first: (!function.was_served()).then(first), open }
    }

    /// The client's address.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// The stream inside, for its options.
    #[must_use]
    pub fn get_ref(&self) -> &TcpStream {
        &self.stream
    }

    /// The bare stream, and the guard that says that it is open: keep it as long. The first response is then
    /// yours to report with [`Function::served`].
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, Open) {
        (self.stream, self.open)
    }

    #[cold]
    fn wrote(&mut self, bytes: usize) {
        if bytes > 0
            && let Some(first) = self.first.take()
        {
            first.function.served(first.accept_ns, now_ns());
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        if self.first.is_some() {
            self.wrote(bytes);
        }
        Poll::Ready(Ok(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        if self.first.is_some() {
            self.wrote(bytes);
        }
        Poll::Ready(Ok(bytes))
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
