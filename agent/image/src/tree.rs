//! A directory in which files are made by names that are not to be trusted.
//!
//! The kernel resolves every directory on the way with the root file system as `/` (`RESOLVE_IN_ROOT`, openat2(2)), so that
//! no link and no `..` leads out of it. The last part of a name is never followed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// How deep directories may nest: less than the descriptors that a process has, since to remove them takes one each.
const DEPTH_MAX: usize = 256;

/// How often a look-up is tried again that a rename elsewhere has disturbed.
const LOOKS_MAX: usize = 1000;

/// Files: what the owner may do, and that others may read and execute. Neither set-user-ID, which would work for users of the
/// node too, nor that others may write.
const FILE_MODE: u32 = 0o755;

/// Directories: the sticky bit too.
const DIRECTORY_MODE: u32 = 0o1755;

/// Attributes that are kept. Others, as capabilities of files, mean something to the node.
const XATTRS: &[u8] = b"user.";

/// What a file has beside its content.
#[derive(Default)]
pub(crate) struct Metadata {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// In seconds since 1970.
    pub(crate) mtime: i64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A directory that files of images are made in.
pub(crate) struct Tree {
    root: OwnedFd,
    /// Only root can give files away.
    is_root: bool,
}

/// The parts of a name below the root.
pub(crate) fn parts(name: &[u8]) -> io::Result<Vec<&OsStr>> {
    let parts = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: Vec<_> = parts.map(OsStr::from_bytes).collect();
    if parts.iter().any(|part| *part == "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "its name has \"..\""));
    }
    Ok(parts)
}

