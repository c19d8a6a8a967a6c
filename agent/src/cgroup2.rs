//! Where cgroup v2 is, and this process in it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Moves this process into a cgroup.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn enter(cgroup: &Path) -> io::Result<()> {
    // 0 is the writing process (Documentation/admin-guide/cgroup-v2.rst).
    fs::write(cgroup.join("cgroup.procs"), "0")
}

/// Whether this process is the only one in a cgroup.
///
/// # Errors
/// When the cgroup cannot be read.
pub(crate) fn is_alone(cgroup: &Path) -> io::Result<bool> {
    let own = std::process::id().to_string();
    Ok(fs::read_to_string(cgroup.join("cgroup.procs"))?.lines().all(|pid| pid == own))
}

/// The directory of this process's own cgroup, or the top of the hierarchy if no mount shows it.
pub(crate) fn own() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    // "/.." is above the root of this cgroup namespace (cgroup_namespaces(7)).
    let inside = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let inside = if inside.starts_with("/..") { "/" } else { inside };
    let mounts = mounts();
    let visible = mounts.iter().find_map(|mount| {
        let path = mount.point.join(Path::new(inside).strip_prefix(&mount.root).ok()?);
        path.is_dir().then_some(path)
    });
    visible.or_else(|| mounts.into_iter().next().map(|mount| mount.point))
}

/// A mount of cgroup v2.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The cgroup that is mounted.
    pub(crate) root: PathBuf,
    /// The mount point.
    pub(crate) point: PathBuf,
}

/// Every mount.
pub(crate) fn mounts() -> Vec<Mount> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// The lines of `/proc/self/mountinfo` (proc_pid_mountinfo(5)) that are of type `cgroup2`.
fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (mount, source) = line.split_once(" - ")?;
        if source.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3).map(unescape);
        Some(Mount { root: fields.next()?, point: fields.next()? })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_version_2_are_found_and_blanks_are_read() {
        let mountinfo = "\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            50 31 0:38 /a /mnt/a\\040b\\134c rw shared:1 master:2 - cgroup2 none rw\n\
            51 31 0:39 / /mnt/cgroup2 rw - tmpfs cgroup2 rw\n\
            garbage\n\n1 - cgroup2\n";
        let mount = |root: &str, point: &str| Mount { root: root.into(), point: point.into() };
        assert_eq!(
            parse_mounts(mountinfo),
            [mount("/", "/sys/fs/cgroup/unified"), mount("/a", "/mnt/a b\\c")]
        );
    }

    #[test]
    fn what_is_not_an_escape_stays() {
        for text in ["/a\\", "/a\\1", "/a\\9999", "/a\\400", "/ä"] {
            assert_eq!(unescape(text), Path::new(text));
        }
    }
}
