//! An instance's secrets: files in memory that only its user can read.
//!
//! They are in a file system of their own (tmpfs), which the agent shows the instance and then takes out of its own
//! sight: it ends with the last mount of the instance. What they hold is never in the state directory, which may be on a
//! disk.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use headstart_config::{MAX_SECRET_BYTES, Secret, read_private};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use zeroize::Zeroizing;

use super::{ContainerSpec, StartError, directory};

/// The agent's view of an instance's secrets. It ends when this is dropped.
pub(super) struct SecretsMount(PathBuf);

impl SecretsMount {
    /// Where they are.
    pub(super) fn directory(&self) -> &Path {
        &self.0
    }
}

impl Drop for SecretsMount {
    fn drop(&mut self) {
        hide(&self.0);
    }
}

/// Shows the secrets of an instance whose directory is `own`. The files are read on another thread, because their disk may be
/// slow.
pub(super) async fn show(spec: &ContainerSpec, own: &Path) -> Result<Option<SecretsMount>, StartError> {
    if spec.secrets.is_empty() {
        return Ok(None);
    }
    let (secrets, user, place) = (spec.secrets.clone(), spec.user, place(own));
    let step = "showing an instance its secrets";
    let written = tokio::task::spawn_blocking(move || write(&secrets, user, place)).await;
    written.map_err(io::Error::other).map_err(StartError::system(step))?.map(Some)
}

/// What an agent that crashed may have left in an instance's own directory.
pub(super) fn forget(own: &Path) {
    let place = place(own);
    if place.exists() {
        hide(&place);
    }
}

fn place(own: &Path) -> PathBuf {
    own.join("secrets")
}

fn hide(place: &Path) {
    // An instance still sees what was mounted for it. Both fail if there is nothing.
    let _ = umount2(place, MntFlags::MNT_DETACH);
    let _ = fs::remove_dir(place);
}

fn write(secrets: &[Secret], user: u32, place: PathBuf) -> Result<SecretsMount, StartError> {
    let read =
        |secret: &Secret| read_private(&secret.file, "the secret", MAX_SECRET_BYTES).map(Zeroizing::new);
    let contents = secrets
        .iter()
        .map(read)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| StartError::Secret { source })?;
    let system = StartError::system("making an instance's secrets");
    directory::make_private(&place).map_err(&system)?;
    mount_memory(&place).map_err(|errno| system(errno.into()))?;
    let mounted = SecretsMount(place);
    for (secret, content) in secrets.iter().zip(contents) {
        let path = mounted.0.join(&secret.name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(path);
        file.and_then(|mut file| {
            file.write_all(&content).and_then(|()| fchown(&file, Some(user), Some(user)))
        })
        .map_err(&system)?;
    }
    Ok(mounted)
}

fn mount_memory(place: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mount = |options: &str| mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some(options));
    let options = "mode=0755,size=2m,nr_inodes=64";
    // Kernels before 6.4 may swap it.
    match mount(&format!("{options},noswap")) {
        Err(Errno::EINVAL) => mount(options),
        done => done,
    }
}
