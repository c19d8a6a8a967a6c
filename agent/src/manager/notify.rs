//! Messages to the service manager, sd_notify(3).

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
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

/// Messages that may wait for a manager that does not read them.
const WAITING_MAX: usize = 1024;

/// A message that another thread sends.
pub(super) struct Notification {
    pub(super) state: String,
    pub(super) descriptor: Option<OwnedFd>,
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

    /// Starts a thread that sends messages in their order, so that no other thread waits for the manager.
    pub(super) fn start(self: Arc<Self>) -> io::Result<SyncSender<Notification>> {
        let (sender, waiting) = sync_channel::<Notification>(WAITING_MAX);
        let send = move || {
            for Notification { state, descriptor } in waiting {
                let descriptors = descriptor.as_ref().map(AsFd::as_fd);
                if let Err(error) = self.send(&state, descriptors.as_slice(), WhenFull::Wait) {
                    cannot_notify(&state, &error);
                }
            }
        };
        thread::Builder::new().name("notify".to_owned()).spawn(send)?;
        Ok(sender)
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

pub(super) fn cannot_notify(state: &str, error: &io::Error) {
    let notification = state.replace('\n', " ");
    tracing::warn!(notification, "the service manager cannot be notified: {error}");
}
