//! The filter of system calls whose answer is this program's (seccomp(2), Documentation/userspace-api/seccomp_filter.rst).
//!
//! | call | why |
//! |---|---|
//! | bind | it names the port |
//! | listen | the listening socket takes the place of the program's own |
//! | shutdown, unless for writing only | on the listening socket, which all instances share, it would end it for all |

use std::io;
use std::mem::offset_of;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::libc::{sock_filter, sock_fprog};

/// `AUDIT_ARCH_*` of linux/audit.h: the ELF machine, 64 bits, little endian.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data` of linux/seccomp.h.
const NUMBER_AT: u32 = offset_of!(libc::seccomp_data, nr) as u32;
const ARCH_AT: u32 = offset_of!(libc::seccomp_data, arch) as u32;
/// The lower half of the second argument.
const SECOND_AT: u32 = offset_of!(libc::seccomp_data, args) as u32 + 8;

const fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

/// Skips `yes` or `no` instructions.
const fn if_equal(value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: IF_EQUAL, jt: yes, jf: no, k: value }
}

const fn give(action: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: action }
}

const PROGRAM: [sock_filter; 10] = [
    load(ARCH_AT),
    if_equal(ARCH, 0, 6),
    load(NUMBER_AT),
    if_equal(libc::SYS_bind as u32, 5, 0),
    if_equal(libc::SYS_listen as u32, 4, 0),
    if_equal(libc::SYS_shutdown as u32, 0, 2),
    load(SECOND_AT),
    if_equal(libc::SHUT_WR as u32, 0, 1),
    give(libc::SECCOMP_RET_ALLOW),
    give(libc::SECCOMP_RET_USER_NOTIF),
];

/// Filters the calls of this thread and of what it executes, for good. Returns the descriptor on which they are answered.
///
/// # Errors
/// When the kernel has no notifications (before 5.0), or the process has a filter with notifications already (`EBUSY`).
#[expect(unsafe_code, reason = "no crate has a safe interface to seccomp notifications")]
pub(crate) fn install() -> io::Result<OwnedFd> {
    let mut program = PROGRAM;
    let filter = sock_fprog { len: PROGRAM.len() as u16, filter: program.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: the kernel reads `filter` and the instructions that it points to during the call; both are live, and the
    // length is that of the array.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    let descriptor = Errno::result(descriptor)?;
    // SAFETY: the kernel has just made this descriptor for this process, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}
