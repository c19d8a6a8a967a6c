//! Where things are mounted in a root file system. The OCI runtime makes what is missing, but as root of a user namespace it
//! may not write there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, mkdirat, openat, openat2,
};

use crate::start::StartError;

/// A file system of memory is mounted here first, in which the OCI runtime may make what it needs.
const IN_MEMORY: [&str; 2] = ["/dev", "/tmp"];

/// Makes the missing ones of these mounts.
pub(super) fn make(rootfs: &Path, mounts: &[Mount]) -> Result<(), StartError> {
    let step = "opening a root file system";
    let root = File::open(rootfs).map(OwnedFd::from).map_err(StartError::system(step))?;
    for mount in mounts {
        let target = mount.destination();
        if IN_MEMORY.iter().any(|place| target != Path::new(place) && target.starts_with(place)) {
            continue;
        }
        let is_file =
            mount.typ().as_deref() == Some("bind") && mount.source().as_ref().is_some_and(|s| s.is_file());
        make_one(&root, target, is_file).map_err(|error| StartError::Create {
            detail: format!(
                "there is no {} in {}, and it cannot be made: {error}",
                target.display(),
                rootfs.display()
            ),
        })?;
    }
    Ok(())
}

/// Makes these directories the user's, and those that are missing. What they hold stays as it is.
pub(super) fn give(
    rootfs: &Path,
    directories: &[PathBuf],
    (user, group): (u32, u32),
) -> Result<(), StartError> {
    let step = "making the volumes of an image";
    let root = File::open(rootfs).map(OwnedFd::from).map_err(StartError::system(step))?;
    for directory in directories {
        make_one(&root, directory, false).map_err(StartError::system(step))?;
        let directory = look(&root, directory).map_err(StartError::system(step))?;
        // The memory of a file's copy would be the agent's.
        if FileType::from_raw_mode(fstat(&directory).map_err(StartError::system(step))?.st_mode)
            != FileType::Directory
        {
            continue;
        }
        let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        chownat(&directory, "", user, group, AtFlags::EMPTY_PATH).map_err(StartError::system(step))?;
    }
    Ok(())
}

/// What has this name in a root file system.
pub(super) fn find(rootfs: &Path, name: &Path) -> io::Result<OwnedFd> {
    look(&File::open(rootfs)?.into(), name)
}

/// No link leads out of the root file system.
fn look(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    Ok(openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)?)
}

fn make_one(root: &OwnedFd, target: &Path, is_file: bool) -> io::Result<()> {
    match look(root, target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found.map(drop),
    }
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else { return Ok(()) };
    make_one(root, parent, false)?;
    let parent = look(root, parent)?;
    let made = if is_file {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(parent.as_fd(), name, flags, Mode::from_raw_mode(0o644)).map(drop)
    } else {
        mkdirat(parent.as_fd(), name, Mode::from_raw_mode(0o755))
    };
    match made {
        // By a preparation at the same time.
        Err(error) if error != rustix::io::Errno::EXIST => Err(error.into()),
        _ => Ok(()),
    }
}
