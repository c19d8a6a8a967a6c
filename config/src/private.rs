//! Files that only their owner may read or change, and what must not be changed by others.
//!
//! A file is checked as it was opened, not by its path, which could name another file a moment later.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `O_NONBLOCK` (asm-generic/fcntl.h), so that a FIFO of this name does not stop the agent.
const O_NONBLOCK: i32 = 0o4000;

/// Bits of a mode (inode(7)) with which others than the owner may write, and the sticky bit.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// A private file that cannot be used.
#[derive(Debug)]
pub struct PrivateFileError {
    /// The file.
    pub path: PathBuf,
    /// What it should hold.
    pub what: &'static str,
    /// What is wrong with it.
    pub fault: PrivateFileFault,
}

/// What is wrong with a private file.
#[derive(Debug)]
pub enum PrivateFileFault {
    /// It does not exist, or this process may not read it.
    Unreadable(io::Error),
    /// A directory, a FIFO or a device.
    NotAFile,
    /// Others than its owner may do something with it; the permission bits.
    Open(u32),
    /// It belongs to neither root nor the effective user of this process; the owner's user ID.
    Owner(u32),
    /// It does not belong to root, and who runs this process cannot be told without `/proc`.
    NoProc(io::Error),
    /// It is larger than so many bytes.
    TooLarge(u64),
}

impl std::fmt::Display for PrivateFileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, what) = (self.path.display(), self.what);
        match &self.fault {
            PrivateFileFault::Unreadable(error) if error.kind() == io::ErrorKind::NotFound => {
                write!(f, "{path}: {error}: create it with {what}, and `chmod 600 {path}`")
            }
            PrivateFileFault::Unreadable(error) => {
                write!(f, "{path}: {error}: `chown` it to the user that runs this program")
            }
            PrivateFileFault::NotAFile => {
                write!(f, "{path} is not a regular file: name the file that holds {what}")
            }
            PrivateFileFault::Open(mode) => write!(
                f,
                "{path} is open to others than its owner (mode {mode:03o}): `chmod 600 {path}`, and replace what it \
                 holds if others may have read it"
            ),
            PrivateFileFault::Owner(uid) => write!(
                f,
                "{path} belongs to user {uid}, who could change it: `chown` it to root or to the user that runs this \
                 program"
            ),
            PrivateFileFault::NoProc(error) => write!(
                f,
                "{path} may belong to another user (/proc/self: {error}): mount /proc, or `chown` it to root"
            ),
            PrivateFileFault::TooLarge(max) => {
                write!(f, "{path} is larger than {} KiB: name the file that holds {what}", max >> 10)
            }
        }
    }
}

impl std::error::Error for PrivateFileError {}

/// Reads a regular file of at most `max` bytes that belongs to root or to the user of this process, and that no other
/// user may read or write. `what` it should hold.
///
/// # Errors
/// The first thing that is wrong with the file, and what to do about it.
pub fn read_private(path: &Path, what: &'static str, max: u64) -> Result<Vec<u8>, PrivateFileError> {
    read(path, max).map_err(|fault| PrivateFileError { path: path.to_owned(), what, fault })
}

fn read(path: &Path, max: u64) -> Result<Vec<u8>, PrivateFileFault> {
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(PrivateFileFault::Unreadable)?;
    let metadata = file.metadata().map_err(PrivateFileFault::Unreadable)?;
    check(&metadata)?;
    // With room for all of it, so that no copy stays where it grew.
    let mut text = Vec::with_capacity(usize::try_from(metadata.len().min(max)).unwrap_or(0) + 1);
    file.take(max + 1).read_to_end(&mut text).map_err(PrivateFileFault::Unreadable)?;
    if text.len() as u64 > max {
        return Err(PrivateFileFault::TooLarge(max));
    }
    Ok(text)
}

fn check(metadata: &Metadata) -> Result<(), PrivateFileFault> {
    if !metadata.is_file() {
        return Err(PrivateFileFault::NotAFile);
    }
    // An access control list shows as bits of the group too (acl(5)).
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PrivateFileFault::Open(mode));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != this_user().map_err(PrivateFileFault::NoProc)?.uid() {
        return Err(PrivateFileFault::Owner(owner));
    }
    Ok(())
}

/// The directory of a process belongs to its effective user and group (proc(5)).
fn this_user() -> io::Result<Metadata> {
    fs::metadata("/proc/self")
}

/// Whether only root and the user of this process can change what is at `path`: neither the file or directory itself,
/// nor a directory on the way to it, belongs to another user or may be written by one. In a sticky directory, as `/tmp`,
/// others cannot replace what is not theirs.
///
/// # Errors
/// What is wrong, and what to do about it.
pub fn check_place(path: &Path) -> Result<(), String> {
    let real = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    real.ancestors().try_for_each(|part| {
        let metadata = fs::metadata(part).map_err(|error| format!("{}: {error}", part.display()))?;
        check_owner(&metadata, part)
    })
}

/// As [`check_place`], of what was opened.
pub(crate) fn check_owner(metadata: &Metadata, path: &Path) -> Result<(), String> {
    let shown = path.display();
    let this = this_user()
        .map_err(|error| format!("{shown}: whose it may be cannot be told: /proc/self: {error}"))?;
    let owner = metadata.uid();
    if owner != 0 && owner != this.uid() {
        return Err(format!("{shown} belongs to user {owner}, who could change it: `chown root {shown}`"));
    }
    let mode = metadata.mode() & 0o7777;
    let own_group = metadata.gid() == 0 || metadata.gid() == this.gid();
    let group_writes = mode & GROUP_WRITES != 0 && !own_group;
    let sticky = metadata.is_dir() && mode & STICKY != 0;
    if (group_writes || mode & OTHERS_WRITE != 0) && !sticky {
        return Err(format!("{shown} can be changed by other users (mode {mode:03o}): `chmod go-w {shown}`"));
    }
    Ok(())
}
