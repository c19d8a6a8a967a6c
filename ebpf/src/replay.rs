//! The connection that first used each tag, in fixed memory: sets of four entries. The tag selects its set. A tag is
//! as good as random, and a client without the key cannot choose it.
//!
//! An entry is dead when its epoch is no longer accepted. A live entry is overwritten only when all four entries of
//! its set are alive, which is rare below ten thousand tags in 90 seconds. An LRU hash would hold a little more, but
//! there a new tag cost 500 ns (five or more cache misses) instead of one cache miss.

use core::cell::Cell;

use crate::auth::recent_epoch;
use crate::maps::PacketFlow;
use crate::sketch::mix;

/// Number of sets, a power of two.
pub const SETS: usize = 16_384;
/// Number of entries in a set.
const WAYS: usize = 4;
/// The bits of an owner that hold the lowest byte of the tag's epoch.
const EPOCH: u64 = 0xff;

/// The entries that one tag may occupy: one cache line.
#[derive(Default)]
#[repr(C)]
pub struct ReplaySet {
    entries: [ReplayEntry; WAYS],
}

#[derive(Default)]
#[repr(C)]
struct ReplayEntry {
    tag: Cell<u64>,
    /// Digest of the connection, see [`owner`]; 0 in an unused entry.
    owner: Cell<u64>,
}

/// The outcome of the use of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagUse {
    /// The tag is new.
    First,
    /// The connection that first used the tag uses it again: a retransmission.
    Again,
    /// Another connection has used the tag, or uses it at this moment.
    Replayed,
}

const _: () = assert!(size_of::<ReplaySet>() == 64);

/// The set of a tag, below [`SETS`].
#[inline(always)]
pub const fn set_of(tag: u64) -> u32 {
    (tag >> 48) as u32 & (SETS as u32 - 1)
}

/// Digest of the connection `flow` that uses a tag of `epoch`. `seed` is secret, so that a client cannot search for
/// a connection with the same digest.
#[inline(always)]
pub fn owner(flow: &PacketFlow, epoch: u64, seed: u64) -> u64 {
    let ports = u64::from(flow.src_port) << 16 | u64::from(flow.dst_port);
    let [src_high, src_low] = flow.src.words();
    let [dst_high, dst_low] = flow.dst.words();
    // These do not depend on each other, so the CPU computes them in parallel.
    let digest = mix(ports, seed)
        ^ mix(src_high, seed.rotate_left(13))
        ^ mix(src_low, seed.rotate_left(26))
        ^ mix(dst_high, seed.rotate_left(39))
        ^ mix(dst_low, seed.rotate_left(52));
    digest & !EPOCH | epoch & EPOCH
}

impl ReplaySet {
    /// Uses `tag` for the connection with the digest `owner`; `now` is the current epoch. `exchange(word, before,
    /// after)` is an atomic compare-and-exchange that returns whether it stored `after`; only the kernel runs this on
    /// several CPUs at once.
    #[inline(always)]
    pub fn claim(
        &self,
        tag: u64,
        owner: u64,
        now: u64,
        exchange: impl FnOnce(&Cell<u64>, u64, u64) -> bool,
    ) -> TagUse {
        let mut free = (tag >> 32) as usize % WAYS;
        for (way, entry) in self.entries.iter().enumerate() {
            let by = entry.owner.get();
            if entry.tag.get() == tag && by != 0 {
                return if by == owner { TagUse::Again } else { TagUse::Replayed };
            }
            if by == 0 || recent_epoch(now, by as u8).is_none() {
                free = way;
            }
        }
        let Some(entry) = self.entries.get(free) else { return TagUse::Replayed };
        let before = entry.tag.get();
        // Of two CPUs with the same tag, one gets the entry; the exchange of the other fails.
        if before == tag || !exchange(&entry.tag, before, tag) {
            return TagUse::Replayed;
        }
        entry.owner.set(owner);
        TagUse::First
    }
}
