//! The number of requests of each source, in fixed memory: a count-min sketch (Cormode and Muthukrishnan, 2005).
//!
//! There are two rows of counters. Each source has one cell in each row; the smaller of the two counts is at least
//! the true count. A cell stores the window in which it counted, and starts again in the next one, so no code has
//! to clear it. Under a flood from random sources every cell is busy, and the sketch refuses innocent sources too.
//! A refused source only loses its head start, and a look-up costs the same for any number of sources.

/// Cells of a row, a power of two.
pub const CELLS: usize = 1_024;
/// A window is this power of two of nanoseconds: 1.07 s.
pub const WINDOW_SHIFT: u32 = 30;

/// Two rows of cells; the upper half of a cell is its window, the lower its count.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Sketch {
    /// The rows.
    pub rows: [[u32; CELLS]; 2],
}

impl Default for Sketch {
    fn default() -> Self {
        Self { rows: [[0; CELLS]; 2] }
    }
}

impl Sketch {
    /// Counts one event of the source `hash`, whose 64 bits must be well mixed. False when the source has already
    /// had `limit` events in this window.
    #[inline(always)]
    pub fn pass(&mut self, hash: u64, now_ns: u64, limit: u32) -> bool {
        let window = ((now_ns >> WINDOW_SHIFT) as u32) << 16;
        let first = hash as usize & (CELLS - 1);
        let second = (hash >> 32) as usize & (CELLS - 1);
        let in_first = count(self.rows[0][first], window);
        let in_second = count(self.rows[1][second], window);
        let seen = in_first.min(in_second);
        if seen >= limit.min(0xffff) {
            return false;
        }
        // Conservative update: only the cells that determine the estimate grow.
        self.rows[0][first] = window | in_first.max(seen + 1);
        self.rows[1][second] = window | in_second.max(seen + 1);
        true
    }
}

#[inline(always)]
fn count(cell: u32, window: u32) -> u32 {
    if cell & 0xffff_0000 == window { cell & 0xffff } else { 0 }
}

/// Mixes a source network into 64 bits (the finaliser of SplitMix64, Steele et al. 2014).
#[inline(always)]
pub fn mix(network: u64, seed: u64) -> u64 {
    let mut hash = network ^ seed;
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}
