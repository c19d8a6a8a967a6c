//! `serve`: the listening sockets.
//!
//! The agent binds each function's port once and keeps it; instances get a
//! descriptor of the same socket and accept by themselves. While no instance
//! accepts, early connections wait in the kernel's accept queue (listen(2)), so
//! the first request cannot be lost, and a readable listener is demand: this is
//! the sensor that needs no eBPF.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::task::JoinHandle;

use crate::fd;
use crate::measure::now_ns;
use crate::syn::SynError;

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
    /// It must be closed to strangers, and cannot.
    #[error(transparent)]
    Guard(#[from] SynError),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Io(SocketAddr, io::Error),
}

/// Opens a non-blocking listening socket. `[::]` takes IPv4 too.
///
/// # Errors
/// See [`ListenError`].
pub fn listen(address: SocketAddr, backlog: u16) -> Result<OwnedFd, ListenError> {
    listen_behind(address, backlog, |_| Ok(()))
}

/// As [`listen`], with a filter that `guard` puts on the socket before anybody can connect.
///
/// # Errors
/// See [`ListenError`].
pub fn listen_behind(
    address: SocketAddr,
    backlog: u16,
    guard: impl FnOnce(BorrowedFd<'_>) -> Result<(), SynError>,
) -> Result<OwnedFd, ListenError> {
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        io::ErrorKind::AddrNotAvailable => ListenError::NoSuchAddress(address),
        io::ErrorKind::PermissionDenied => ListenError::Privileged(address),
        _ => ListenError::Io(address, error),
    };
    let socket = bind(address).map_err(refused)?;
    guard(socket.as_fd())?;
    answer(&socket, backlog).map_err(refused)?;
    Ok(socket.into())
}

/// Where a listener hides that only the socket lookup leads to: a free port of the loopback address. For IPv6
/// it is that of IPv4, mapped: a socket bound to `[::1]` would be given no IPv4 connections, this one gets both.
#[must_use]
pub fn hidden(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
        SocketAddr::V6(_) => (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0).into(),
    }
}

/// Takes over a listening socket of an earlier agent, with the connections that
/// wait in it, and makes it as [`listen`] would have.
///
/// # Errors
/// [`ListenError::Io`] when the kernel refuses one of its options.
pub fn adopt(listener: OwnedFd, address: SocketAddr, backlog: u16) -> Result<OwnedFd, ListenError> {
    let socket = Socket::from(listener);
    socket
        .set_nonblocking(true)
        .and_then(|()| answer(&socket, backlog))
        .map_err(|error| ListenError::Io(address, error))?;
    Ok(socket.into())
}

/// Whether nobody holds this address: [`listen`] would not find it in use.
#[must_use]
pub fn is_free(address: SocketAddr) -> bool {
    !matches!(bind(address).map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse))
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of an earlier agent in TIME_WAIT must not keep the port.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// For a socket that listens already, a new backlog.
fn answer(socket: &Socket, backlog: u16) -> io::Result<()> {
    // Accepted sockets inherit this: a first response is small and must not wait for an ACK.
    socket.set_tcp_nodelay(true)?;
    socket.listen(i32::from(backlog))
}

/// Tells of connections that come into the accept queue of one listener.
pub struct Watch {
    listener: Arc<OwnedFd>,
    task: Option<JoinHandle<()>>,
}

impl Watch {
    /// A watch that tells of nothing yet.
    #[must_use]
    pub fn new(listener: Arc<OwnedFd>) -> Self {
        Self { listener, task: None }
    }

    /// From now on runs `found` with the time whenever connections have come, but not again before `pause` is
    /// over. Those that wait already are told of first.
    pub fn arm<F>(&mut self, pause: Duration, mut found: impl FnMut(u64) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        self.disarm();
        let listener = Arc::clone(&self.listener);
        self.task = Some(tokio::spawn(async move {
            let told: io::Result<Infallible> = async {
                // The reactor polls the listener on the edge, and without EPOLLEXCLUSIVE: instances on the same
                // socket are woken too.
                let watched = fd::register(listener, Interest::READABLE)?;
                loop {
                    watched.readable().await?.clear_ready();
                    let came_ns = now_ns();
                    found(came_ns).await;
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
            }
            .await;
            let Err(error) = told;
            tracing::error!("a listener cannot be watched: {error}");
        }));
    }

    /// Stops telling.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use tokio::sync::mpsc;

    fn local() -> (Arc<OwnedFd>, SocketAddr) {
        let fd = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 16).unwrap();
        let socket = Socket::from(fd);
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (Arc::new(socket.into()), address)
    }

    /// The times that an armed watch tells.
    fn armed(watch: &mut Watch, pause: Duration) -> mpsc::UnboundedReceiver<u64> {
        let (sender, found) = mpsc::unbounded_channel();
        watch.arm(pause, move |ns| {
            let told = sender.send(ns);
            async move { told.unwrap() }
        });
        found
    }

    #[tokio::test]
    async fn a_waiting_connection_is_told_of_also_when_it_came_first_and_each_later_one() {
        let (listener, address) = local();
        let _early = TcpStream::connect(address).unwrap();
        let mut watch = Watch::new(listener);
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
        let mut watch = Watch::new(listener);
        let mut found = armed(&mut watch, Duration::from_secs(1));
        let began = tokio::time::Instant::now();
        for seconds in 0..3 {
            let _late = TcpStream::connect(address).unwrap();
            found.recv().await.unwrap();
            assert_eq!(began.elapsed().as_secs(), seconds);
        }
    }

    #[tokio::test]
    async fn a_disarmed_watch_says_nothing() {
        let (listener, address) = local();
        let mut watch = Watch::new(listener);
        let mut found = armed(&mut watch, Duration::ZERO);
        watch.disarm();
        let _late = TcpStream::connect(address).unwrap();
        assert!(found.recv().await.is_none(), "the sender is dropped unused");
    }

    #[test]
    fn an_adopted_listener_keeps_its_connections_and_gets_the_options() {
        let (listener, address) = local();
        let _waiting = TcpStream::connect(address).unwrap();
        let plain = listener.try_clone().unwrap();
        Socket::from(plain.try_clone().unwrap()).set_nonblocking(false).unwrap();
        let adopted = Socket::from(adopt(plain, address, 7).unwrap());
        assert!(adopted.nonblocking().unwrap() && adopted.tcp_nodelay().unwrap());
        adopted.accept().unwrap();
    }

    #[test]
    fn an_address_is_free_when_nobody_holds_it() {
        let (listener, address) = local();
        assert!(!is_free(address));
        drop(listener);
        assert!(is_free(address) && is_free(address), "asking holds nothing");
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
