//! The root file system of a function with runtime `oci`: what a start needs there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::SECRETS_PATH;
use crate::host::resolve_in;

/// Looks whether containers can start there.
///
/// # Errors
/// Why they cannot, and what to do.
pub(super) fn check_rootfs(rootfs: &Path, has_secrets: bool, namespaced: bool) -> Result<(), String> {
    let shown = rootfs.display();
    if !rootfs.is_dir() {
        return Err(format!("{shown} is not a directory: unpack the function's root there"));
    }
    if rootfs.canonicalize().is_ok_and(|root| root == Path::new("/")) {
        return Err(format!(
            "{shown} is the node's own root: unpack the function's root elsewhere, or use runtime = \"process\""
        ));
    }
    if let Some(closed) = closed_directory(rootfs).filter(|_| namespaced) {
        let closed = closed.display();
        return Err(format!(
            "{closed} is closed to the users that the container has (`uids`): `chmod o+x {closed}`, or set \
             user_namespaces = false in [agent]"
        ));
    }
    let read_only =
        rustix::fs::statvfs(rootfs).is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let mut places = ["/proc", "/dev", "/tmp"].into_iter().chain(has_secrets.then_some(SECRETS_PATH));
    let missing =
        places.find(|place| !resolve_in(rootfs, Path::new(place)).is_ok_and(|place| place.is_dir()));
    match missing {
        Some(place) if read_only => Err(format!(
            "{shown} is on a read-only file system and has no directory {place}: make an empty one there, since a start \
             cannot"
        )),
        _ => Ok(()),
    }
}

/// The first directory on the way to a root file system which other users cannot pass.
fn closed_directory(rootfs: &Path) -> Option<PathBuf> {
    let rootfs = rootfs.canonicalize().ok()?;
    let is_closed = |path: &Path| path.metadata().is_ok_and(|found| found.permissions().mode() & 0o001 == 0);
    let way: Vec<_> = rootfs.ancestors().collect();
    way.into_iter().rev().find(|path| is_closed(path)).map(Path::to_owned)
}
