//! Atomic compare-and-exchange. The instruction set (v3) has it; the core library of this target does not.

use core::cell::Cell;

/// Stores `after` in `word` if it holds `before`, and returns whether it did; atomic.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn exchange(word: &Cell<u64>, before: u64, after: u64) -> bool {
    let mut seen = before;
    // SAFETY: an aligned word that lives as long as the reference.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {after})",
            word = in(reg) word.as_ptr(),
            after = in(reg) after,
            inout("r0") seen,
        );
    }
    seen == before
}

#[cfg(not(target_arch = "bpf"))]
pub(crate) fn exchange(word: &Cell<u64>, before: u64, after: u64) -> bool {
    word.get() == before && word.replace(after) == before
}
