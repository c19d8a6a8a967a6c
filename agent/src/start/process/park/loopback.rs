//! Sets the loopback interface of a new network namespace up, over rtnetlink(7).

use std::io;

use headstart_wire::netlink::{Answer, Netlink};
use nix::libc;

/// `struct ifinfomsg`.
const REQUEST_BYTES: usize = 16;

/// The loopback interface is the first of every namespace.
const LOOPBACK: i32 = 1;

/// It is set up when this returns.
pub(super) fn set_up() -> io::Result<()> {
    let mut netlink = Netlink::route()?;
    match netlink.ask(libc::RTM_NEWLINK, libc::NLM_F_ACK, &request())? {
        Answer::Done => Ok(()),
        Answer::Error(number) => Err(io::Error::from_raw_os_error(number)),
        Answer::Message(..) => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn request() -> [u8; REQUEST_BYTES] {
    let up = libc::IFF_UP.unsigned_abs().to_ne_bytes();
    let mut request = [0; REQUEST_BYTES];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(4, &LOOPBACK.to_ne_bytes());
    put(8, &up);
    put(12, &up);
    request
}
