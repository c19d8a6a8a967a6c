//! Turns a descriptor number from the environment into an owned descriptor. Only this file does that.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use headstart_wire::Channel;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};

use crate::Error;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the control socket with this number, once per process.
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
        // It is not the agent's descriptor, so it stays open for its owner.
        let _ = control.into_raw_fd();
        return Err(wrong(problem));
    }
    Ok(Channel::from(control))
}

/// Checks that it is a control socket, and sets close-on-exec.
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
    // SAFETY: the agent opened this descriptor before exec and named it in the
    // environment; nothing in this process owns it, and `TAKEN` admits one caller
    // only. The caller does not close it when it is not the agent's.
    unsafe { OwnedFd::from_raw_fd(number) }
}
