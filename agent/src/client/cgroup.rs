//! Finds cgroup v2 directories, and makes a cgroup for one command.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::ClientError;

/// Most rounds of moving processes out of the cgroup: a process can fork during a round.
const ROUNDS_MAX: usize = 16;

/// Opens a directory of cgroup v2.
///
/// # Errors
/// [`ClientError::OpenCgroup`] or [`ClientError::NotCgroup`], which name the mounts of cgroup v2.
pub(super) fn open(path: &Path) -> Result<File, ClientError> {
    let mounts = || mounts().into_iter().map(|mount| mount.point).collect();
    let file = File::open(path).map_err(|error| ClientError::OpenCgroup {
        path: path.to_owned(),
        error,
        mounts: mounts(),
    })?;
    let in_v2 = fstatfs(&file).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if in_v2 && file.metadata().is_ok_and(|file| file.is_dir()) {
        return Ok(file);
    }
    Err(ClientError::NotCgroup { path: path.to_owned(), mounts: mounts() })
}

/// A cgroup for one command, below this process's own. Dropping it releases what still runs in it and
/// removes it.
pub(super) struct CommandCgroup {
    path: PathBuf,
    /// The cgroup of this process, to which remaining processes move.
    home: PathBuf,
}

impl CommandCgroup {
    /// # Errors
    /// [`ClientError::NoCgroup`], or [`ClientError::OwnCgroup`] when it cannot be created.
    pub(super) fn new() -> Result<Self, ClientError> {
        let home = own().ok_or(ClientError::NoCgroup)?;
        // A cgroup of this name is from a process that was killed, or is in another PID namespace.
        for attempt in 0..ROUNDS_MAX {
            let path = home.join(format!("headstart-tag-{}-{attempt}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, home }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(refused("cannot create the cgroup", &path)(error)),
            }
        }
        Err(refused("cannot create a cgroup in", &home)(io::ErrorKind::AlreadyExists.into()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` in the cgroup: processes that it starts are in it from the beginning, and this process returns to its
    /// own afterwards. (A child that moves itself would need a second program, or `unsafe`.)
    ///
    /// # Errors
    /// [`ClientError::OwnCgroup`] when this process cannot be moved in, or back.
    pub(super) fn inside<T>(&self, work: impl FnOnce() -> T) -> Result<T, ClientError> {
        enter(&self.path)?;
        let result = work();
        enter(&self.home)?;
        Ok(result)
    }

    /// Moves remaining processes to the cgroup of this process.
    fn evacuate(&self) -> io::Result<()> {
        for _ in 0..ROUNDS_MAX {
            let processes = fs::read_to_string(self.path.join("cgroup.procs"))?;
            if processes.is_empty() {
                return Ok(());
            }
            for process in processes.lines() {
                // The kernel refuses a process that has ended; the next round no longer lists it.
                let _ended = fs::write(self.home.join("cgroup.procs"), process);
            }
        }
        Ok(())
    }
}

impl Drop for CommandCgroup {
    fn drop(&mut self) {
        if let Err(error) = self.evacuate().and_then(|()| fs::remove_dir(&self.path)) {
            eprintln!(
                "headstart: cannot remove the cgroup {}: {error}; remove it with rmdir when no process is in it",
                self.path.display()
            );
        }
    }
}

fn enter(cgroup: &Path) -> Result<(), ClientError> {
    let procs = cgroup.join("cgroup.procs");
    // 0 is the writing process (Documentation/admin-guide/cgroup-v2.rst).
    fs::write(&procs, "0").map_err(refused("cannot move into", cgroup))
}

fn refused(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClientError {
    let path = path.to_owned();
    move |error| ClientError::OwnCgroup { what, path, error }
}

/// The directory of this process's own cgroup, or the top of the hierarchy if no mount shows it.
fn own() -> Option<PathBuf> {
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
struct Mount {
    /// The cgroup that is mounted.
    root: PathBuf,
    /// The mount point.
    point: PathBuf,
}

fn mounts() -> Vec<Mount> {
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
