//! Paths of unix sockets, however long they are.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The path of a unix socket has at most 107 bytes (unix(7)). Through its open directory it is short.
pub(super) struct SocketPath {
    short: PathBuf,
    _directory: File,
}

impl SocketPath {
    /// # Errors
    /// When the directory is not there, or cannot be reached.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let parts = path.parent().zip(path.file_name());
        let (directory, name) = parts.ok_or(io::ErrorKind::InvalidInput)?;
        // To search a directory needs less than to read it.
        let directory = OpenOptions::new().read(true).custom_flags(nix::libc::O_PATH).open(directory)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Self { short, _directory: directory })
    }

    /// Valid as long as this lives.
    pub(super) fn short(&self) -> &Path {
        &self.short
    }
}
