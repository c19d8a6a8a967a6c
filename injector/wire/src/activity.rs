//! How many client connections an instance has open, in memory that it shares with the agent.
//!
//! The function counts in one page, and the agent reads it when it needs the number: no message, no wakeup.
//! Measured, that costs about one part in 600 of telling every change by a message of its own, even
//! without the wakeups (`what_a_change_costs` in the tests).
//!
//! The page is a memfd of [`PAGE_BYTES`] bytes, all zero at first, sealed so that its size cannot
//! change. It begins with, in the byte order of the machine, each a plain atomic integer:
//!
//! ```text
//! offset  size
//!      0     4  counting    1 from the moment on that the function counts, 2 when the agent does, else 0
//!      4     4  open        client connections that are open now
//!      8     8  accepted    client connections ever accepted
//!     16     8  changed_ns  CLOCK_MONOTONIC of the last change of `open`
//! ```
//!
//! To open: add 1 to `accepted`, raise `changed_ns`, add 1 to `open`. To close: raise `changed_ns`,
//! take 1 from `open`. In this order a reader that sees the new `open` sees the others changed too (release, acquire).
//! The rest of the page is zero and reserved.
//!
//! Neither side trusts the other: every bit pattern is a valid value, and reading one never waits.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Size of the memfd, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// The value of `counting` when the function counts every connection.
const COUNTING: u32 = 1;

/// The value of `counting` when the agent counts those that it sees.
const SAMPLED: u32 = 2;

/// The beginning of the page.
#[repr(C)]
struct Counters {
    counting: AtomicU32,
    open: AtomicU32,
    accepted: AtomicU64,
    changed_ns: AtomicU64,
}

const _: () = assert!(size_of::<Counters>() == 24 && size_of::<Counters>() <= PAGE_BYTES);

/// One page shared by the agent and one instance.
#[derive(Debug)]
pub struct Activity(NonNull<c_void>);

/// What the agent reads. The instance can write any values: trust them as far as a message of the instance, and expect
/// times in the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivityReading {
    /// Client connections that are open; none while the function does not count them.
    pub open: Option<u32>,
    /// Client connections ever accepted. If they are sampled, those that were seen.
    pub accepted: u64,
    /// The agent counts what it sees: connections that come and go between two looks are missing.
    pub sampled: bool,
    /// When the number of open ones last changed, in nanoseconds of `CLOCK_MONOTONIC`; 0 if never.
    pub changed_ns: u64,
}

impl Activity {
    /// A new page, and the descriptor by which the instance gets it (and a later agent, again).
    ///
    /// # Errors
    /// When the process has no descriptors left, or the machine no memory.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let page = memfd_create(c"headstart-activity", flags)?;
        nix::unistd::ftruncate(&page, PAGE_BYTES.try_into().unwrap_or(i64::MAX))?;
        fcntl(&page, FcntlArg::F_ADD_SEALS(seals()))?;
        Ok((Self::map(&page)?, page))
    }

    /// A page that the other side made. The descriptor is not needed afterwards.
    ///
    /// # Errors
    /// `InvalidInput` when it is not such a page: its size could change under the mapping, and
    /// access beyond the end kills the process (`SIGBUS`). Else when it cannot be mapped.
    pub fn adopt(page: OwnedFd) -> io::Result<Self> {
        // Only a memfd has seals, and they are checked first: after them the size stays what it is.
        let found = fcntl(&page, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
        let size = nix::sys::stat::fstat(&page)?.st_size;
        if !found.is_ok_and(|found| found.contains(seals())) || usize::try_from(size) != Ok(PAGE_BYTES) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no sealed activity page"));
        }
        Self::map(&page)
    }

    #[expect(unsafe_code, reason = "shared memory has no safe interface")]
    fn map(page: &OwnedFd) -> io::Result<Self> {
        let length = NonZeroUsize::new(PAGE_BYTES).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice changes no memory that exists. The
        // file has PAGE_BYTES bytes, and its seals keep them.
        let place = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, page, 0) }?;
        Ok(Self(place))
    }

    #[expect(unsafe_code, reason = "shared memory has no safe interface")]
    fn counters(&self) -> &Counters {
        // SAFETY: the mapping begins on a page boundary, is longer than `Counters` and lives as long
        // as `self`. Its fields are atomics, for which every bit pattern is valid, and which another
        // process may change at any time.
        unsafe { self.0.cast::<Counters>().as_ref() }
    }

    /// Turns counting on: from here on the agent can use the numbers.
    pub fn counts(&self) {
        self.counters().counting.store(COUNTING, Ordering::Release);
    }

    /// A client's connection was accepted.
    pub fn opened(&self, now_ns: u64) {
        let counters = self.counters();
        counters.accepted.fetch_add(1, Ordering::Relaxed);
        counters.changed_ns.fetch_max(now_ns, Ordering::Relaxed);
        counters.open.fetch_add(1, Ordering::AcqRel);
    }

    /// A client's connection is closed. With none open that changes nothing.
    pub fn closed(&self, now_ns: u64) {
        let counters = self.counters();
        counters.changed_ns.fetch_max(now_ns, Ordering::Relaxed);
        // Fails only at 0: then nothing is subtracted.
        let _ = counters.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| open.checked_sub(1));
    }

    /// The agent has looked: so many connections are open, and so many more than at the last look were accepted.
    pub fn sample(&self, open: u32, accepted: u64, now_ns: u64) {
        let counters = self.counters();
        counters.accepted.fetch_add(accepted, Ordering::Relaxed);
        let before = counters.open.swap(open, Ordering::AcqRel);
        if accepted > 0 || before != open {
            self.touch(now_ns);
        }
        counters.counting.store(SAMPLED, Ordering::Release);
    }

    /// A connection has come or gone.
    pub fn touch(&self, now_ns: u64) {
        self.counters().changed_ns.fetch_max(now_ns, Ordering::Relaxed);
    }

    /// Reads the numbers.
    #[must_use]
    pub fn read(&self) -> ActivityReading {
        let counters = self.counters();
        let counting = counters.counting.load(Ordering::Acquire);
        let open = counters.open.load(Ordering::Acquire);
        ActivityReading {
            open: matches!(counting, COUNTING | SAMPLED).then_some(open),
            accepted: counters.accepted.load(Ordering::Relaxed),
            sampled: counting == SAMPLED,
            changed_ns: counters.changed_ns.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Activity {
    #[expect(unsafe_code, reason = "shared memory has no safe interface")]
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and nothing borrows from it now. It can
        // only fail for arguments that are not such a mapping.
        let _ = unsafe { munmap(self.0, PAGE_BYTES) };
    }
}

#[expect(unsafe_code, reason = "a pointer is neither Send nor Sync by itself")]
// SAFETY: the mapping belongs to the process, not to a thread, and is only unmapped by the owner.
unsafe impl Send for Activity {}

#[expect(unsafe_code, reason = "a pointer is neither Send nor Sync by itself")]
// SAFETY: all access goes through atomics.
unsafe impl Sync for Activity {}

/// The size can never change, nor can the seals.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

#[cfg(test)]
mod tests;