impl Tree {
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        Ok(Self { root: File::open(root)?.into(), is_root: rustix::process::geteuid().is_root() })
    }

    /// Makes a directory, or changes the one that is there.
    pub(crate) fn directory(&self, name: &[&OsStr], metadata: &Metadata) -> io::Result<()> {
        let Some((last, parent)) = self.place(name)? else { return Ok(()) };
        if file_type(&parent, last)? != Some(FileType::Directory) {
            remove(parent.as_fd(), last)?;
            rustix::fs::mkdirat(&parent, last, Mode::from_raw_mode(0o700))?;
        }
        let directory = open_directory(parent.as_fd(), last)?;
        self.finish(directory.as_fd(), metadata, DIRECTORY_MODE)
    }

    /// Makes a directory that is not there.
    pub(crate) fn make(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.root, name, Mode::from_raw_mode(0o755))?)
    }

    /// Makes a file with this content, in place of what is there.
    pub(crate) fn file(
        &self,
        name: &[&OsStr],
        metadata: &Metadata,
        content: &mut impl Read,
    ) -> io::Result<()> {
        let (last, parent) = self.fresh(name)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&parent, last, flags, Mode::from_raw_mode(0o600))?);
        io::copy(content, &mut file)?;
        self.finish(file.as_fd(), metadata, FILE_MODE)
    }

    /// Makes a symbolic link, in place of what is there. Where it leads is the business of those who follow it.
    pub(crate) fn symlink(&self, name: &[&OsStr], target: &[u8], metadata: &Metadata) -> io::Result<()> {
        let (last, parent) = self.fresh(name)?;
        rustix::fs::symlinkat(OsStr::from_bytes(target), &parent, last)?;
        if self.is_root {
            let (user, group) = owner(metadata);
            rustix::fs::chownat(&parent, last, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Gives the file `target` another name, in place of what is there.
    pub(crate) fn hard_link(&self, name: &[&OsStr], target: &[&OsStr]) -> io::Result<()> {
        let Some((target, from)) = self.place(target)? else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let (Some(last), false) = (name.last(), file_type(&from, target)?.is_none()) else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the file that it is a link to is not in the image",
            ));
        };
        let (_, to) = self.place(name)?.ok_or(io::ErrorKind::IsADirectory)?;
        // A link to itself must not remove the file.
        if same(&from, target, &to, last)? {
            return Ok(());
        }
        remove(to.as_fd(), last)?;
        Ok(rustix::fs::linkat(&from, target, &to, *last, AtFlags::empty())?)
    }

    /// Makes a FIFO, in place of what is there.
    pub(crate) fn fifo(&self, name: &[&OsStr], metadata: &Metadata) -> io::Result<()> {
        let (last, parent) = self.fresh(name)?;
        let mode = Mode::from_raw_mode(metadata.mode & FILE_MODE);
        rustix::fs::mknodat(&parent, last, FileType::Fifo, mode, 0)?;
        if self.is_root {
            let (user, group) = owner(metadata);
            rustix::fs::chownat(&parent, last, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Removes what is there, with all that is in it. It may be gone already.
    pub(crate) fn remove(&self, name: &[&OsStr]) -> io::Result<()> {
        let Some((last, before)) = name.split_last() else { return Ok(()) };
        match self.look(&before.iter().collect::<PathBuf>()) {
            Ok(parent) => remove(parent.as_fd(), last),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes what is in a directory. It may be gone already.
    pub(crate) fn empty(&self, name: &[&OsStr]) -> io::Result<()> {
        match self.look(&name.iter().collect::<PathBuf>()) {
            // It was opened as a place only.
            Ok(directory) => {
                empty(open_directory(directory.as_fd(), OsStr::new("."))?.as_fd(), DEPTH_MAX + 1)
            }
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The last part of a name and the directory that it is in, which is made if it is not there. `None` for the root.
    fn place<'n>(&self, name: &[&'n OsStr]) -> io::Result<Option<(&'n OsStr, OwnedFd)>> {
        let Some((last, before)) = name.split_last() else { return Ok(None) };
        let parent = self.parent(before)?;
        Ok(Some((*last, parent)))
    }

    /// As [`Self::place`], and nothing is there.
    fn fresh<'n>(&self, name: &[&'n OsStr]) -> io::Result<(&'n OsStr, OwnedFd)> {
        let (last, parent) = self.place(name)?.ok_or(io::ErrorKind::IsADirectory)?;
        remove(parent.as_fd(), last)?;
        Ok((last, parent))
    }

    fn parent(&self, parts: &[&OsStr]) -> io::Result<OwnedFd> {
        match (self.look(&parts.iter().collect::<PathBuf>()), parts.split_last()) {
            (Err(error), Some((last, before))) if error.kind() == io::ErrorKind::NotFound => {
                let parent = self.parent(before)?;
                rustix::fs::mkdirat(&parent, *last, Mode::from_raw_mode(0o755))?;
                check_depth(open_directory(parent.as_fd(), last)?)
            }
            (found, _) => check_depth(found?),
        }
    }

    fn look(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..LOOKS_MAX {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                found => return Ok(found?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    fn finish(&self, file: BorrowedFd<'_>, metadata: &Metadata, modes: u32) -> io::Result<()> {
        if self.is_root {
            let (user, group) = owner(metadata);
            rustix::fs::fchown(file, user, group)?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode & modes))?;
        for (key, value) in metadata.xattrs.iter().filter(|(key, _)| key.starts_with(XATTRS)) {
            match rustix::fs::fsetxattr(file, OsStr::from_bytes(key), value, XattrFlags::empty()) {
                // The file system has none.
                Err(Errno::OPNOTSUPP) => {}
                set => set?,
            }
        }
        let time = Timespec { tv_sec: metadata.mtime, tv_nsec: 0 };
        Ok(rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })?)
    }
}

/// Links may have led deeper than a name says.
fn check_depth(directory: OwnedFd) -> io::Result<OwnedFd> {
    let real = rustix::fs::readlinkat(CWD, format!("/proc/self/fd/{}", directory.as_raw_fd()), Vec::new());
    let depth = real.map(|real| real.to_bytes().iter().filter(|byte| **byte == b'/').count());
    if depth.is_ok_and(|depth| depth < DEPTH_MAX) {
        return Ok(directory);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "directories nest too deep"))
}

fn owner(metadata: &Metadata) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn file_type(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn same(from: &OwnedFd, target: &OsStr, to: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let id = |parent, name| {
        rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map(|s| (s.st_dev, s.st_ino))
    };
    match (id(from, target), id(to, name)) {
        (_, Err(Errno::NOENT)) => Ok(false),
        (one, other) => Ok(one? == other?),
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    remove_within(parent, name, DEPTH_MAX + 1)
}

fn remove_within(parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // POSIX says the one, Linux the other.
        Err(Errno::ISDIR | Errno::PERM) => {
            empty(open_directory(parent, name)?.as_fd(), depth)?;
            Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
        }
        Err(error) => Err(error.into()),
    }
}

fn empty(directory: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("directories nest too deep"))?;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove_within(directory, name, depth)?;
        }
    }
    Ok(())
}
