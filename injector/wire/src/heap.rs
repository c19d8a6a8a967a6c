//! The heaps of the C library: how many there are.

#[cfg(target_env = "gnu")]
use nix::libc;

/// Heaps of the process (mallopt(3), `M_ARENA_MAX`). Threads share them by turns; what a thread frees it takes again from a
/// cache of its own, without a lock.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// From now on threads share two heaps. Left alone, glibc makes one for each thread, up to eight per processor, and each
/// keeps what its thread needed once: a thread that has read a configuration keeps 0.6 MiB and may never work again.
#[expect(unsafe_code, reason = "no crate has a safe interface to mallopt")]
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}
