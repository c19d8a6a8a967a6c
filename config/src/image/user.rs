//! The user of an image.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::function::NOBODY_ID;
use crate::host::resolve_in;

/// The largest file of users or groups that is read, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// The user and group of an image with this root file system, by number. Those that it does not say are root's.
///
/// # Errors
/// When the image does not know the user.
pub(crate) fn user_in(rootfs: &Path, text: &str) -> Result<(u32, u32), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let users = read(rootfs, "/etc/passwd");
    let found = match user.parse::<u32>() {
        Ok(number) => Some((number, line_of(&users, 2, user).and_then(|line| field(line, 3)))),
        Err(_) if user.is_empty() => Some((0, None)),
        Err(_) => line_of(&users, 0, user).and_then(|line| Some((field(line, 2)?, field(line, 3)))),
    };
    let Some((user, own)) = found else {
        return Err(format!("its user {user:?} is not in its /etc/passwd"));
    };
    let group = match group {
        None => own,
        Some(group) => Some(match group.parse() {
            Ok(number) => number,
            Err(_) => line_of(&read(rootfs, "/etc/group"), 0, group)
                .and_then(|line| field(line, 2))
                .ok_or_else(|| format!("its group {group:?} is not in its /etc/group"))?,
        }),
    };
    // The last number is no user (chown(2)).
    let known = |number: u32| if number == u32::MAX { 0 } else { number };
    Ok((known(user), group.map_or(0, known)))
}

/// Who the programs of an image are for the node, which has this user and group. Nothing is root.
pub(crate) fn unprivileged((user, group): (u32, u32)) -> (u32, u32) {
    match (user, group) {
        (0, _) => (NOBODY_ID, NOBODY_ID),
        (user, 0) => (user, user),
        both => both,
    }
}

fn read(rootfs: &Path, path: &str) -> String {
    let mut text = Vec::new();
    // One that is not there, or no file, knows no user.
    let file = resolve_in(rootfs, Path::new(path)).ok().filter(|path| path.is_file());
    if let Some(file) = file.and_then(|path| File::open(path).ok()) {
        let _ = file.take(FILE_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The line whose field at `at` is `value` (passwd(5), group(5)).
fn line_of<'a>(text: &'a str, at: usize, value: &str) -> Option<&'a str> {
    text.lines().find(|line| line.split(':').nth(at) == Some(value))
}

fn field(line: &str, at: usize) -> Option<u32> {
    line.split(':').nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_in_the_image_and_are_never_root() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let users = "root:x:0:0::/:/bin/sh\nnode:x:1000:1001::/:/bin/sh\nshift:x:1002:0::/:/bin/sh\n";
        std::fs::write(etc.join("passwd"), users).unwrap();
        std::fs::write(etc.join("group"), "web:x:33:\n").unwrap();
        let nobody = (NOBODY_ID, NOBODY_ID);
        for (text, expected) in [
            ("", nobody),
            ("root", nobody),
            ("0:0", nobody),
            ("node", (1000, 1001)),
            ("1000", (1000, 1001)),
            ("node:web", (1000, 33)),
            ("7", (7, 7)),
            ("7:8", (7, 8)),
            ("shift", (1002, 1002)),
            ("7:0", (7, 7)),
        ] {
            assert_eq!(user_in(root.path(), text).map(unprivileged), Ok(expected), "{text}");
        }
        for (text, own) in [("", (0, 0)), ("shift", (1002, 0)), ("7", (7, 0)), ("node", (1000, 1001))] {
            assert_eq!(user_in(root.path(), text), Ok(own), "{text}");
        }
        assert!(user_in(root.path(), "app").unwrap_err().contains("/etc/passwd"));
        assert!(user_in(root.path(), "node:app").unwrap_err().contains("/etc/group"));
    }
}
