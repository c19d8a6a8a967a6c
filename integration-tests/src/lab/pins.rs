//! A directory of its own for what an agent pins: below `/sys/fs/bpf`, where the kernel's objects have names.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::scratch::{LabLease, unique};

/// Where the file system for pins is mounted (bpf(2), "BPF filesystem").
const BPFFS: &str = "/sys/fs/bpf";

/// A name below [`BPFFS`] that no other agent uses. Whatever is pinned there is unpinned on drop.
#[derive(Debug)]
pub(super) struct PinDirectory {
    path: PathBuf,
    _lease: LabLease,
}

impl PinDirectory {
    /// The name alone: making the directory is the agent's part.
    pub(super) fn new() -> Result<Self> {
        Ok(Self { path: Path::new(BPFFS).join(unique("pins")), _lease: LabLease::take()? })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Unpins what a dead run left whose names start with `prefix`.
pub(super) fn sweep(prefix: &str) {
    for entry in fs::read_dir(BPFFS).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != ErrorKind::NotFound
    {
        eprintln!("{} stays pinned: {error}", path.display());
    }
}
