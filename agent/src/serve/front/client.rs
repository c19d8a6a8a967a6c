//! The socket of a client, and how long nothing has happened on it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// When a byte last came from a client or went to it.
#[derive(Clone)]
pub(super) struct LastByte {
    begun: Instant,
    /// Milliseconds after `begun`.
    at_ms: Arc<AtomicU64>,
}

impl LastByte {
    /// Now.
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), at_ms: Arc::default() }
    }

    pub(super) fn touch(&self) {
        let now_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Returns when nothing has happened for this long.
    pub(super) async fn idle_for(&self, limit: Duration) {
        loop {
            let due = self.begun + Duration::from_millis(self.at_ms.load(Ordering::Relaxed)) + limit;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// A client's socket.
pub(super) struct ClientStream {
    socket: TcpStream,
    last_byte: LastByte,
}

impl ClientStream {
    /// Its bytes are noted in `last_byte`.
    pub(super) fn new(socket: TcpStream, last_byte: LastByte) -> Self {
        Self { socket, last_byte }
    }

    /// The socket itself, whose bytes are not noted.
    pub(super) fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// The end of the connection that is the agent's.
    pub(super) fn server(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    fn noted<T>(&self, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Ok(_)) = &progress {
            self.last_byte.touch();
        }
        progress
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(cx, to);
        self.noted(read)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, from);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, from);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_byte_puts_the_end_off() {
        let last = LastByte::new();
        let begun = Instant::now();
        let limit = Duration::from_secs(10);
        let touch = async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            last.touch();
        };
        tokio::join!(touch, last.idle_for(limit));
        assert_eq!(begun.elapsed().as_secs(), 17);
    }
}
