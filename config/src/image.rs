//! Images: how they are named, and what the store knows of those that were pulled.
//!
//! `headstart image pull` (crate `headstart-image`) writes the store. The agent only reads it, when it reads its
//! configuration: nothing is pulled at a start.
//!
//! ```text
//! image_dir/refs/SHA256-OF-THE-NAME.json   what a name stands for: an ImageRecord
//! image_dir/roots/ID/rootfs                an image, unpacked, by the digest of its configuration
//! image_dir/roots/ID/config.json           that configuration
//! ```

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::private::{check_owner, check_place};

mod name;
mod user;

pub use name::ImageName;
pub(crate) use user::{unprivileged, user_in};

/// Where images are, unless `image_dir` in `[agent]` says otherwise.
pub const IMAGE_DIR: &str = "/var/lib/headstart/images";

/// An image's configuration, beside its root file system. A function holds a lock of it as long as it is configured, so that
/// the image stays.
pub const CONFIG_FILE: &str = "config.json";

/// The largest [`ImageRecord`], in bytes: an image's own configuration is no larger.
pub const RECORD_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The name, in full.
    pub name: String,
    /// Digest of the manifest, or that of the configuration where there is no manifest.
    pub digest: String,
    /// Digest of the image's configuration, without `sha256:`: the directory of its root.
    pub id: String,
    /// Entrypoint and Cmd.
    pub command: Vec<String>,
    /// Variables, `NAME=VALUE`.
    pub env: Vec<String>,
    /// User, or user and group; names or numbers. Empty: root.
    pub user: String,
    /// Where the program starts. Empty: `/`.
    pub workdir: String,
    /// TCP ports that it says it listens on.
    pub ports: Vec<u16>,
    /// The signal that its program expects when it is to stop. Empty: it does not say.
    #[serde(default)]
    pub stop_signal: String,
    /// Directories that its program writes to.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Bytes of its files.
    pub bytes: u64,
    /// When it was pulled, in seconds since 1970.
    pub pulled: u64,
}

/// Where images are.
#[derive(Clone, Debug)]
pub struct ImageStore(pub PathBuf);

impl ImageStore {
    /// The directory of all records.
    #[must_use]
    pub fn refs(&self) -> PathBuf {
        self.0.join("refs")
    }

    /// The directory of all roots.
    #[must_use]
    pub fn roots(&self) -> PathBuf {
        self.0.join("roots")
    }

    /// The file of what `name` stands for.
    #[must_use]
    pub fn record_file(&self, name: &ImageName) -> PathBuf {
        let hash: String =
            Sha256::digest(name.to_string()).iter().map(|byte| format!("{byte:02x}")).collect();
        self.refs().join(format!("{hash}.json"))
    }

    /// The root file system of the image with this ID.
    #[must_use]
    pub fn rootfs(&self, id: &str) -> PathBuf {
        self.roots().join(id).join("rootfs")
    }

    /// What `name` stands for, and its root file system.
    ///
    /// # Errors
    /// Why it cannot be used, and what to do.
    pub fn find(&self, name: &ImageName) -> Result<(ImageRecord, PathBuf), String> {
        let elsewhere = self.0 != Path::new(IMAGE_DIR);
        let place = if elsewhere { format!("--image-dir {} ", self.0.display()) } else { String::new() };
        let pull = format!("headstart image pull {place}{name}");
        let path = self.record_file(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(format!(
                    "{name} is not in {}: `{pull}`, then `headstart reload`",
                    self.0.display()
                ));
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        check_owner(&file.metadata().map_err(|error| error.to_string())?, &path)?;
        check_place(&path)?;
        let record =
            read_record(file).map_err(|error| format!("{}: {error}: `{pull}` again", path.display()))?;
        let rootfs = self.rootfs(&record.id);
        if !rootfs.is_dir() {
            return Err(format!("{name} is no longer in {}: `{pull}` again", self.0.display()));
        }
        Ok((record, rootfs))
    }
}

/// Reads a record.
///
/// # Errors
/// When it is none of this version.
pub fn read_record(file: File) -> Result<ImageRecord, String> {
    let mut text = Vec::new();
    file.take(RECORD_BYTES_MAX).read_to_end(&mut text).map_err(|error| error.to_string())?;
    let record: ImageRecord = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if record.id.len() != 64 || !record.id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("it names no image".to_owned());
    }
    Ok(record)
}

/// The image of a function, and which of its settings the function has of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: ImageName,
    /// Why it cannot be used, and what to do. `None`: it can, or only a text was parsed.
    pub lack: Option<String>,
    /// Its own user and group, to whom files of it belong that the function may change. Root's are 0.
    pub owner: (u32, u32),
    /// Directories that the function owns, if it may write. They may be missing in the image.
    pub volumes: Vec<PathBuf>,
    /// The function has `workdir`.
    pub(crate) has_workdir: bool,
    /// The function has `port`, or needs none.
    pub(crate) has_port: bool,
}

impl Image {
    /// One of which nothing is known yet.
    pub(crate) fn new(name: ImageName) -> Self {
        Self { name, lack: None, owner: (0, 0), volumes: Vec::new(), has_workdir: false, has_port: false }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}
