//! The few messages of nfnetlink_queue (`linux/netfilter/nfnetlink_queue.h`) that holding a packet
//! needs. Own code, because waiting for a packet *or* a timer takes the descriptor, which crate
//! `nfq` keeps to itself.

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
            setsockopt, socket, sockopt,
        },
        time::TimeSpec,
    },
};
use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

const SUBSYSTEM_QUEUE: u16 = 3 << 8;
const MESSAGE_PACKET: u16 = SUBSYSTEM_QUEUE;
const MESSAGE_VERDICT: u16 = SUBSYSTEM_QUEUE | 1;
const MESSAGE_CONFIG: u16 = SUBSYSTEM_QUEUE | 2;
const MESSAGE_ERROR: u16 = 2; // NLMSG_ERROR; an acknowledgement is the error 0
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;

const CONFIG_COMMAND: u16 = 1;
const CONFIG_PARAMS: u16 = 2;
const CONFIG_MAX_LENGTH: u16 = 3;
const CONFIG_MASK: u16 = 4;
const CONFIG_FLAGS: u16 = 5;
const COMMAND_BIND: u8 = 1;
const COPY_METADATA: u8 = 1;
/// Fail open (a full queue passes packets) and GSO (a large segment stays one packet).
const FLAGS: u32 = 1 | 4;
const MAX_LENGTH: u32 = 4096;

const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const VERDICT_ACCEPT: u32 = 1;

/// Length of the netlink header plus that of nfnetlink.
const HEADERS: usize = 16 + 4;
/// Metadata of one packet takes under 300 bytes; one datagram carries one packet.
const BUFFER: usize = 8192;

/// A queue of this thread's network namespace. Closing it drops the packets still in it.
#[derive(Debug)]
pub(super) struct Queue {
    socket: OwnedFd,
    number: u16,
}

impl Queue {
    /// Opens and configures the queue.
    pub(super) fn open(number: u16) -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::RcvBuf, &(1 << 20))?;
        let queue = Self { socket, number };
        queue.configure(CONFIG_COMMAND, &[COMMAND_BIND, 0, 0, 0])?;
        queue.configure(CONFIG_PARAMS, &[0, 0, 0, 0, COPY_METADATA])?;
        queue.configure(CONFIG_MAX_LENGTH, &MAX_LENGTH.to_be_bytes())?;
        let flags = [(CONFIG_FLAGS, &FLAGS.to_be_bytes()[..]), (CONFIG_MASK, &FLAGS.to_be_bytes()[..])];
        queue.request(&message(MESSAGE_CONFIG, FLAG_ACK, number, &flags))?;
        Ok(queue)
    }

    /// Waits for a packet or the end of `limit`, if any. With a `stop`, also for its other end to be
    /// closed, and says whether it is.
    pub(super) fn wait(&self, stop: Option<BorrowedFd<'_>>, limit: Option<Duration>) -> nix::Result<bool> {
        let mut sources = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        sources.extend(stop.map(|stop| PollFd::new(stop, PollFlags::POLLIN)));
        match ppoll(&mut sources, limit.map(TimeSpec::from), None) {
            Ok(_) => Ok(sources.get(1).and_then(PollFd::any).unwrap_or(false)),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The id of the next waiting packet, in order of arrival.
    pub(super) fn receive(&self) -> Result<Option<u32>> {
        let mut buffer = [0; BUFFER];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(id) = buffer.get(..length).and_then(packet_id) {
                        return Ok(Some(id));
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                // A burst overran the socket; those packets stay in the kernel's queue unseen.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets a packet go on its way.
    pub(super) fn accept(&self, id: u32) -> Result<()> {
        let verdict = [VERDICT_ACCEPT.to_be_bytes(), id.to_be_bytes()].concat();
        self.send(&message(MESSAGE_VERDICT, 0, self.number, &[(VERDICT_HEADER, &verdict)]))
    }

    fn configure(&self, attribute: u16, value: &[u8]) -> Result<()> {
        self.request(&message(MESSAGE_CONFIG, FLAG_ACK, self.number, &[(attribute, value)]))
    }

    /// Sends a configuration message. The kernel answers before the call returns; the queue sees no
    /// packets yet, so the answer is the next message.
    fn request(&self, message: &[u8]) -> Result<()> {
        self.send(message)?;
        let mut answer = [0; BUFFER];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let answer = answer.get(..length).unwrap_or_default();
        ensure!(u16_at(answer, 4) == Some(MESSAGE_ERROR), "unexpected answer from nfnetlink_queue");
        let code = answer.get(16..20).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
        match code.context("short answer from nfnetlink_queue")? {
            0 => Ok(()),
            code => bail!("nfnetlink_queue refused: {}", Errno::from_raw(-code)),
        }
    }

    fn send(&self, message: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), message, MsgFlags::empty())?;
        Ok(())
    }
}

/// A netlink message: header, nfnetlink header with the queue's number, attributes.
fn message(kind: u16, flags: u16, queue: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; HEADERS];
    message[18..20].copy_from_slice(&queue.to_be_bytes());
    for (attribute, value) in attributes {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        message.extend(length.to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(*value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&(FLAG_REQUEST | flags).to_ne_bytes());
    message
}

/// The id in a packet message; none in any other.
fn packet_id(message: &[u8]) -> Option<u32> {
    if u16_at(message, 4)? != MESSAGE_PACKET {
        return None;
    }
    let mut rest = message.get(HEADERS..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length).max(4);
        if kind == PACKET_HEADER {
            return Some(u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}
