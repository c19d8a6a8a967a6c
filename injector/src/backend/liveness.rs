//! Checks of an idle connection, and its last message.

use std::io::{ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use socket2::SockRef;

use crate::DiscardReason;

/// Checks, without blocking and without reading, whether an idle connection can be handed over.
///
/// One `recv(MSG_PEEK)` on the non-blocking socket. "Would block" is the only good answer: readable
/// means closed, or a message that the receiver would take for the answer to its first query.
pub(crate) fn is_quiet(fd: impl AsFd) -> Result<(), DiscardReason> {
    match SockRef::from(&fd).peek(&mut [MaybeUninit::uninit()]) {
        Ok(0) => Err(DiscardReason::ClosedByServer),
        Ok(_) => Err(DiscardReason::UnreadMessage),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(DiscardReason::ClosedByServer),
        Err(_) => Err(DiscardReason::SocketError),
    }
}

/// Sends the last message if the socket takes it at once. The connection is closed next, so errors do not matter.
pub(super) fn send_termination(fd: impl AsFd, message: &[u8]) {
    if !message.is_empty() {
        drop((&*SockRef::from(&fd)).write(message));
    }
}
