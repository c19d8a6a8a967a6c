//! Whether a socket that was handed over still exists, as the kernel tells (sock_diag(7)). A function may keep a connection
//! that it says it has closed, in a process or a queue of its own.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headstart_wire::netlink::{Answer, Netlink, SOCK_DIAG_BY_FAMILY};
use socket2::SockRef;
use tokio::time::sleep;

const AF_UNIX: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// In an answer, the place of the inode of a TCP socket (`struct inet_diag_msg`). That is 0 once no process has the socket
/// open.
const INODE_AT: usize = 68;

/// The error of a socket that does not exist, or is another one by now.
const ENOENT: i32 = 2;
const ESTALE: i32 = 116;

/// Between two looks at a socket that should be gone: soon at first, because closing it takes a moment.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The question for one socket.
#[derive(Debug)]
pub(crate) struct SocketDiag(Vec<u8>);

impl SocketDiag {
    /// For a socket of this process; `None` where the kernel does not tell. May load a module of the kernel.
    pub(crate) fn of(socket: &impl AsFd) -> Option<Self> {
        // Whether the kernel has told of a TCP socket, of a unix socket.
        static TELLS: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];
        let diag = Self::question(socket.as_fd()).ok()?;
        let tells = &TELLS[usize::from(diag.0.first() == Some(&AF_UNIX))];
        // Without its module the kernel says of every socket that it does not exist. It is asked until it has told of one.
        if !tells.load(Ordering::Relaxed) && diag.exists().is_ok_and(|exists| exists) {
            tells.store(true, Ordering::Relaxed);
        }
        tells.load(Ordering::Relaxed).then_some(diag)
    }

    fn question(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let of = SockRef::from(&socket);
        let cookie = of.cookie()?.to_ne_bytes();
        let (local, peer) = (of.local_addr()?.as_socket(), of.peer_addr()?.as_socket());
        let body = match (local, peer) {
            (Some(local), Some(peer)) => tcp(local, peer, cookie),
            _ => unix(File::from(socket.try_clone_to_owned()?).metadata()?.ino(), cookie),
        };
        Ok(Self(body))
    }

    /// Whether a process has the socket open, or it is on its way to one.
    fn exists(&self) -> io::Result<bool> {
        let mut kernel = Netlink::sock_diag()?;
        match kernel.ask(SOCK_DIAG_BY_FAMILY, 0, &self.0)? {
            Answer::Error(ENOENT | ESTALE) => Ok(false),
            Answer::Error(number) => Err(io::Error::from_raw_os_error(number)),
            Answer::Message(_, body @ [AF_INET | AF_INET6, ..]) => {
                let inode = body.get(INODE_AT..INODE_AT + 4).ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(inode != [0; 4])
            }
            Answer::Message(..) | Answer::Done => Ok(true),
        }
    }

    /// Waits until the socket does not exist. An error is no proof of that.
    pub(crate) async fn gone(&self) {
        let mut pause = PAUSE_MIN;
        while !self.exists().is_ok_and(|exists| !exists) {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Whether the kernel tells of both kinds of sockets. May load its modules.
///
/// # Errors
/// When there can be no sockets.
pub fn can_tell() -> io::Result<bool> {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(server.local_addr()?)?;
    let (unix, _peer) = UnixStream::pair()?;
    Ok(SocketDiag::of(&client).is_some() && SocketDiag::of(&unix).is_some())
}

/// `struct inet_diag_req_v2` (`include/uapi/linux/inet_diag.h`).
fn tcp(local: SocketAddr, peer: SocketAddr, cookie: [u8; 8]) -> Vec<u8> {
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut body = vec![family, IPPROTO_TCP, 0, 0];
    body.extend(u32::MAX.to_ne_bytes()); // every state
    body.extend(local.port().to_be_bytes());
    body.extend(peer.port().to_be_bytes());
    for address in [local, peer] {
        let mut octets = [0; 16];
        match address.ip() {
            IpAddr::V4(ip) => octets[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => octets = ip.octets(),
        }
        body.extend(octets);
    }
    let interface = match peer {
        SocketAddr::V6(peer) => peer.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    body.extend(interface.to_ne_bytes());
    body.extend(cookie);
    body
}

/// `struct unix_diag_req` (`include/uapi/linux/unix_diag.h`).
fn unix(inode: u64, cookie: [u8; 8]) -> Vec<u8> {
    let mut body = vec![AF_UNIX, 0, 0, 0];
    body.extend(u32::MAX.to_ne_bytes()); // every state
    body.extend((inode as u32).to_ne_bytes()); // the kernel has no more of it here
    body.extend(0_u32.to_ne_bytes()); // no details
    body.extend(cookie);
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn holds(held: impl AsFd, copy: impl Sized, diag: &SocketDiag) {
        assert!(diag.exists().unwrap());
        drop(held);
        assert!(diag.exists().unwrap(), "another descriptor is open");
        drop(copy);
        assert!(!diag.exists().unwrap());
    }

    #[test]
    fn a_socket_exists_as_long_as_a_descriptor_of_it_is_open() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
            let diag = SocketDiag::of(&client).unwrap();
            // The server has not closed: the connection is in FIN_WAIT2 in the end.
            let _accepted = server.accept().unwrap();
            holds(client.try_clone().unwrap(), client, &diag);
        }
        let directory = tempfile::tempdir().unwrap();
        let server = UnixListener::bind(directory.path().join("socket")).unwrap();
        let client = UnixStream::connect(directory.path().join("socket")).unwrap();
        let diag = SocketDiag::of(&client).unwrap();
        let _accepted = server.accept().unwrap();
        holds(client.try_clone().unwrap(), client, &diag);
    }

    #[test]
    fn the_kernel_is_asked_until_it_has_told_of_a_socket_of_the_kind() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        assert!(SocketDiag::of(&client).is_some());
        // In another network namespace the kernel does not find the socket.
        let elsewhere = std::thread::spawn(move || {
            let root = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok();
            root.then(|| {
                (SocketDiag::of(&client).is_some(), SocketDiag::question(client.as_fd()).unwrap().exists())
            })
        });
        let Some((told, exists)) = elsewhere.join().unwrap() else { return };
        assert!(told && !exists.unwrap());
    }

    #[test]
    fn a_descriptor_in_a_queue_counts() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let diag = SocketDiag::of(&client).unwrap();
        let (sender, receiver) = UnixStream::pair().unwrap();
        let rights =
            [nix::sys::socket::ControlMessage::ScmRights(&[std::os::fd::AsRawFd::as_raw_fd(&client)])];
        let data = [std::io::IoSlice::new(b"x")];
        let flags = nix::sys::socket::MsgFlags::empty();
        let number = std::os::fd::AsRawFd::as_raw_fd(&sender);
        nix::sys::socket::sendmsg::<()>(number, &data, &rights, flags, None).unwrap();
        drop(sender);
        holds(client, receiver, &diag);
    }
}
