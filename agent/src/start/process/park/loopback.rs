//! Sets the loopback interface of a new network namespace up, over rtnetlink(7).

use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `struct nlmsghdr` and `struct ifinfomsg`.
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = HEADER_BYTES + 16;

/// The loopback interface is the first of every namespace.
const LOOPBACK: i32 = 1;

/// It is set up when this returns.
pub(super) fn set_up() -> io::Result<()> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(netlink.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // NLMSG_ERROR with 0 is the acknowledgement.
    let error = answer[..length].get(HEADER_BYTES..HEADER_BYTES + 4).and_then(|bytes| bytes.try_into().ok());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(negative) => Err(Errno::from_raw(-negative).into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn request() -> [u8; REQUEST_BYTES] {
    let up = libc::IFF_UP.unsigned_abs().to_ne_bytes();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut request = [0; REQUEST_BYTES];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(REQUEST_BYTES as u32).to_ne_bytes());
    put(4, &libc::RTM_NEWLINK.to_ne_bytes());
    put(6, &flags.to_ne_bytes());
    put(HEADER_BYTES + 4, &LOOPBACK.to_ne_bytes());
    put(HEADER_BYTES + 8, &up);
    put(HEADER_BYTES + 12, &up);
    request
}
