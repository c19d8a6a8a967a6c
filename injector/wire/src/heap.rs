//! The heap of the C library: what it does with memory that was freed.

#[cfg(target_env = "gnu")]
use nix::libc;

/// Bytes that may stay free at the end of a heap: the value that glibc begins with (mallopt(3), `M_TRIM_THRESHOLD`).
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: libc::c_int = 128 * 1024;

/// From now on freed memory goes back to the kernel. Left alone, glibc raises its threshold to twice the largest block that was
/// freed so far, and each thread's heap keeps as much for ever.
#[expect(unsafe_code, reason = "no crate has a safe interface to mallopt")]
pub fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
    }
}
