//! Questions to the kernel over netlink (netlink(7)): the header of a message, and the answers in a packet.
//!
//! The numbers are those of `include/uapi/linux/netlink.h`. A message is its header of 16 bytes (length, kind, flags, number,
//! sender; the byte order of the machine) and a body, and begins at a multiple of 4 bytes.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::libc;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};
use nix::sys::time::TimeVal;

/// As netlink(7) advises.
const BUFFER_BYTES: usize = 32 * 1024;

/// How long an answer is waited for, in seconds. The kernel answers at once.
const PATIENCE_SECONDS: i64 = 2;

/// The one question of sock_diag(7) (`include/uapi/linux/sock_diag.h`), with `NETLINK_SOCK_DIAG`.
pub const SOCK_DIAG_BY_FAMILY: u16 = 20;

const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A netlink socket, for one question at a time.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// One message of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// What was asked for: the kind of message, and its body.
    Message(u16, &'a [u8]),
    /// The end of several messages, or an acknowledgement.
    Done,
    /// The question is refused, with this number of errno(3).
    Error(i32),
}

impl Netlink {
    /// Asks about sockets (sock_diag(7)) in the network namespace of the caller.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn sock_diag() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkSockDiag)
    }

    /// Asks about interfaces and addresses (rtnetlink(7)) in the network namespace of the caller.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0))?;
        Ok(Self { socket, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Asks for several messages (`NLM_F_DUMP`), and gives each to `take`.
    ///
    /// # Errors
    /// When the kernel refuses the question, or does not answer within two seconds.
    pub fn dump(&mut self, kind: u16, body: &[u8], mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.send(kind, libc::NLM_F_DUMP, body)?;
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            for answer in answers(self.buffer.get(..length).unwrap_or_default()) {
                match answer? {
                    Answer::Message(kind, body) => take(kind, body),
                    Answer::Done => return Ok(()),
                    Answer::Error(number) => return Err(io::Error::from_raw_os_error(number)),
                }
            }
        }
    }

    /// Asks for one message, with `more` flags beside `NLM_F_REQUEST`.
    ///
    /// # Errors
    /// When the kernel does not answer within two seconds, or the answer cannot be read. A refusal is an [`Answer`].
    pub fn ask(&mut self, kind: u16, more: i32, body: &[u8]) -> io::Result<Answer<'_>> {
        self.send(kind, more, body)?;
        let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
        let mut answers = answers(self.buffer.get(..length).unwrap_or_default());
        answers.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
    }

    fn send(&self, kind: u16, more: i32, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
        let flags = u16::try_from(libc::NLM_F_REQUEST | more).map_err(io::Error::other)?;
        let mut message = Vec::from(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]); // number and sender
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }
}

/// The messages of a packet. What is cut off is an error, and the last.
fn answers(mut packet: &[u8]) -> impl Iterator<Item = io::Result<Answer<'_>>> {
    std::iter::from_fn(move || {
        if packet.is_empty() {
            return None;
        }
        let message = message(packet);
        let length = message.as_ref().map_or(packet.len(), |message| message.len());
        // Messages begin at multiples of 4.
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message.and_then(answer))
    })
}

fn message(packet: &[u8]) -> io::Result<&[u8]> {
    let length = u32_at(packet, 0).and_then(|length| usize::try_from(length).ok());
    let whole = length.filter(|length| *length >= HEADER_BYTES).and_then(|length| packet.get(..length));
    whole.ok_or_else(cut_off)
}

fn answer(message: &[u8]) -> io::Result<Answer<'_>> {
    let (Some([low, high]), Some(body)) = (message.get(4..6), message.get(HEADER_BYTES..)) else {
        return Err(cut_off());
    };
    match u16::from_ne_bytes([*low, *high]) {
        NLMSG_DONE => Ok(Answer::Done),
        NLMSG_ERROR => match u32_at(body, 0).ok_or_else(cut_off)?.cast_signed() {
            0 => Ok(Answer::Done),
            negative => Ok(Answer::Error(negative.wrapping_neg())),
        },
        kind => Ok(Answer::Message(kind, body)),
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer of netlink is cut off")
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(length: u32, kind: u16, body: &[u8]) -> Vec<u8> {
        let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
        [&header, body].concat()
    }

    #[test]
    fn messages_are_read_one_after_the_other_and_the_end_is_told() {
        let all = [packet(17, 20, &[7, 0, 0, 0]), packet(20, NLMSG_DONE, &[0; 4])].concat();
        let read: Vec<_> = answers(&all).map(Result::unwrap).collect();
        assert_eq!(read, [Answer::Message(20, &[7]), Answer::Done]);
        let refused = packet(20, NLMSG_ERROR, &(-2_i32).to_ne_bytes());
        assert_eq!(answers(&refused).next().unwrap().unwrap(), Answer::Error(2));
        let acknowledged = packet(20, NLMSG_ERROR, &[0; 4]);
        assert_eq!(answers(&acknowledged).next().unwrap().unwrap(), Answer::Done);
    }

    #[test]
    fn what_is_cut_off_is_an_error_and_the_last() {
        let cut = [packet(200, 20, &[0; 4]), packet(3, 20, &[]), vec![0; 7], packet(16, NLMSG_ERROR, &[])];
        for packet in cut {
            let read: Vec<_> = answers(&packet).collect();
            assert!(matches!(read[..], [Err(_)]), "{read:?}");
        }
    }
}
