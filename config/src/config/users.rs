//! A user of its own for each function.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use sha2::{Digest, Sha256};

use crate::Function;

/// Gives each function a user of the range, which is large enough. It follows from the function's name, so that it stays the
/// same when others come and go; only where two names meet, the later one in the alphabet takes the next free user.
pub(super) fn assign(range: &RangeInclusive<u32>, functions: &mut [Function]) {
    let count = u64::from(range.end() - range.start()) + 1;
    let mut taken = HashSet::new();
    let mut by_name: Vec<_> = functions.iter_mut().collect();
    by_name.sort_by(|a, b| a.name.cmp(&b.name));
    for function in by_name {
        let hash = Sha256::digest(&function.name);
        let start = hash.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte)) % count;
        let free = (0..count).map(|step| (start + step) % count).find(|place| taken.insert(*place));
        let place = free.and_then(|place| u32::try_from(place).ok()).unwrap_or_default();
        function.user = range.start() + place;
    }
}
