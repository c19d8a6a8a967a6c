//! Advice to the kernel about the memory of another process: process_madvise(2), Linux 5.10 and later, and 5.15 for
//! `MADV_WILLNEED`.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

/// Ranges in one call (`UIO_MAXIOV`, readv(2)).
pub const RANGES_MAX: usize = 1024;

/// What the kernel should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryAdvice {
    /// Write pages to swap, and drop those of files (`MADV_PAGEOUT`).
    PageOut,
    /// Read pages from swap and files (`MADV_WILLNEED`).
    WillNeed,
}

/// Gives advice about ranges of a process's addresses, at most [`RANGES_MAX`]. Returns how many bytes it was taken for; the
/// kernel stops at a range that it cannot treat.
///
/// # Errors
/// Those of process_madvise(2): `EPERM` without `CAP_SYS_NICE` and the right to trace the process, `ESRCH` when it has ended,
/// `EINVAL` or `ENOMEM` when the first range is locked or not mapped.
#[expect(unsafe_code, reason = "no crate knows the call")]
pub fn advise(process: BorrowedFd<'_>, ranges: &[Range<u64>], advice: MemoryAdvice) -> io::Result<u64> {
    let vectors: Vec<libc::iovec> = ranges
        .iter()
        .take(RANGES_MAX)
        .map(|range| libc::iovec {
            // An address of the other process: nothing here is reached by it.
            iov_base: std::ptr::without_provenance_mut(usize::try_from(range.start).unwrap_or(usize::MAX)),
            iov_len: usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0),
        })
        .collect();
    let advice = match advice {
        MemoryAdvice::PageOut => libc::MADV_PAGEOUT,
        MemoryAdvice::WillNeed => libc::MADV_WILLNEED,
    };
    // SAFETY: the kernel reads the vectors, which live until the call returns. Both kinds of advice leave the contents of the
    // other process's memory as they are.
    let advised = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len(),
            advice,
            0_u32,
        )
    };
    u64::try_from(advised).map_err(|_| io::Error::last_os_error())
}
