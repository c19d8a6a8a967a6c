//! Messages to the service manager, sd_notify(3).

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

/// How long the agent waits for a manager that does not read its messages.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to do while the manager's queue is full.
#[derive(Clone, Copy)]
pub(super) enum WhenFull {
    /// Wait for room, at most [`PATIENCE`]: while the agent starts or ends.
    Wait,
    /// Return an error.
    Fail,
}

/// A socket to the manager.
pub(super) struct NotifySocket {
    socket: UnixDatagram,
    manager: UnixAddr,
}

impl NotifySocket {
    /// Makes a socket to the value of `NOTIFY_SOCKET`: a path, or `@` and a name in the abstract namespace.
    pub(super) fn to(path: &OsStr) -> io::Result<Self> {
        let manager = match path.as_bytes() {
            [b'/', ..] => UnixAddr::new(path)?,
            [b'@', name @ ..] if !name.is_empty() => UnixAddr::new_abstract(name)?,
            _ => {
                let what = "it is neither a path nor an abstract socket (\"@name\")";
                return Err(io::Error::new(io::ErrorKind::Unsupported, what));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, manager })
    }

    /// Sends one message, with or without descriptors.
    pub(super) fn send(
        &self,
        state: &str,
        descriptors: &[BorrowedFd<'_>],
        when_full: WhenFull,
    ) -> io::Result<()> {
        let descriptors: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &[] } else { &rights[..] };
        let text = [IoSlice::new(state.as_bytes())];
        let flags = match when_full {
            WhenFull::Wait => MsgFlags::MSG_NOSIGNAL,
            WhenFull::Fail => MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        };
        sendmsg(self.socket.as_raw_fd(), &text, control, flags, Some(&self.manager))?;
        Ok(())
    }
}
