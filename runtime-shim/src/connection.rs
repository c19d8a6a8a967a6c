//! A client's connection, which reports its first response.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::places::Open;
use crate::{Function, now_ns};

/// A client's TCP connection, from [`Function::serve_connections`].
///
/// It reads and writes like the `TcpStream` inside. It also reports the instance's
/// first response; after that it costs one check per write. The instance counts as
/// busy until the connection is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    first: Option<FirstResponse>,
    open: Open,
}

/// State of a connection that may write the instance's first response.
#[derive(Debug)]
pub(crate) struct FirstResponse {
    function: Function,
    accept_ns: u64,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, peer: SocketAddr, open: Open, function: &Function) -> Self {
        // Small responses leave at once. If the socket refuses, it is only slower.
        let _ = stream.set_nodelay(true);
        let first = || FirstResponse { function: function.clone(), accept_ns: now_ns() };
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

    /// The bare stream, and the guard that counts it as open: keep the guard as long as the stream. Report the first
    /// response with [`Function::served`].
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, Open) {
        (self.stream, self.open)
    }

    /// Leaves it to the caller to report the first response, if nobody has done so yet.
    #[cfg(feature = "http2")]
    pub(crate) fn take_first(&mut self) -> Option<FirstResponse> {
        self.first.take()
    }

    #[cold]
    fn wrote(&mut self, bytes: usize) {
        if bytes > 0
            && let Some(first) = self.first.take()
        {
            first.report();
        }
    }
}

impl FirstResponse {
    pub(crate) fn report(&self) {
        self.function.served(self.accept_ns, now_ns());
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
