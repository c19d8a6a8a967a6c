//! System calls of the program that wait for an answer (seccomp_unotify(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// A call that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    id: u64,
    /// The thread that makes it, in our PID namespace.
    pub(crate) thread: u32,
    /// Its number.
    pub(crate) number: i64,
    /// Its arguments.
    pub(crate) arguments: [u64; 6],
}

/// The descriptor on which calls arrive.
pub(crate) struct Calls(OwnedFd);

impl AsFd for Calls {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Calls {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// The next call. Waits for one; `None` when the caller has gone away meanwhile.
    #[expect(unsafe_code, reason = "an ioctl")]
    pub(crate) fn next(&self) -> io::Result<Option<Call>> {
        // The kernel wants zeros.
        let data = libc::seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] };
        let mut call = libc::seccomp_notif { id: 0, pid: 0, flags: 0, data };
        // SAFETY: the request is for a `seccomp_notif`, which is live and is all that the kernel writes.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
        match Errno::result(result) {
            Ok(_) => Ok(Some(Call {
                id: call.id,
                thread: call.pid,
                number: i64::from(call.data.nr),
                arguments: call.data.args,
            })),
            Err(Errno::ENOENT | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the call still waits. What was read of its thread before is that thread's then: a number that another thread
    /// has got meanwhile would be another call.
    #[expect(unsafe_code, reason = "an ioctl")]
    pub(crate) fn is_waiting(&self, call: &Call) -> bool {
        let id = call.id;
        // SAFETY: the request is for a `u64`, which is live and is only read.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) };
        result == 0
    }

    /// Lets the kernel do what the call asks for.
    pub(crate) fn run(&self, call: &Call) {
        self.answer(call, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32);
    }

    /// Says that the call has succeeded, without doing it.
    pub(crate) fn succeed(&self, call: &Call) {
        self.answer(call, 0);
    }

    #[expect(unsafe_code, reason = "an ioctl")]
    fn answer(&self, call: &Call, flags: u32) {
        let answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags };
        // SAFETY: the request is for a `seccomp_notif_resp`, which is live and is only read. An error means that the
        // caller has gone away.
        let _gone =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
    }

    /// Puts `descriptor` in the place of the caller's descriptor of that number, which is closed.
    #[expect(unsafe_code, reason = "an ioctl")]
    pub(crate) fn replace(
        &self,
        call: &Call,
        number: u32,
        descriptor: BorrowedFd<'_>,
        close_on_exec: bool,
    ) -> io::Result<()> {
        let order = libc::seccomp_notif_addfd {
            id: call.id,
            flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
            srcfd: descriptor.as_raw_fd() as u32,
            newfd: number,
            newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: the request is for a `seccomp_notif_addfd`, which is live and is only read; the descriptor in it is
        // borrowed for longer than the call.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const order) };
        Errno::result(result)?;
        Ok(())
    }
}
