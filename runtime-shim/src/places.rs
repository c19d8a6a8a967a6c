//! How many client connections are open, and whether one more may be accepted.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use headstart_wire::Activity;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::now_ns;

/// The places of an instance.
#[derive(Debug)]
pub(crate) struct Places {
    /// What the agent sees of it.
    page: Option<Activity>,
    /// As many as the agent allows.
    concurrency: Option<u32>,
    /// Those who wait are woken when a place gets free or the last is taken, and not for each connection.
    taken: watch::Sender<Taken>,
}

#[derive(Debug, Clone, Copy)]
struct Taken {
    open: usize,
    /// Where accepting stops.
    limit: usize,
    /// Nothing is accepted: the instance is about to be frozen, or was.
    paused: bool,
    /// Connections are counted, so that it is known when there are none.
    counting: bool,
}

impl Taken {
    fn has_room(self) -> bool {
        !self.paused && self.open < self.limit
    }
}

/// Counts as one open client connection until it is dropped; from [`Function::track`](crate::Function::track).
#[derive(Debug)]
pub struct Open(Arc<Places>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(|taken| taken.open -= 1);
        if let Some(page) = &self.0.page {
            page.closed(now_ns());
        }
    }
}

impl Places {
    pub(crate) fn new(page: Option<Activity>, concurrency: Option<u32>) -> Arc<Self> {
        let taken = Taken { open: 0, limit: usize::MAX, paused: false, counting: false };
        Arc::new(Self { page, concurrency, taken: watch::Sender::new(taken) })
    }

    pub(crate) fn concurrency(&self) -> Option<u32> {
        self.concurrency
    }

    /// From here on every connection is counted.
    pub(crate) fn count(&self) {
        self.change(|taken| taken.counting = true);
        if let Some(page) = &self.page {
            page.counts();
        }
    }

    /// Accepting stops at `most`, or before, at what the agent allows.
    pub(crate) fn limit(&self, most: usize) {
        let allowed =
            self.concurrency.map_or(usize::MAX, |places| usize::try_from(places).unwrap_or(usize::MAX));
        self.change(|taken| taken.limit = most.min(allowed).max(1));
    }

    /// One more connection is open, whatever the limit.
    pub(crate) fn open(self: &Arc<Self>) -> Open {
        self.change(|taken| taken.open += 1);
        self.opened()
    }

    fn opened(self: &Arc<Self>) -> Open {
        if let Some(page) = &self.page {
            page.opened(now_ns());
        }
        Open(Arc::clone(self))
    }

    /// Accepts a connection as soon as there is one and a place for it.
    pub(crate) async fn accept(
        self: &Arc<Self>,
        listener: &TcpListener,
    ) -> io::Result<(TcpStream, SocketAddr, Open)> {
        loop {
            // Looking, accepting and counting are one step: a pause comes before or after it.
            let accepted = poll_fn(|cx| {
                let mut accepted = Poll::Ready(None);
                self.change(|taken| {
                    if taken.has_room() {
                        accepted = listener.poll_accept(cx).map(Some);
                        taken.open += usize::from(matches!(accepted, Poll::Ready(Some(Ok(_)))));
                    }
                });
                accepted
            });
            match accepted.await {
                Some(Ok((stream, peer))) => return Ok((stream, peer, self.opened())),
                Some(Err(error)) => return Err(error),
                None => self.wait_for(|taken| taken.has_room()).await,
            }
        }
    }

    /// Resolves when the last place that the agent allows is taken; never where it allows any number.
    #[cfg(any(feature = "http", test))]
    pub(crate) async fn full(&self) {
        if self.concurrency.is_none() {
            std::future::pending::<()>().await;
        }
        self.wait_for(|taken| taken.open >= taken.limit).await;
    }

    /// Whether that is so now.
    #[cfg(feature = "http")]
    pub(crate) fn is_full(&self) -> bool {
        let taken = self.taken.borrow();
        self.concurrency.is_some() && taken.open >= taken.limit
    }

    /// Accepts nothing from now on. False, and nothing changes, when a connection is open, or may be.
    pub(crate) fn pause(&self) -> bool {
        let mut quiet = false;
        self.change(|taken| {
            quiet = taken.counting && taken.open == 0;
            taken.paused |= quiet;
        });
        quiet
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.taken.borrow().paused
    }

    /// Accepts again.
    pub(crate) fn resume(&self) {
        self.change(|taken| taken.paused = false);
    }

    async fn wait_for(&self, wanted: impl FnMut(&Taken) -> bool) {
        // Cannot fail: the sender is ours.
        let _ = self.taken.subscribe().wait_for(wanted).await;
    }

    fn change(&self, change: impl FnOnce(&mut Taken)) {
        self.taken.send_if_modified(|taken| {
            let before = taken.has_room();
            change(taken);
            before != taken.has_room()
        });
    }
}

#[cfg(test)]
mod tests;
