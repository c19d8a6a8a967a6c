//! The accept queue of a listener, watched.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::task::JoinHandle;

use crate::fd;
use crate::measure::now_ns;

/// What there is to know of an accept queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueEvent {
    /// Connections have come; the time in nanoseconds of `CLOCK_MONOTONIC`.
    Came(u64),
    /// The socket does not listen any more: a process that shares it has ended that, for all. This is the last event.
    Ended,
}

/// Reports connections that come into the accept queue of one listener.
pub struct QueueWatch {
    listener: Arc<OwnedFd>,
    task: Option<JoinHandle<()>>,
}

impl QueueWatch {
    /// A watch that reports nothing yet.
    #[must_use]
    pub fn new(listener: Arc<OwnedFd>) -> Self {
        Self { listener, task: None }
    }

    /// From now on runs `found` whenever connections have come, but not again before `pause` is over. Those that wait
    /// already are reported first.
    pub fn arm<F>(&mut self, pause: Duration, mut found: impl FnMut(QueueEvent) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        self.disarm();
        let listener = Arc::clone(&self.listener);
        self.task = Some(tokio::spawn(async move {
            // The reactor polls the listener on the edge, and without EPOLLEXCLUSIVE: instances on the same
            // socket are woken too.
            let register = || fd::register(Arc::clone(&listener), Interest::READABLE);
            let watched: io::Result<()> = async {
                let mut queue = register()?;
                loop {
                    queue.readable().await?.clear_ready();
                    let came_ns = now_ns();
                    if !is_listening(queue.get_ref()) {
                        found(QueueEvent::Ended).await;
                        return Ok(());
                    }
                    found(QueueEvent::Came(came_ns)).await;
                    if !pause.is_zero() {
                        // Registered, it would wake this thread for each connection that an instance accepts.
                        drop(queue);
                        tokio::time::sleep(pause).await;
                        queue = register()?;
                    }
                }
            }
            .await;
            if let Err(error) = watched {
                tracing::error!("a listener cannot be watched: {error}");
            }
        }));
    }

    /// Stops reporting.
    pub fn disarm(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Whether clients can connect. Every holder of the socket can end that, with shutdown(2) or connect(2).
#[must_use]
pub fn is_listening(listener: &OwnedFd) -> bool {
    SockRef::from(listener).is_listener().unwrap_or(false)
}

impl Drop for QueueWatch {
    fn drop(&mut self) {
        self.disarm();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::listen;
    use socket2::Socket;
    use std::net::{Ipv4Addr, SocketAddr, TcpStream};
    use tokio::sync::mpsc;

    fn local() -> (Arc<OwnedFd>, SocketAddr) {
        let fd = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 16).unwrap();
        let socket = Socket::from(fd);
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (Arc::new(socket.into()), address)
    }

    /// The times that an armed watch tells.
    fn armed(watch: &mut QueueWatch, pause: Duration) -> mpsc::UnboundedReceiver<u64> {
        let (sender, found) = mpsc::unbounded_channel();
        watch.arm(pause, move |event| {
            if let QueueEvent::Came(at_ns) = event {
                sender.send(at_ns).unwrap();
            }
            async {}
        });
        found
    }

    #[tokio::test]
    async fn a_waiting_connection_is_told_of_also_when_it_came_first_and_each_later_one() {
        let (listener, address) = local();
        let _early = TcpStream::connect(address).unwrap();
        let mut watch = QueueWatch::new(listener);
        for _ in 0..2 {
            let mut found = armed(&mut watch, Duration::ZERO);
            found.recv().await.unwrap();
            for _ in 0..3 {
                let before = now_ns();
                let _late = TcpStream::connect(address).unwrap();
                assert!(found.recv().await.unwrap() >= before);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_watch_pauses_and_loses_nothing() {
        let (listener, address) = local();
        let mut watch = QueueWatch::new(listener);
        let mut found = armed(&mut watch, Duration::from_secs(1));
        let began = tokio::time::Instant::now();
        for seconds in 0..3 {
            let _late = TcpStream::connect(address).unwrap();
            found.recv().await.unwrap();
            assert_eq!(began.elapsed().as_secs(), seconds);
        }
    }

    /// Every holder of the socket can do this.
    #[tokio::test]
    async fn a_listener_that_is_ended_is_told_once() {
        let shut = |listener: &OwnedFd| SockRef::from(listener).shutdown(std::net::Shutdown::Both).unwrap();
        let disconnect = |listener: &OwnedFd| rustix::net::connect_unspec(listener).unwrap();
        for end in [shut as fn(&OwnedFd), disconnect] {
            for early in [true, false] {
                let (listener, _) = local();
                let mut watch = QueueWatch::new(Arc::clone(&listener));
                if early {
                    end(&listener);
                }
                let (sender, mut events) = mpsc::unbounded_channel();
                watch.arm(Duration::ZERO, move |event| {
                    sender.send(event).unwrap();
                    async {}
                });
                if !early {
                    tokio::task::yield_now().await;
                    end(&listener);
                }
                assert_eq!(events.recv().await, Some(QueueEvent::Ended));
                assert_eq!(events.recv().await, None, "there is no more to say");
                assert!(!is_listening(&listener));
            }
        }
    }

    #[tokio::test]
    async fn a_disarmed_watch_says_nothing() {
        let (listener, address) = local();
        let mut watch = QueueWatch::new(listener);
        let mut found = armed(&mut watch, Duration::ZERO);
        watch.disarm();
        let _late = TcpStream::connect(address).unwrap();
        assert!(found.recv().await.is_none(), "the sender is dropped unused");
    }
}
