//! The root file system of a function with runtime `oci`: what a start needs there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::SECRETS_PATH;
use crate::host::resolve_in;
use crate::table::Value;
use crate::units;

/// What an instance of an image may write, in bytes.
pub(super) const WRITABLE_BYTES: u64 = 64 << 20;

/// Reads `writable`. What is written is in memory that counts to the function.
pub(super) fn writable(value: &Value<'_>, memory: u64) -> Option<Option<u64>> {
    match value.false_or_size(1 << 20..=1024 << 30)? {
        Some(bytes) if bytes > memory => {
            let memory = units::show_size(memory);
            value.fail(format!(
                "must be at most memory, which is {memory}: what is written there counts to it"
            ))
        }
        writable => Some(writable),
    }
}

/// Looks whether containers can start there.
///
/// # Errors
/// Why they cannot, and what to do.
pub(super) fn check_rootfs(
    rootfs: &Path,
    writable: bool,
    has_secrets: bool,
    namespaced: bool,
) -> Result<(), String> {
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
        Some(place) if read_only && !writable => Err(format!(
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

#[cfg(test)]
mod tests {
    use crate::{Config, Runtime};

    fn writable(keys: &str) -> Result<Option<u64>, String> {
        let text = format!(
            "[[function]]\nname = \"f\"\nlisten = \"127.0.0.1:81\"\nruntime = \"oci\"\n\
             command = [\"/x\"]\n{keys}"
        );
        let config = Config::parse("t", &text).map_err(|errors| errors.to_string())?;
        match config.functions[0].runtime {
            Runtime::Oci { writable, .. } => Ok(writable),
            _ => Err("another runtime".to_owned()),
        }
    }

    #[test]
    fn what_can_be_written_is_bounded_by_the_memory() {
        let (image, rootfs) = ("image = \"app:1\"\n", "rootfs = \"/srv/app\"\n");
        let with = |place: &str, keys: &str| writable(&format!("{place}{keys}"));
        assert_eq!(with(rootfs, ""), Ok(None));
        assert_eq!(with(rootfs, "writable = \"16MiB\""), Ok(Some(16 << 20)));
        assert_eq!(with(image, ""), Ok(Some(64 << 20)));
        assert_eq!(with(image, "memory = \"32MiB\""), Ok(Some(32 << 20)));
        assert_eq!(with(image, "writable = false"), Ok(None));
        for (value, said) in [
            ("\"256MiB\"", "must be at most memory, which is 128MiB"),
            ("\"4KiB\"", "must be false or 1MiB to 1024GiB"),
            ("true", "false or a whole number with a unit"),
            ("64", "has no unit"),
        ] {
            let error = with(image, &format!("writable = {value}")).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        let error = writable("writable = \"1MiB\"").unwrap_err();
        assert!(error.contains("rootfs"), "{error}");
    }
}
