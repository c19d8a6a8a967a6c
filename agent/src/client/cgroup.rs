//! Opens cgroup v2 directories, and makes a cgroup for one command.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::ClientError;
use crate::cgroup2::{enter, mounts, own};

/// Most rounds of moving processes out of the cgroup: a process can fork during a round.
const ROUNDS_MAX: usize = 16;

/// How long a cgroup without processes may stay busy: one that is ending is no longer listed, and still in it.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Between attempts to remove a busy cgroup.
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

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
        enter(&self.path).map_err(refused("cannot move into", &self.path))?;
        let result = work();
        enter(&self.home).map_err(refused("cannot move into", &self.home))?;
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

    #[expect(
        clippy::disallowed_methods,
        reason = "nothing tells of the end of a process that is no longer listed"
    )]
    fn remove(&self) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            self.evacuate()?;
            match fs::remove_dir(&self.path) {
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && begun.elapsed() < REMOVE_TIMEOUT =>
                {
                    thread::sleep(REMOVE_PAUSE);
                }
                removed => return removed,
            }
        }
    }
}

impl Drop for CommandCgroup {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!(
                "headstart: cannot remove the cgroup {}: {error}; remove it with rmdir when no process is in it",
                self.path.display()
            );
        }
    }
}

fn refused(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClientError {
    let path = path.to_owned();
    move |error| ClientError::OwnCgroup { what, path, error }
}
