//! `/etc/subuid` and `/etc/subgid`: who may have which users in a user namespace. The kernel does not read them.
//! Programs that make users or namespaces look there for numbers that are free.

use std::fs;
use std::ops::RangeInclusive;

/// The name under which an operator reserves the users of functions there.
const OWN: &str = "headstart";

/// Another name to which this node gives users of this range, and what to do.
pub(crate) fn reserved_by_others(uids: &RangeInclusive<u32>) -> Option<String> {
    let lines = |file: &str| fs::read_to_string(file).unwrap_or_default();
    ["/etc/subuid", "/etc/subgid"].iter().find_map(|file| reserved_in(uids, file, &lines(file)))
}

/// Lines are `NAME:FIRST:COUNT` (subuid(5)).
fn reserved_in(uids: &RangeInclusive<u32>, file: &str, lines: &str) -> Option<String> {
    let meets = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let (first, count) = numbers.split_once(':')?;
        let (first, count): (u64, u64) = (first.parse().ok()?, count.trim().parse().ok()?);
        let last = first.checked_add(count.checked_sub(1)?)?;
        let meets = first <= u64::from(*uids.end()) && last >= u64::from(*uids.start());
        (name != OWN && meets).then(|| format!("{first} to {last} to {name}"))
    };
    let given = lines.lines().find_map(meets)?;
    Some(format!(
        "{file} gives {given}: choose another range, and write it there as \"{OWN}:FIRST:COUNT\", so that it is given to no other user"
    ))
}

#[cfg(test)]
mod tests {
    use super::reserved_in;

    #[test]
    fn the_ranges_of_others_are_found() {
        let of = |lines: &str| reserved_in(&(200_000..=265_535), "/etc/subuid", lines);
        let free = [
            "",
            "alice:100000:100000",
            "alice:265536:65536",
            "alice:200000:0",
            "headstart:200000:65536",
            "odd",
        ];
        for lines in free {
            assert_eq!(of(lines), None, "{lines}");
        }
        for lines in ["b:1:1\nalice:165536:65536", "alice:265535:1", "alice:200000:1", "alice:0:4294967295"] {
            let said = of(lines).unwrap();
            assert!(said.contains(" to alice: choose another range"), "{said}");
        }
    }
}
