//! Descriptors that a peer sends without being asked.
//!
//! A peer may put descriptors beside anything that it sends over a unix socket (`SCM_RIGHTS`, unix(7)). The receiver
//! that takes them out of the socket, or closes the socket with them in it, closes them, and close(2) can wait: for a TCP socket
//! with `SO_LINGER` and unsent data as long as the peer has chosen.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use nix::errno::Errno;
use nix::libc;

/// `SO_PASSRIGHTS` of Linux 6.16 (include/uapi/asm-generic/socket.h).
const PASSRIGHTS: libc::c_int = 83;

/// Descriptors that may wait to be closed. A peer that sends any loses its socket, so that many are those of several peers.
const WAITING_MAX: usize = 4096;

/// Forbids a peer of this unix socket to send descriptors over it: sendmsg(2) fails there with `EPERM`. Connections that a
/// listener accepts inherit that. To be called before the peer gets its end.
///
/// # Errors
/// When the kernel has no such option: before Linux 6.16.
#[expect(unsafe_code, reason = "no crate knows the option")]
pub fn refuse_descriptors(socket: impl AsFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    let length = libc::socklen_t::try_from(size_of_val(&off)).unwrap_or_default();
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `length` bytes, which are `off`. The descriptor is borrowed for longer than the call.
    let result =
        unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, PASSRIGHTS, (&raw const off).cast(), length) };
    Errno::result(result)?;
    Ok(())
}

/// Closes descriptors on a thread of its own. The first call starts the thread.
pub fn close_aside(descriptors: impl IntoIterator<Item = OwnedFd>) {
    static CLOSER: OnceLock<Option<SyncSender<OwnedFd>>> = OnceLock::new();
    let start = || {
        let (sender, waiting) = sync_channel::<OwnedFd>(WAITING_MAX);
        let close = move || waiting.into_iter().for_each(drop);
        thread::Builder::new().name("closer".to_owned()).spawn(close).ok().map(|_detached| sender)
    };
    for descriptor in descriptors {
        // Without room or a thread it is closed here and now.
        if let Some(closer) = CLOSER.get_or_init(start)
            && let Err(TrySendError::Full(here) | TrySendError::Disconnected(here)) =
                closer.try_send(descriptor)
        {
            drop(here);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{IoSlice, Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::{Duration, Instant};

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    fn send(stream: &UnixStream) -> nix::Result<usize> {
        let rights = [ControlMessage::ScmRights(&[1])];
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)
    }

    #[test]
    fn a_peer_cannot_send_descriptors_and_goes_on_with_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        if refuse_descriptors(&listener).is_err() {
            return;
        }
        let mut peer = UnixStream::connect(&path).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        assert_eq!(send(&peer), Err(Errno::EPERM), "the accepted socket inherits it");
        peer.write_all(b"bytes").unwrap();
        let mut read = [0; 5];
        accepted.read_exact(&mut read).unwrap();
        assert_eq!(send(&accepted), Ok(1), "the other direction stays");
    }

    /// What a peer can do, and what the thread is for.
    #[test]
    fn a_close_that_waits_holds_up_only_the_closer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut other_end, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        while (&stream).write(&[0; 65536]).is_ok() {}
        let linger = libc::linger { l_onoff: 1, l_linger: 60 };
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
        let began = Instant::now();
        close_aside([OwnedFd::from(stream)]);
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        // What was unsent comes, and the close ends.
        while other_end.read(&mut [0; 65536]).unwrap() > 0 {}
    }
}
