//! The accept queue of a listening socket.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

/// `TCP_LISTEN` of the kernel (include/net/tcp_states.h).
const LISTEN: u8 = 10;

/// The beginning of the kernel's `struct tcp_info` (tcp(7)), of which it copies as many bytes as the caller has room for.
#[repr(C)]
#[derive(Default)]
struct Head {
    state: u8,
    flags: [u8; 7],
    times: [u32; 4],
    unacked: u32,
}

const _: () = assert!(size_of::<Head>() == 28);
const _: () = assert!(offset_of!(Head, unacked) == offset_of!(libc::tcp_info, tcpi_unacked));

/// How many established connections wait in the accept queue of a listening TCP socket.
///
/// The kernel reports them as `tcpi_unacked` of a socket that listens (tcp_get_info in net/ipv4/tcp.c).
///
/// # Errors
/// `InvalidInput` for a socket that does not listen; else when getsockopt(2) fails.
#[expect(unsafe_code, reason = "no crate has a safe interface to TCP_INFO")]
pub fn accept_queue(listener: impl AsFd) -> io::Result<u32> {
    let mut head = Head::default();
    let mut length = libc::socklen_t::try_from(size_of::<Head>()).unwrap_or_default();
    let place = (&raw mut head).cast();
    let socket = listener.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes, which are `head`, plain integers that were
    // initialised; and `length`, a value of ours. The descriptor is borrowed for longer than the call.
    let result =
        unsafe { libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length) };
    Errno::result(result)?;
    if head.state != LISTEN {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this socket does not listen"));
    }
    Ok(head.unacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn clients_that_wait_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(accept_queue(&listener).unwrap(), 0);
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert_eq!(accept_queue(&listener).unwrap(), 3);
        let accepted = listener.accept().unwrap();
        assert_eq!(accept_queue(&listener).unwrap(), 2);
        for socket in [&clients[0], &accepted.0] {
            assert_eq!(accept_queue(socket).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn what_is_no_tcp_socket_is_an_error() {
        let (unix, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(accept_queue(unix).is_err());
        assert!(accept_queue(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
