//! An instance's own directory, for root only, and the part of it that the instance sees.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::{ContainerSpec, StartError, secrets};

/// Makes a directory, and those above it, that only root can look into.
pub(super) fn make_private(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// The part of an instance's own directory for the sockets of its backends.
#[must_use]
pub fn backends_directory(directory: &Path) -> PathBuf {
    directory.join("backends")
}

/// Makes that part, if the instance has one. The directory around it is root's; this one is open to every user who
/// sees it.
pub(super) fn make_backends(spec: &ContainerSpec, directory: &Path) -> Result<Option<PathBuf>, StartError> {
    if !spec.backends {
        return Ok(None);
    }
    let backends = backends_directory(directory);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&backends)
        .map_err(StartError::system("making a directory for sockets"))?;
    Ok(Some(backends))
}

/// Removes a directory with all it holds, if it is there.
pub(super) fn remove(directory: &Path) -> Result<(), StartError> {
    secrets::forget(directory);
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StartError::Left { detail: format!("{}: {error}", directory.display()) })
        }
        _ => Ok(()),
    }
}
