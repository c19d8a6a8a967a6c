//! A root file system that an instance can write to: an overlay of what is there, and of memory that is the instance's own
//! (Documentation/filesystems/overlayfs.rst).
//!
//! A thread mounts it at the place of the root file system itself, in a mount namespace of its own, and starts the OCI runtime
//! from there. So the agent and other instances never see it, nothing is left if the agent is killed, and what an
//! instance has written ends with its last process.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;

use headstart_config::image::Image;
use headstart_wire::idmap;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::chdir;
use oci_spec::runtime::Mount;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{CREATE_TIMEOUT, owners, targets};
use crate::start::error::within;
use crate::start::{ContainerSpec, StartError, directory, nice};

/// In an instance's directory: where the parts of the overlay are mounted.
const PLACE: &str = "writable";

/// A file takes a page at least.
const PAGE_BYTES: u64 = 4096;

/// The writable root file systems of one function.
pub(super) struct Overlay {
    bytes: u64,
    /// Whose files are to be the function's. `None`: those of the owner of the root directory.
    owner: Option<(u32, u32)>,
    /// Directories that are the function's.
    volumes: Vec<PathBuf>,
    spec: ContainerSpec,
    /// Maps the owner to the function. Made once; `None` inside: there is nothing to map.
    owners: OnceLock<Option<OwnedFd>>,
}

impl Overlay {
    /// In which an instance can write so many bytes.
    pub(super) fn new(bytes: u64, image: Option<&Image>, spec: &ContainerSpec) -> Self {
        let owner = image.map(|image| image.owner);
        let volumes = image.map_or(Vec::new(), |image| image.volumes.clone());
        Self { bytes, owner, volumes, spec: spec.clone(), owners: OnceLock::new() }
    }

    /// Starts the OCI runtime where `rootfs` is writable, and has a place for each of `mounts`. `own` is the instance's directory.
    pub(super) async fn start(
        self: Arc<Self>,
        mut command: Command,
        rootfs: PathBuf,
        own: PathBuf,
        mounts: Vec<Mount>,
    ) -> Result<io::Result<Child>, StartError> {
        let (done, started) = oneshot::channel();
        let runtime = Handle::current();
        let work = move || {
            let _entered = runtime.enter();
            let started = self.cover(&rootfs, &own).and_then(|()| {
                targets::make(&rootfs, &mounts)?;
                targets::give(&rootfs, &self.volumes, (self.spec.user, self.spec.group))?;
                // The overlay looks into both of its parts at the first time: now, not at the release.
                let _ = targets::find(&rootfs, Path::new(self.spec.program()));
                Ok(nice::in_background(|| command.spawn()))
            });
            // If it came too late, the runtime ends with the handle.
            let _late = done.send(started);
        };
        let step = "starting a thread that mounts";
        thread::Builder::new().name("mount".to_owned()).spawn(work).map_err(StartError::system(step))?;
        let started = within(CREATE_TIMEOUT, "mounting a writable root", started).await?;
        started.map_err(io::Error::other).map_err(StartError::system(step))?
    }

    /// Mounts it over `rootfs`, for this thread and what it starts from now on.
    fn cover(&self, rootfs: &Path, own: &Path) -> Result<(), StartError> {
        let step = "mounting a writable root";
        let (system, errno) = (StartError::system(step), StartError::system(step));
        unshare(CloneFlags::CLONE_NEWNS).map_err(&errno)?;
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_SLAVE | MsFlags::MS_REC, nothing).map_err(&errno)?;
        let place = own.join(PLACE);
        directory::make_private(&place).map_err(&system)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let limits = format!("mode=0700,size={},nr_inodes={}", self.bytes, self.bytes / PAGE_BYTES);
        mount(Some("tmpfs"), &place, Some("tmpfs"), flags, Some(limits.as_str())).map_err(&errno)?;
        // Relative names need no quoting. The directory is this thread's own, as the namespace is.
        chdir(&place).map_err(&errno)?;
        for part in ["lower", "upper", "work"] {
            fs::create_dir(part).map_err(&system)?;
        }
        self.show(rootfs, Path::new("lower"))?;
        let root = fs::metadata("lower").map_err(&system)?;
        // The root directory's owner and mode are those of the upper one.
        chown("upper", Some(root.uid()), Some(root.gid())).map_err(&system)?;
        fs::set_permissions("upper", Permissions::from_mode(root.mode())).map_err(&system)?;
        let parts = "lowerdir=lower,upperdir=upper,workdir=work";
        // By its source `headstart image gc` knows whose it is.
        mount(Some(rootfs), rootfs, Some("overlay"), flags, Some(parts))
            .map_err(|errno| refused(rootfs, &errno.into()))?;
        chdir("/").map_err(&errno)
    }

    /// Mounts `rootfs` at `target` too, with the function as the owner of what it may change.
    fn show(&self, rootfs: &Path, target: &Path) -> Result<(), StartError> {
        let failed = |error: rustix::io::Errno| refused(rootfs, &error.into());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, rootfs, flags).map_err(failed)?;
        if let Some(namespace) = self.owners(rootfs)? {
            idmap::map_owners(tree.as_fd(), namespace.as_fd()).map_err(|error| refused(rootfs, &error))?;
        }
        move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed)
    }

    fn owners(&self, rootfs: &Path) -> Result<Option<&OwnedFd>, StartError> {
        if let Some(known) = self.owners.get() {
            return Ok(known.as_ref());
        }
        let step = "looking whose a root file system is";
        let of_rootfs = || fs::metadata(rootfs).map(|root| (root.uid(), root.gid()));
        let owner = self.owner.map_or_else(of_rootfs, Ok).map_err(StartError::system(step))?;
        let made = owners::maps(owner, &self.spec)
            .map(|(users, groups)| idmap::user_namespace(&users, &groups))
            .transpose()
            .map_err(StartError::system("making a user namespace that maps owners"))?;
        Ok(self.owners.get_or_init(|| made).as_ref())
    }
}

fn refused(rootfs: &Path, error: &io::Error) -> StartError {
    let rootfs = rootfs.display();
    let hint = "its file system must be one that can be below an overlay and show files as another user's (ext4, XFS or btrfs, \
                from Linux 5.19): put it on such a one, or set writable = false";
    StartError::Create { detail: format!("{rootfs} cannot be made writable ({error}): {hint}") }
}
