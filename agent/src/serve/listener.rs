//! Listening sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::syn::SynError;

/// The first keep-alive probe to a client comes after this much silence.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Pause between two probes. A vanished client is noticed after two minutes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has it.
    #[error("{0} is in use: stop what listens there (`ss -ltnp`), or choose another port")]
    InUse(SocketAddr),
    /// The address is not one of this machine's.
    #[error("{0} is not an address of this machine: use one that `ip address` shows, or 0.0.0.0")]
    NoSuchAddress(SocketAddr),
    /// A port below 1024 without the capability.
    #[error("{0} needs root or CAP_NET_BIND_SERVICE")]
    Privileged(SocketAddr),
    /// It must be closed to unauthenticated clients, and cannot.
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

/// As [`listen`], with a filter that `guard` puts on the socket before any client can connect.
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

/// Prepares a socket that an instance has ended, or connected to something, for [`adopt`]: to bind a port below 1024 again
/// would need a capability that the agent has given up.
///
/// # Errors
/// When the socket is no longer bound to `address`.
pub(super) fn unconnect(ended: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    rustix::net::connect_unspec(ended)?;
    match SockRef::from(ended).local_addr()?.as_socket() {
        Some(bound) if bound == address => Ok(()),
        _ => Err(io::Error::other(format!("an instance has moved its listener away from {address}"))),
    }
}

/// Whether no process holds this address: [`listen`] would not find it in use.
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
    // Accepted sockets inherit these. A first response is small and must not wait for an ACK. A client that vanished
    // without a FIN would keep its instance awake for ever (tcp(7)).
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.listen(i32::from(backlog))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn local() -> (OwnedFd, SocketAddr) {
        let fd = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 16).unwrap();
        let socket = Socket::from(fd);
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket.into(), address)
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
    fn a_client_that_vanishes_is_noticed() {
        let (listener, address) = local();
        let _client = TcpStream::connect(address).unwrap();
        let (accepted, _) = Socket::from(listener).accept().unwrap();
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
    }

    #[test]
    fn one_that_was_ended_listens_again_where_it_was() {
        // A port that the kernel has chosen would go back to it.
        let address = SocketAddr::from(([127, 71, 0, 1], 4001));
        let listener = listen(address, 16).unwrap();
        for end in [
            |listener: &OwnedFd| SockRef::from(listener).shutdown(std::net::Shutdown::Both).unwrap(),
            |listener: &OwnedFd| rustix::net::connect_unspec(listener).unwrap(),
        ] {
            end(&listener);
            assert!(TcpStream::connect(address).is_err());
            unconnect(&listener, address).unwrap();
            adopt(listener.try_clone().unwrap(), address, 16).unwrap();
            TcpStream::connect(address).unwrap();
        }
        let elsewhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        assert!(unconnect(&listener, elsewhere).unwrap_err().to_string().contains("127.0.0.1:1"));
    }

    #[test]
    fn an_address_is_free_when_no_process_holds_it() {
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
