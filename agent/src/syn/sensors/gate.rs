//! The filter on the listeners of functions that are closed to unauthenticated clients: it works on every path
//! to them, also where no interface is watched.

use std::io;
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::programs::socket_filter::SocketFilterError;
use aya::programs::{ProgramError, SocketFilter};
use nix::sys::socket::setsockopt;

use crate::syn::error::{Part, SynError, chain};

mod option {
    use nix::{libc, setsockopt_impl, sockopt_impl};

    sockopt_impl!(LockFilter, SetOnly, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, bool);
}

/// Puts the filter on a socket and locks it: whoever gets the listener cannot take the filter off (socket(7),
/// `SO_LOCK_FILTER`). With `kept`, the filter that an earlier agent locked is as good: it reads the same maps.
pub(in crate::syn) fn guard(ebpf: &Ebpf, listener: impl AsFd, kept: bool) -> Result<(), SynError> {
    let program = ebpf.program(Part::Gate.program()).and_then(|program| program.try_into().ok());
    let gate: &SocketFilter = program.ok_or(SynError::Object(Part::Gate.program()))?;
    match gate.attach(&listener) {
        Ok(()) => {}
        Err(error) if is_locked(&error) && kept => return Ok(()),
        Err(error) if is_locked(&error) => return Err(SynError::GateLocked),
        Err(error) => return Err(SynError::Gate(chain(&error))),
    }
    setsockopt(&listener, option::LockFilter, &true).map_err(|error| SynError::Gate(error.to_string()))
}

fn is_locked(error: &ProgramError) -> bool {
    let ProgramError::SocketFilterError(SocketFilterError::SetsockoptError { io_error, .. }) = error else {
        return false;
    };
    io_error.kind() == io::ErrorKind::PermissionDenied
}
