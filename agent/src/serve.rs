//! `serve`: the listening sockets.
//!
//! The agent binds each function's port once and keeps it; instances get a
//! descriptor of the same socket and accept by themselves. While no instance
//! accepts, early connections wait in the kernel's accept queue (listen(2)), so
//! the first request cannot be lost, and a readable listener is demand: this is
//! the sensor that needs no eBPF.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::task::JoinHandle;

use crate::fd;
use crate::measure::now_ns;

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else has it.
    #[error("{0} is in use: stop what listens there (`ss -ltnp`), or choose another port")]
    InUse(SocketAddr),
    /// The address is not one of this machine's.
    #[error("{0} is not an address of this machine: use one that `ip address` shows, or 0.0.0.0")]
    NoSuchAddress(SocketAddr),
    /// A port below 1024 without the capability.
    #[error("{0} needs root or CAP_NET_BIND_SERVICE")]
    Privileged(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Io(SocketAddr, io::Error),
}

/// Opens a non-blocking listening socket. `[::]` takes IPv4 too.
///
/// # Errors
/// See [`ListenError`].
pub fn listen(address: SocketAddr, backlog: u16) -> Result<OwnedFd, ListenError> {
    bind(address, backlog).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        io::ErrorKind::AddrNotAvailable => ListenError::NoSuchAddress(address),
        io::ErrorKind::PermissionDenied => ListenError::Privileged(address),
        _ => ListenError::Io(address, error),
    })
}

fn bind(address: SocketAddr, backlog: u16) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of an earlier agent in TIME_WAIT must not keep the port.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Accepted sockets inherit this: a first response is small and must not wait for an ACK.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::from(backlog))?;
    Ok(socket.into())
}

/// Watches a listener until a connection waits in its accept queue, once.
pub struct Watch {
    listener: Arc<OwnedFd>,
    connected_ns: Arc<AtomicU64>,
    task: Option<JoinHandle<()>>,
}

impl Watch {
    /// A watch that is not armed.
    #[must_use]
    pub fn new(listener: Arc<OwnedFd>) -> Self {
        Self { listener, connected_ns: Arc::default(), task: None }
    }

    /// When the watch last found a waiting connection, in nanoseconds of
    /// `CLOCK_MONOTONIC`; 0 when it has not since it was armed.
    #[must_use]
    pub fn connected_ns(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.connected_ns)
    }

    /// Runs `found` with the time, as soon as the accept queue is not empty.
    pub fn arm<F>(&mut self, found: impl FnOnce(u64) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        self.disarm();
        self.connected_ns.store(0, Ordering::Relaxed);
        let (listener, connected_ns) = (Arc::clone(&self.listener), Arc::clone(&self.connected_ns));
        self.task = Some(tokio::spawn(async move {
            match readable(&listener).await {
                Ok(()) => {
                    let now_ns = now_ns();
                    connected_ns.store(now_ns, Ordering::Relaxed);
                    found(now_ns).await;
                }
                Err(error) => tracing::error!("a listener cannot be watched: {error}"),
            }
        }));
    }

    /// Stops watching: from now on an instance accepts.
    pub fn disarm(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// Waits for a connection in the accept queue. The duplicate gives the watch a
/// registration of its own, gone when it ends.
async fn readable(listener: &OwnedFd) -> io::Result<()> {
    let watched = fd::register(listener.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
    watched.readable().await?.retain_ready();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpStream};
    use tokio::sync::oneshot;

    fn local() -> (Arc<OwnedFd>, SocketAddr) {
        let fd = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 16).unwrap();
        let socket = Socket::from(fd);
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (Arc::new(socket.into()), address)
    }

    #[tokio::test]
    async fn a_waiting_connection_is_found_also_when_it_came_first() {
        let (listener, address) = local();
        let _early = TcpStream::connect(address).unwrap();
        let mut watch = Watch::new(listener);
        for _ in 0..2 {
            let (sender, found) = oneshot::channel();
            watch.arm(async move |ns| sender.send(ns).unwrap());
            let found = found.await.unwrap();
            assert_eq!(watch.connected_ns().load(Ordering::Relaxed), found);
        }
    }

    #[tokio::test]
    async fn a_disarmed_watch_says_nothing() {
        let (listener, address) = local();
        let mut watch = Watch::new(listener);
        let (sender, found) = oneshot::channel();
        watch.arm(async move |ns| sender.send(ns).unwrap());
        watch.disarm();
        let _late = TcpStream::connect(address).unwrap();
        assert!(found.await.is_err(), "the sender is dropped unused");
    }

    #[test]
    fn a_port_in_use_says_so() {
        let (_listener, address) = local();
        let error = listen(address, 16).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains(&address.to_string()), "{error}");
    }

    #[test]
    fn a_foreign_address_says_so() {
        let error = listen(SocketAddr::from(([192, 0, 2, 1], 8080)), 16).unwrap_err().to_string();
        assert!(error.contains("not an address of this machine"), "{error}");
    }
}
