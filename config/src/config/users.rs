//! Users of its own for each function.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use sha2::{Digest, Sha256};

use crate::Function;

/// Of one function: root of its user namespace, and after it the user that runs its program.
pub(crate) const USERS_EACH: usize = 2;

/// Gives each function users of the range, which is large enough. They follow from the function's name, so that they stay the
/// same when others come and go; only where two names meet, the later one in the alphabet takes the next free ones.
pub(super) fn assign(range: &RangeInclusive<u32>, namespaces: bool, functions: &mut [Function]) {
    let each = USERS_EACH as u32;
    let count = (u64::from(range.end() - range.start()) + 1) / u64::from(each);
    let mut taken = HashSet::new();
    let mut by_name: Vec<_> = functions.iter_mut().filter(|function| function.runtime.has_users()).collect();
    by_name.sort_by(|a, b| a.name.cmp(&b.name));
    for function in by_name {
        let hash = Sha256::digest(&function.name);
        let start = hash.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte)) % count;
        let free = (0..count).map(|step| (start + step) % count).find(|place| taken.insert(*place));
        let place = free.and_then(|place| u32::try_from(place).ok()).unwrap_or_default();
        let root = range.start() + place * each;
        function.user = root + 1;
        function.group = function.user;
        let namespaced = namespaces && function.runtime.has_user_namespaces();
        function.namespace_root = namespaced.then_some(root);
    }
}
