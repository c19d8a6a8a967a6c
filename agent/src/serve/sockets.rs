//! The established TCP sockets of a port, asked of the kernel (sock_diag(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use headstart_wire::netlink::{Netlink, SOCK_DIAG_BY_FAMILY};

/// One TCP socket that is connected to a client, or was a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// The kernel's name of the socket, which no other one ever has.
    pub(super) cookie: u64,
    /// The inode of the socket file that processes hold; 0 while the connection is in the accept queue, and after its close.
    pub(super) inode: u64,
}

/// Answers questions about sockets.
pub(super) struct SocketDiagnosis(Netlink);

/// `struct inet_diag_req_v2` of linux/inet_diag.h.
const REQUEST_BYTES: usize = 56;
/// `struct inet_diag_msg`.
const ANSWER_BYTES: usize = 72;

/// The states in which a process may have a connected socket open (net/tcp_states.h): established, both FIN waits, close
/// wait, last acknowledgement, closing.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

impl SocketDiagnosis {
    pub(super) fn open() -> io::Result<Self> {
        Netlink::sock_diag().map(Self)
    }

    /// The connections to a listening socket at this address.
    pub(super) fn connections(&mut self, listen: SocketAddr) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        self.0
            .dump(SOCK_DIAG_BY_FAMILY, &request(listen), |_, body| found.extend(connection(body, listen)))?;
        Ok(found)
    }
}

/// Asks for every socket of this family whose local port is that of the listener.
fn request(listen: SocketAddr) -> [u8; REQUEST_BYTES] {
    let family = if listen.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
    let mut request = [0; REQUEST_BYTES];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[family as u8, nix::libc::IPPROTO_TCP as u8]);
    put(4, &STATES.to_ne_bytes());
    put(8, &listen.port().to_be_bytes());
    request
}

fn connection(body: &[u8], listen: SocketAddr) -> Option<Connection> {
    let body = body.get(..ANSWER_BYTES)?;
    let port = u16::from_be_bytes([body[4], body[5]]);
    let local: [u8; 16] = body.get(8..24)?.try_into().ok()?;
    let local = if listen.is_ipv4() {
        IpAddr::V4(Ipv4Addr::new(local[0], local[1], local[2], local[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(local))
    };
    let fits = port == listen.port() && (listen.ip().is_unspecified() || listen.ip() == local);
    let cookie = u64::from(u32_at(body, 44)?) | u64::from(u32_at(body, 48)?) << 32;
    fits.then_some(Connection { cookie, inode: u64::from(u32_at(body, 68)?) })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt as _;

    fn inode(stream: &TcpStream) -> u64 {
        File::from(OwnedFd::from(stream.try_clone().unwrap())).metadata().unwrap().ino()
    }

    #[test]
    fn a_connection_has_an_inode_from_its_acceptance_to_its_close() {
        let mut diagnosis = SocketDiagnosis::open().unwrap();
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let listen = listener.local_addr().unwrap();
            assert_eq!(diagnosis.connections(listen).unwrap(), []);
            let to = SocketAddr::new(
                if listen.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() },
                listen.port(),
            );
            let client = TcpStream::connect(to).unwrap();
            let [queued] = diagnosis.connections(listen).unwrap()[..] else { panic!("{address}") };
            assert_eq!(queued.inode, 0, "it waits in the accept queue");
            let (accepted, _) = listener.accept().unwrap();
            let open = Connection { inode: inode(&accepted), ..queued };
            assert_eq!(diagnosis.connections(listen).unwrap(), [open]);
            drop(client);
            assert_eq!(diagnosis.connections(listen).unwrap(), [open], "the server has it open still");
            drop(accepted);
            assert!(diagnosis.connections(listen).unwrap().iter().all(|one| one.inode == 0));
        }
    }

    #[test]
    fn many_connections_come_in_several_packets_and_those_of_others_are_left_out() {
        let mut diagnosis = SocketDiagnosis::open().unwrap();
        let (one, other) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let mut held = Vec::new();
        for listener in [&one, &one, &one, &other] {
            for _ in 0..200 {
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                held.push((client, listener.accept().unwrap()));
            }
        }
        let found = diagnosis.connections(one.local_addr().unwrap()).unwrap();
        assert_eq!(found.iter().filter(|one| one.inode != 0).count(), 600);
        let elsewhere = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 2).into(), one.local_addr().unwrap().port());
        assert_eq!(diagnosis.connections(elsewhere).unwrap(), []);
    }
}
