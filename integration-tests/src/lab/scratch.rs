//! Names and directories of this process, told apart from those of every other run by a lock that
//! the kernel releases however the process ends.

use super::sweep;
use anyhow::{Context, Result, ensure};
use std::{
    env, fs,
    fs::{File, Permissions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What the names of everything this process makes begin with, for instance `hs4711`.
pub fn prefix() -> String {
    format!("hs{}", process::id())
}

/// A name no other process and no other call uses: `hs4711-client-3`.
pub fn unique(kind: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{}-{kind}-{}", prefix(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The right of this process to have things in the laboratory. The first clears what dead
/// processes left behind; the last one dropped removes this process's directory.
#[derive(Debug)]
pub struct LabLease(());

#[derive(Debug)]
struct Registry {
    leases: usize,
    lock: Option<File>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { leases: 0, lock: None });

impl LabLease {
    /// Takes part in this process's laboratory.
    pub fn take() -> Result<Self> {
        let mut registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        if registry.leases == 0 {
            sweep::sweep(&base()?);
            // Another run may look at this moment whether this one is dead.
            registry.lock = Some(lock(&own_dir(), |file| file.lock())?);
        }
        registry.leases += 1;
        Ok(Self(()))
    }
}

impl Drop for LabLease {
    fn drop(&mut self) {
        let mut registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        registry.leases -= 1;
        if registry.leases == 0 {
            let _ = remove(&own_dir());
            registry.lock = None;
            let _ = fs::remove_dir(base_path());
        }
    }
}

/// A directory of this process. Removed on drop, with whatever is mounted below it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lease: LabLease,
}

impl Scratch {
    /// Makes an empty directory.
    pub fn new(kind: &str) -> Result<Self> {
        let lease = LabLease::take()?;
        let path = own_dir().join(unique(kind));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path, _lease: lease })
    }

    /// Writes a file that only root may read, as a password's must be.
    pub fn secret(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(path)
    }

    /// Its absolute path; short enough for the unix sockets in it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}

/// Unmounts everything below `path`, then removes it.
pub(super) fn remove(path: &Path) -> Result<()> {
    for mount in sweep::mounts_below(path)? {
        // Lazily: a namespace on its way out may still hold the mount.
        let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Locks the directory `path`, which it makes if need be, for as long as the file is open.
/// Fails with `WouldBlock` when a living process has it.
pub(super) fn claim(path: &Path) -> Result<File> {
    lock(path, |file| file.try_lock().map_err(std::io::Error::from))
}

fn lock(path: &Path, lock: impl Fn(&File) -> std::io::Result<()>) -> Result<File> {
    loop {
        fs::create_dir_all(path)?;
        let file = match File::create(path.join("lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue, // removed under our hands
            Err(error) => return Err(error.into()),
        };
        lock(&file)?;
        // Between the open and the lock a sweeper may have removed this very file.
        let ours = file.metadata()?.ino();
        if fs::metadata(path.join("lock")).is_ok_and(|there| there.ino() == ours) {
            return Ok(file);
        }
    }
}

fn own_dir() -> PathBuf {
    base_path().join(process::id().to_string())
}

fn base_path() -> PathBuf {
    env::temp_dir().join("headstart-lab")
}

/// The directory all runs share. Sweeping trusts its contents, so it must be ours alone.
fn base() -> Result<PathBuf> {
    let path = base_path();
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
    let found = fs::symlink_metadata(&path)?;
    let ours = found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o022 == 0;
    ensure!(ours, "{} belongs to another user: remove it", path.display());
    Ok(path)
}
