//! The one place where a descriptor number from the environment becomes an owner.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use headstart_wire::Channel;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};

use crate::Error;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the control socket with this number, once in the life of the process.
pub(super) fn take(value: &str) -> Result<Channel, Error> {
    let wrong = |problem| Error::ControlDescriptor { value: value.to_owned(), problem };
    let number: RawFd = value.parse().map_err(|_| wrong("not a descriptor number"))?;
    if number <= 2 {
        return Err(wrong("0, 1 and 2 are the standard streams"));
    }
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Err(Error::AlreadyAttached);
    }
    let control = own(number);
    if let Err(problem) = check(&control) {
        // Not ours: whoever opened it keeps it.
        let _ = control.into_raw_fd();
        return Err(wrong(problem));
    }
    Ok(Channel::from(control))
}

/// Checks that it is a control socket, and keeps it out of child processes.
fn check(control: &OwnedFd) -> Result<(), &'static str> {
    let status = fstat(control).map_err(|_| "no open descriptor")?;
    if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
        return Err("not a socket");
    }
    if getsockopt(control, sockopt::SockType) != Ok(SockType::SeqPacket) {
        return Err("not a SOCK_SEQPACKET socket");
    }
    fcntl(control, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|_| "fcntl failed")?;
    Ok(())
}

#[expect(unsafe_code, reason = "an inherited descriptor is known by its number only")]
fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the agent opened this number for us before exec and named it in the
    // environment; nothing in this process owns it, and `TAKEN` lets one caller
    // get here. The caller gives it back unclosed when it is not the agent's.
    unsafe { OwnedFd::from_raw_fd(number) }
}
