//! The filter on the listeners of functions that are closed to unannounced clients. It works on every path, also without
//! a watched interface.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use aya::Ebpf;
use aya::programs::SocketFilter;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;

use crate::syn::error::{KernelProgram, SynError, chain};

mod option {
    use std::os::fd::RawFd;

    use nix::{libc, setsockopt_impl, sockopt_impl};

    sockopt_impl!(AttachBpf, SetOnly, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, RawFd);
    sockopt_impl!(LockFilter, SetOnly, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, bool);
}

/// The loaded filter.
pub(in crate::syn) struct Gate {
    program: OwnedFd,
    /// Whether an earlier agent's filter, which is locked on a listener, reads the same maps.
    kept: bool,
}

impl Gate {
    pub(in crate::syn) fn new(ebpf: &Ebpf, kept: bool) -> Result<Self, SynError> {
        let program = ebpf.program(KernelProgram::Gate.program()).and_then(|program| program.try_into().ok());
        let gate: &SocketFilter = program.ok_or(SynError::Object(KernelProgram::Gate.program()))?;
        let program = gate.fd().map_err(|error| SynError::Gate(chain(&error)))?;
        let program =
            program.as_fd().try_clone_to_owned().map_err(|error| SynError::Gate(error.to_string()))?;
        Ok(Self { program, kept })
    }

    /// Attaches the filter to a socket and locks it, so that an instance cannot remove it (socket(7), `SO_LOCK_FILTER`).
    pub(in crate::syn) fn guard(&self, listener: impl AsFd) -> Result<(), SynError> {
        match setsockopt(&listener, option::AttachBpf, &self.program.as_raw_fd()) {
            Ok(()) => {}
            Err(Errno::EPERM) if self.kept => return Ok(()),
            Err(Errno::EPERM) => return Err(SynError::GateLocked),
            Err(error) => return Err(SynError::Gate(error.to_string())),
        }
        setsockopt(&listener, option::LockFilter, &true).map_err(|error| SynError::Gate(error.to_string()))
    }
}
