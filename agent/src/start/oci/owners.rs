//! Whose the files of a writable root file system are. A container's program is no root; so that it can change what is root's
//! in the image, as images expect, those files are shown as its own.

use std::collections::BTreeMap;

use headstart_config::NOBODY_ID;

use crate::start::ContainerSpec;

/// The highest numbers of users, which no file has. The very last is no user (chown(2)).
const UNUSED: [u32; 2] = [u32::MAX - 1, u32::MAX - 2];

/// The lines of uid_map and of gid_map (user_namespaces(7)) which show what belongs to `owner` as the function's. `None`: it
/// is the function's.
pub(super) fn maps(owner: (u32, u32), spec: &ContainerSpec) -> Option<(String, String)> {
    if owner == (spec.user, spec.group) {
        return None;
    }
    let root = spec.namespace_root.unwrap_or(NOBODY_ID);
    Some((map(owner.0, spec.user, root), map(owner.1, spec.group, root)))
}

/// Shows `owner` as `user`, and root, if that is another, as `root`: to show anything as root would need `CAP_SETFCAP`
/// (`verify_root_map` of the kernel). All others stay, except those who would now be one of these.
fn map(owner: u32, user: u32, root: u32) -> String {
    let mut shown = BTreeMap::from([(owner, user)]);
    if owner != 0 {
        shown.insert(0, if root == user { UNUSED[0] } else { root });
    }
    let taken: Vec<u32> = shown.values().copied().collect();
    for (number, unused) in taken.into_iter().zip(UNUSED) {
        shown.entry(number).or_insert(unused);
    }
    let mut lines = String::new();
    let mut next = 0;
    for (number, as_whom) in shown.into_iter().filter(|(number, _)| !UNUSED.contains(number)) {
        if number > next {
            lines += &format!("{next} {next} {}\n", number - next);
        }
        lines += &format!("{number} {as_whom} 1\n");
        next = number + 1;
    }
    lines + &format!("{next} {next} {}\n", UNUSED[1] - next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is seen where `number` is on the disk.
    fn seen(lines: &str, number: u32) -> Option<u32> {
        let line = |line: &str| -> [u32; 3] {
            let numbers: Vec<u32> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            numbers.try_into().unwrap()
        };
        let mut found =
            lines.lines().map(line).filter(|[from, _, count]| number.wrapping_sub(*from) < *count);
        let [from, to, _] = found.next()?;
        assert!(found.next().is_none(), "{lines}");
        Some(to + (number - from))
    }

    #[test]
    fn what_is_the_owners_is_the_functions_and_nothing_is_roots() {
        let highest = UNUSED[1] - 1;
        for (owner, user, root) in [
            (0, 65_534, 65_534),
            (0, 200_001, 200_000),
            (101, 200_001, 200_000),
            (101, 200_001, 65_534),
            (1002, 1002, 65_534),
            (65_534, 65_534, 65_534),
            (65_534, 200_001, 65_534),
            (7, highest, 65_534),
        ] {
            let lines = map(owner, user, root);
            assert_eq!(seen(&lines, owner), Some(user), "{lines}");
            let mut all: Vec<_> =
                [0, 1, 7, 101, 1000, 1002, 65_533, 65_534, 65_535, 200_000, 200_001, 200_002, highest]
                    .map(|number| seen(&lines, number).unwrap())
                    .into();
            assert!(!all.contains(&0), "{lines}");
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 13, "two are shown as one: {lines}");
            assert_eq!(seen(&lines, 33), Some(33));
        }
    }
}
