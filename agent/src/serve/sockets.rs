//! The established TCP sockets of a port, asked of the kernel (sock_diag(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};
use nix::sys::time::TimeVal;

/// One TCP socket that is connected to a client, or was a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// The kernel's name of the socket, which no other one ever has.
    pub(super) cookie: u64,
    /// The inode of the socket file that processes hold; 0 while the connection is in the accept queue, and after its close.
    pub(super) inode: u64,
}

/// A socket for questions about sockets.
pub(super) struct SocketDiagnosis {
    netlink: OwnedFd,
    buffer: Vec<u8>,
}

/// As netlink(7) advises.
const BUFFER_BYTES: usize = 32 * 1024;

/// The kernel answers at once.
const PATIENCE_SECONDS: i64 = 2;

/// Of linux/netlink.h and linux/sock_diag.h.
const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;

/// `struct inet_diag_req_v2` of linux/inet_diag.h.
const REQUEST_BYTES: usize = HEADER_BYTES + 56;
/// `struct inet_diag_msg`.
const ANSWER_BYTES: usize = 72;

/// The states in which a process may have a connected socket open (net/tcp_states.h): established, both FIN waits, close
/// wait, last acknowledgement, closing.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

impl SocketDiagnosis {
    pub(super) fn open() -> io::Result<Self> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        setsockopt(&netlink, ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0))?;
        Ok(Self { netlink, buffer: vec![0; BUFFER_BYTES] })
    }

    /// The connections to a listening socket at this address.
    pub(super) fn connections(&mut self, listen: SocketAddr) -> io::Result<Vec<Connection>> {
        send(self.netlink.as_raw_fd(), &request(listen), MsgFlags::empty())?;
        let mut found = Vec::new();
        loop {
            let length = recv(self.netlink.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            if parse(self.buffer.get(..length).unwrap_or_default(), listen, &mut found)? {
                return Ok(found);
            }
        }
    }
}

fn family(listen: SocketAddr) -> u8 {
    let family = if listen.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
    family as u8
}

/// Asks for every socket of this family whose local port is that of the listener.
fn request(listen: SocketAddr) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(REQUEST_BYTES as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &DUMP.to_ne_bytes());
    put(HEADER_BYTES, &[family(listen), nix::libc::IPPROTO_TCP as u8]);
    put(HEADER_BYTES + 4, &STATES.to_ne_bytes());
    put(HEADER_BYTES + 8, &listen.port().to_be_bytes());
    request
}

/// Adds what one packet says. True at the end of the answer.
fn parse(mut packet: &[u8], listen: SocketAddr, found: &mut Vec<Connection>) -> io::Result<bool> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "an answer of sock_diag is cut off");
    while packet.len() >= HEADER_BYTES {
        let length = u32_at(packet, 0).and_then(|length| usize::try_from(length).ok()).ok_or_else(broken)?;
        let message = packet.get(..length).filter(|_| length >= HEADER_BYTES).ok_or_else(broken)?;
        let body = &message[HEADER_BYTES..];
        match u16::from_ne_bytes([message[4], message[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let number = u32_at(body, 0).map_or(0, |number| number as i32);
                return Err(Errno::from_raw(number.wrapping_neg()).into());
            }
            SOCK_DIAG_BY_FAMILY => found.extend(connection(body, listen)),
            _ => {}
        }
        // Messages begin at multiples of 4.
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
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

    #[test]
    fn what_is_cut_off_is_an_error_or_ignored() {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let mut found = Vec::new();
        let mut short = [0; 20];
        short[0] = 200;
        assert!(parse(&short, listen, &mut found).is_err());
        short[0] = 3;
        assert!(parse(&short, listen, &mut found).is_err());
        short[0] = 20;
        short[4] = 20;
        assert!(!parse(&short, listen, &mut found).unwrap());
        assert_eq!(found, []);
    }
}
