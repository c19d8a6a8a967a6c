//! How often each source has asked, in fixed memory: a count-min sketch (Cormode and Muthukrishnan, 2005).
//!
//! Two rows of counters, each source in one cell of each; the smaller of the two is at least the true count.
//! A cell remembers the window it counted in and starts over in the next, so nothing is ever cleared. Under
//! a flood from random sources every cell is busy, and innocent sources are refused too: a lookup costs the
//! same for any number of sources, and a refused source only loses its head start.

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
    /// Counts one event of the source `hash` (all 64 bits of it must be well mixed); false when the source
    /// had `limit` in this window already.
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
        // Conservative update: only what determines the estimate grows.
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
