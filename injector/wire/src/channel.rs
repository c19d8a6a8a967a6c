//! One end of a control socket: packets with descriptors, nothing leaked.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, accept4, getsockopt,
    recv, recvmsg, sendmsg, socketpair,
};

use crate::{Direction, WireError, close_aside, refuse_descriptors};

/// `SCM_MAX_FD` of the kernel: with room for all of them no descriptor can be
/// installed without our knowledge, so none leaks (unix(7), `MSG_CTRUNC`).
const MAX_DESCRIPTORS: usize = 253;

/// A message and the descriptors that came with it, as many as it announced.
#[derive(Debug)]
pub struct ReceivedMessage<M> {
    /// The message.
    pub message: M,
    /// Its descriptors, close-on-exec, in the order of the message.
    pub descriptors: Vec<OwnedFd>,
}

/// One end of a control socket.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// A connected pair: the agent's end (non-blocking) and the function's end
    /// (blocking). Both are close-on-exec. The function cannot send descriptors, if
    /// the kernel can forbid it.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn pair() -> Result<(Self, Self), WireError> {
        let (agent, function) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(std::io::Error::from)?;
        let agent = Self(agent);
        let _ = refuse_descriptors(&agent);
        agent.set_nonblocking(true)?;
        Ok((agent, Self(function)))
    }

    /// Accepts a peer on a listening `SOCK_SEQPACKET` socket; the new end is
    /// non-blocking and close-on-exec.
    ///
    /// # Errors
    /// When accept4(2) fails; a would-block on a non-blocking listener is not a fault.
    pub fn accept(listener: &OwnedFd) -> Result<Self, WireError> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        loop {
            match accept4(listener.as_raw_fd(), flags) {
                Ok(number) => return Ok(Self(own(number))),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(error) => return Err(std::io::Error::from(error).into()),
            }
        }
    }

    /// The process that made the other end, in our PID namespace (`SO_PEERCRED`, unix(7)).
    ///
    /// # Errors
    /// When getsockopt(2) fails.
    pub fn peer_pid(&self) -> Result<i32, WireError> {
        let peer = getsockopt(&self.0, PeerCredentials).map_err(std::io::Error::from)?;
        Ok(peer.pid())
    }

    /// Switches `O_NONBLOCK`. The flag belongs to the open file description:
    /// it is shared with every duplicate.
    ///
    /// # Errors
    /// When fcntl(2) fails.
    pub fn set_nonblocking(&self, on: bool) -> Result<(), WireError> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = fcntl(&self.0, FcntlArg::F_GETFL).map_err(std::io::Error::from)?;
        let mut flags = OFlag::from_bits_retain(flags);
        flags.set(OFlag::O_NONBLOCK, on);
        fcntl(&self.0, FcntlArg::F_SETFL(flags)).map_err(std::io::Error::from)?;
        Ok(())
    }

    /// Sends one message with its descriptors; the caller keeps its copies.
    ///
    /// # Errors
    /// [`WireError::Descriptors`] when there are not as many as the message
    /// announces; [`WireError::Io`] when the peer is gone or its queue is full.
    pub fn send<M: Direction>(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        let expected = message.descriptors();
        if descriptors.len() != expected {
            return Err(WireError::Descriptors { expected, got: descriptors.len() });
        }
        let packet = message.encode()?;
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
        let data = [IoSlice::new(&packet)];
        sendmsg::<()>(self.0.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None)
            .map_err(std::io::Error::from)?;
        Ok(())
    }

    /// Receives one message. The descriptors of an invalid message are
    /// closed, beside this thread.
    ///
    /// # Errors
    /// See [`WireError`]; all but a would-block mean that the socket should be closed.
    pub fn recv<M: Direction>(&self) -> Result<ReceivedMessage<M>, WireError> {
        // Room for this message, not for the longest: a process that has just started pays for each page it touches.
        // One byte more than allowed tells a message at the limit from one beyond it.
        let mut packet = vec![0u8; self.next_bytes()?.min(M::MAX_BYTES + 1)];
        let (length, descriptors) = self.recv_raw(&mut packet)?;
        match decode(packet.get(..length).unwrap_or_default(), descriptors.len()) {
            Ok(message) => Ok(ReceivedMessage { message, descriptors }),
            Err(error) => {
                close_aside(descriptors);
                Err(error)
            }
        }
    }

    /// The bytes of the next packet, 0 at the end, without taking it (recv(2), `MSG_PEEK` and `MSG_TRUNC`).
    fn next_bytes(&self) -> Result<usize, WireError> {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        Ok(recv(self.0.as_raw_fd(), &mut [], flags).map_err(std::io::Error::from)?)
    }

    fn recv_raw(&self, packet: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), WireError> {
        let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let mut data = [IoSliceMut::new(packet)];
        let received =
            recvmsg::<()>(self.0.as_raw_fd(), &mut data, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)
                .map_err(std::io::Error::from)?;
        let mut descriptors = Vec::new();
        for control in received.cmsgs().map_err(std::io::Error::from)? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                descriptors.extend(numbers.into_iter().map(own));
            }
        }
        Ok((received.bytes, descriptors))
    }
}

/// The message in a packet that came with so many descriptors.
fn decode<M: Direction>(packet: &[u8], descriptors: usize) -> Result<M, WireError> {
    if packet.len() > M::MAX_BYTES {
        return Err(WireError::Oversized { limit: M::MAX_BYTES });
    }
    if packet.is_empty() {
        return Err(WireError::Closed);
    }
    let message = M::decode(packet)?;
    let expected = message.descriptors();
    if descriptors == expected {
        Ok(message)
    } else {
        Err(WireError::Descriptors { expected, got: descriptors })
    }
}

#[expect(unsafe_code, reason = "the one place where a received descriptor number becomes an owner")]
fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this number into our table for the one
    // call that returned it, and each number that a call returned is taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
