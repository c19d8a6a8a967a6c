//! Which connection used a tag first, in fixed memory: sets of four entries, found by the tag, which is as
//! good as random and cannot be chosen by whoever has no key.
//!
//! An entry is dead when its epoch is no longer accepted. A live one is overwritten only where four tags of one
//! set are alive, that is rarely below some ten thousand tags in 90 seconds. An LRU hash would hold a
//! little more, but a new tag cost 500 ns there: five or more cache misses, against one here.

use core::cell::Cell;

use crate::auth::recent_epoch;
use crate::maps::Flow;
use crate::sketch::mix;

/// Sets, a power of two.
pub const SETS: usize = 16_384;
/// Entries of a set.
const WAYS: usize = 4;
/// The part of an owner that is the tag's epoch, its lowest byte.
const EPOCH: u64 = 0xff;

/// One cache line.
#[derive(Default)]
#[repr(C)]
pub struct Set {
    entries: [Entry; WAYS],
}

#[derive(Default)]
#[repr(C)]
struct Entry {
    tag: Cell<u64>,
    /// Digest of the connection, see [`owner`]; 0 in an entry that was never used.
    owner: Cell<u64>,
}

/// What came of the use of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nobody had used it.
    First,
    /// By the connection that used it first: a retransmission.
    Again,
    /// Another connection had used it, or is using it this very moment.
    Replayed,
}

const _: () = assert!(size_of::<Set>() == 64);

/// The set of a tag, below [`SETS`].
#[inline(always)]
pub const fn set_of(tag: u64) -> u32 {
    (tag >> 48) as u32 & (SETS as u32 - 1)
}

/// Who uses a tag of `epoch`. `seed` is secret: nobody can look for a connection of the same digest.
#[inline(always)]
pub fn owner(flow: &Flow, epoch: u64, seed: u64) -> u64 {
    let ports = u64::from(flow.src_port) << 16 | u64::from(flow.dst_port);
    let [src_high, src_low] = flow.src.words();
    let [dst_high, dst_low] = flow.dst.words();
    // Side by side, not one after the other: the CPU does it in the time of one.
    let digest = mix(ports, seed)
        ^ mix(src_high, seed.rotate_left(13))
        ^ mix(src_low, seed.rotate_left(26))
        ^ mix(dst_high, seed.rotate_left(39))
        ^ mix(dst_low, seed.rotate_left(52));
    digest & !EPOCH | epoch & EPOCH
}

impl Set {
    /// Uses `tag`; `now` is the current epoch. `exchange` stores its last argument in the word if that still
    /// holds the one before, at once, and says whether it did; only the kernel has other CPUs to mind.
    #[inline(always)]
    pub fn claim(
        &self,
        tag: u64,
        owner: u64,
        now: u64,
        exchange: impl FnOnce(&Cell<u64>, u64, u64) -> bool,
    ) -> Use {
        let mut free = (tag >> 32) as usize % WAYS;
        for (way, entry) in self.entries.iter().enumerate() {
            let by = entry.owner.get();
            if entry.tag.get() == tag && by != 0 {
                return if by == owner { Use::Again } else { Use::Replayed };
            }
            if by == 0 || recent_epoch(now, by as u8).is_none() {
                free = way;
            }
        }
        let Some(entry) = self.entries.get(free) else { return Use::Replayed };
        let before = entry.tag.get();
        // Of two CPUs with the same tag, one gets the entry, and the other sees that it is too late.
        if before == tag || !exchange(&entry.tag, before, tag) {
            return Use::Replayed;
        }
        entry.owner.set(owner);
        Use::First
    }
}
