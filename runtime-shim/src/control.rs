//! Finds the control socket.

mod inherited;

use std::os::fd::OwnedFd;
use std::path::Path;

use headstart_wire::{CONTROL_FD_ENV, Channel};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::{Error, report};

/// The control socket of this process; none when no agent started it.
///
/// An inherited descriptor comes first. A process that cannot inherit descriptors
/// (Docker) connects to the socket file at `path`.
pub(crate) fn find(path: &Path) -> Result<Option<Channel>, Error> {
    if let Some(value) = std::env::var_os(CONTROL_FD_ENV) {
        return inherited::take(&value.to_string_lossy()).map(Some);
    }
    if !path.exists() {
        return Ok(None);
    }
    match connect_to(path) {
        Ok(channel) => Ok(Some(channel)),
        Err(error) => {
            // A socket file without a listening agent is the same as no agent.
            report::line(&format!("no agent answers on {}: {error}", path.display()));
            Ok(None)
        }
    }
}

fn connect_to(path: &Path) -> nix::Result<Channel> {
    let control: OwnedFd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&control), &UnixAddr::new(path)?)?;
    Ok(Channel::from(control))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, bind, listen};
    use std::os::fd::AsRawFd;

    #[test]
    fn without_a_socket_file_there_is_no_agent() {
        assert!(find(Path::new("/nonexistent/control.sock")).unwrap().is_none());
    }

    #[test]
    fn a_socket_file_is_connected_to_and_a_stale_one_is_no_agent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        assert!(find(&path).unwrap().is_some());
        drop(listener);
        assert!(find(&path).unwrap().is_none(), "the listener is closed");
    }
}
