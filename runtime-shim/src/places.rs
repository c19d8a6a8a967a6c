//! Counts open client connections, and decides whether the instance may accept another.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use headstart_wire::Activity;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::now_ns;

/// The places for connections of an instance.
#[derive(Debug)]
pub(crate) struct Places {
    /// The shared memory in which the agent reads the count.
    page: Option<Activity>,
    /// The agent's limit; none for no limit.
    concurrency: Option<u32>,
    /// Notifies waiting tasks when a place becomes free or the last one is taken, not for each connection.
    count: watch::Sender<PlaceCount>,
}

#[derive(Debug, Clone, Copy)]
struct PlaceCount {
    open: usize,
    /// The number at which accepting stops.
    limit: usize,
    /// The instance does not accept, because of a freeze.
    paused: bool,
    /// Every connection is counted, so that 0 means none.
    counting: bool,
}

impl PlaceCount {
    fn has_room(self) -> bool {
        !self.paused && self.open < self.limit
    }
}

/// Counts as one open client connection until it is dropped; from [`Function::track`](crate::Function::track).
#[derive(Debug)]
pub struct Open(Arc<Places>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(|count| count.open -= 1);
        if let Some(page) = &self.0.page {
            page.closed(now_ns());
        }
    }
}

impl Places {
    pub(crate) fn new(page: Option<Activity>, concurrency: Option<u32>) -> Arc<Self> {
        let count = PlaceCount { open: 0, limit: usize::MAX, paused: false, counting: false };
        Arc::new(Self { page, concurrency, count: watch::Sender::new(count) })
    }

    pub(crate) fn concurrency(&self) -> Option<u32> {
        self.concurrency
    }

    /// Reports to the agent that every connection is counted from now on.
    pub(crate) fn count(&self) {
        self.change(|count| count.counting = true);
        if let Some(page) = &self.page {
            page.counts();
        }
    }

    /// Sets the number at which accepting stops: `most`, or the agent's limit if that is lower.
    pub(crate) fn limit(&self, most: usize) {
        let allowed =
            self.concurrency.map_or(usize::MAX, |places| usize::try_from(places).unwrap_or(usize::MAX));
        self.change(|count| count.limit = most.min(allowed).max(1));
    }

    /// Counts one more open connection, without regard to the limit.
    pub(crate) fn open(self: &Arc<Self>) -> Open {
        self.change(|count| count.open += 1);
        self.opened()
    }

    fn opened(self: &Arc<Self>) -> Open {
        if let Some(page) = &self.page {
            page.opened(now_ns());
        }
        Open(Arc::clone(self))
    }

    /// Accepts a connection as soon as there are a connection and a free place.
    pub(crate) async fn accept(
        self: &Arc<Self>,
        listener: &TcpListener,
    ) -> io::Result<(TcpStream, SocketAddr, Open)> {
        loop {
            // The check, the accept and the count are one step, so that a pause comes before or after it.
            let accepted = poll_fn(|cx| {
                let mut accepted = Poll::Ready(None);
                self.change(|count| {
                    if count.has_room() {
                        accepted = listener.poll_accept(cx).map(Some);
                        count.open += usize::from(matches!(accepted, Poll::Ready(Some(Ok(_)))));
                    }
                });
                accepted
            });
            match accepted.await {
                Some(Ok((stream, peer))) => return Ok((stream, peer, self.opened())),
                Some(Err(error)) => return Err(error),
                None => self.wait_for(|count| count.has_room()).await,
            }
        }
    }

    /// Resolves when the agent's limit is reached; never without a limit.
    #[cfg(any(feature = "http", test))]
    pub(crate) async fn full(&self) {
        if self.concurrency.is_none() {
            std::future::pending::<()>().await;
        }
        self.wait_for(|count| count.open >= count.limit).await;
    }

    /// Whether the agent's limit is reached.
    #[cfg(feature = "http")]
    pub(crate) fn is_full(&self) -> bool {
        let count = self.count.borrow();
        self.concurrency.is_some() && count.open >= count.limit
    }

    /// Stops accepting. If a connection is open, or may be, it changes nothing and returns false.
    pub(crate) fn pause(&self) -> bool {
        let mut quiet = false;
        self.change(|count| {
            quiet = count.counting && count.open == 0;
            count.paused |= quiet;
        });
        quiet
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.count.borrow().paused
    }

    /// Accepts again.
    pub(crate) fn resume(&self) {
        self.change(|count| count.paused = false);
    }

    async fn wait_for(&self, wanted: impl FnMut(&PlaceCount) -> bool) {
        // This cannot fail, because `self` owns the sender.
        let _ = self.count.subscribe().wait_for(wanted).await;
    }

    fn change(&self, change: impl FnOnce(&mut PlaceCount)) {
        self.count.send_if_modified(|count| {
            let before = count.has_room();
            change(count);
            before != count.has_room()
        });
    }
}

#[cfg(test)]
mod tests;
