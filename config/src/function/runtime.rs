//! How instances of a function are run: all that the configuration knows of each runtime.
//!
//! A runtime is a variant of [`Runtime`] and one of [`RuntimeKind`], whose methods say what it adds to a `[[function]]`
//! section. No other file of this crate tells runtimes apart.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::ErrorKind::NotFound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::rootfs::{WRITABLE_BYTES, check_rootfs, writable};
use crate::host::{check_program, identity, resolve_in};
use crate::image::{Image, ImageName};
use crate::table::{Table, Value};

/// Directories of the host that a process does not see: it has its own in these places.
const COVERED: [&str; 5] = ["/tmp", "/var/tmp", "/run", "/var/run", "/dev/shm"];

/// Words of a command that are looked at.
const FILES_MAX: usize = 16;

/// The kernel's overflow id: `nobody` on most distributions.
pub const NOBODY_ID: u32 = 65534;

/// `nobody` and `nogroup` of most distributions, for containers of which the file does not name a user.
pub const NOBODY: &str = "65534:65534";

/// How instances of a function are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// `oci`: a container of the OCI runtime, which can be prepared ahead.
    Oci {
        /// Directory of the container's root file system; an absolute path. With an image, its directory in the store, or
        /// empty if the image is not there.
        rootfs: PathBuf,
        /// Instead of a directory, an image of the store. One of both is required.
        image: Option<Image>,
        /// What an instance may write into its root file system, in bytes of memory: 1 MiB to the function's memory. `None`: it
        /// is read-only. Default: 64 MiB with an image, read-only with a directory.
        writable: Option<u64>,
    },
    /// `docker`: a container of the Docker daemon.
    Docker {
        /// The image, as in `orders:1`. Required; it is not pulled.
        image: String,
        /// Default `none`.
        network: DockerNetwork,
        /// User, or user and group, as in `65534:65534` (the default) or `app`.
        user: String,
    },
    /// `process`: a process of this host in namespaces of its own, without a container runtime.
    Process,
}

/// The network of a Docker container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerNetwork {
    /// `none`: the quickest to start. The function has only the sockets it is given.
    None,
    /// `bridge`: Docker's default network.
    Bridge,
    /// A network of this name.
    Named(String),
}

/// A runtime of which nothing but the word is known yet.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum RuntimeKind {
    Oci,
    Docker,
    Process,
}

impl Runtime {
    /// Every word that the file can have here.
    pub const WORDS: [&'static str; RuntimeKind::ALL.len()] = {
        let mut words = [""; RuntimeKind::ALL.len()];
        let mut at = 0;
        while at < words.len() {
            words[at] = RuntimeKind::ALL[at].as_str();
            at += 1;
        }
        words
    };

    fn kind(&self) -> RuntimeKind {
        match self {
            Self::Oci { .. } => RuntimeKind::Oci,
            Self::Docker { .. } => RuntimeKind::Docker,
            Self::Process => RuntimeKind::Process,
        }
    }

    /// The word in the file, which is the `runtime` label of metrics too.
    pub fn as_str(&self) -> &'static str {
        self.kind().as_str()
    }

    /// Whether a command and more come from an image of the store.
    pub(super) fn has_image(&self) -> bool {
        matches!(self, Self::Oci { image: Some(_), .. })
    }

    /// With a note of what the function sets itself.
    pub(super) fn with_own(mut self, workdir: bool, port: bool) -> Self {
        if let Self::Oci { image: Some(image), .. } = &mut self {
            (image.has_workdir, image.has_port) = (workdir, port);
        }
        self
    }

    /// Why its image cannot be used, and what to do.
    #[must_use]
    pub fn lack(&self) -> Option<&str> {
        match self {
            Self::Oci { image, .. } => image.as_ref()?.lack.as_deref(),
            Self::Docker { .. } | Self::Process => None,
        }
    }

    /// Whether its functions are users of [`crate::Agent::uids`].
    pub(crate) fn has_users(&self) -> bool {
        match self {
            Self::Oci { .. } | Self::Process => true,
            // It has a key for that.
            Self::Docker { .. } => false,
        }
    }

    /// Whether its containers can have user namespaces of their own.
    pub(crate) fn has_user_namespaces(&self) -> bool {
        match self {
            Self::Oci { .. } => true,
            // The daemon has a setting for that.
            Self::Docker { .. } => false,
            // It sees the files of the host, which belong to users that such a namespace does not have.
            Self::Process => false,
        }
    }

    /// The settings that only this runtime has, for the fingerprint. Every field is named, so that a new one has to
    /// take a side.
    pub(crate) fn settings(&self) -> Vec<(&'static str, Cow<'_, [u8]>)> {
        match self {
            // Another tag of the same image changes nothing.
            Self::Oci { rootfs, image: _, writable } => {
                let writable = writable.map(|bytes| ("writable", bytes.to_string().into_bytes().into()));
                [("rootfs", rootfs.as_os_str().as_bytes().into())].into_iter().chain(writable).collect()
            }
            Self::Docker { image, network, user } => vec![
                ("image", image.as_bytes().into()),
                ("network", network.as_str().as_bytes().into()),
                ("user", user.as_bytes().into()),
            ],
            Self::Process => Vec::new(),
        }
    }

    /// Which files instances begin with: where the root file system is, and the programs and scripts of the command. What
    /// these load is not known.
    pub(crate) fn look(&self, command: &[String]) -> Vec<String> {
        let files = command.iter().filter(|word| word.starts_with('/')).take(FILES_MAX).map(Path::new);
        match self {
            Self::Oci { rootfs, .. } => {
                let root = rootfs.canonicalize();
                let files = files.map(|file| identity(resolve_in(rootfs, file), true));
                std::iter::once(identity(root, false)).chain(files).collect()
            }
            Self::Process => files.map(|file| identity(Ok(file.to_owned()), true)).collect(),
            Self::Docker { .. } => Vec::new(),
        }
    }

    /// Compares it with the host: the key that is wrong, and what to do.
    pub(crate) fn check_host(
        &self,
        command: &[String],
        has_secrets: bool,
        namespaced: bool,
    ) -> Result<(), (&'static str, String)> {
        let program = command.first().map(Path::new);
        match (self, program) {
            (Self::Oci { image: Some(Image { lack: Some(lack), .. }), .. }, _) => {
                Err(("image", lack.clone()))
            }
            (Self::Oci { rootfs, image, writable }, Some(program)) => {
                let key = if image.is_some() { "image" } else { "rootfs" };
                check_rootfs(rootfs, writable.is_some(), has_secrets, namespaced)
                    .map_err(|message| (key, message))?;
                check_program(resolve_in(rootfs, program), program, &format!(" in {}", rootfs.display()))
                    .map_err(|message| ("command", message))
            }
            (Self::Process, Some(program)) if COVERED.iter().any(|place| program.starts_with(place)) => {
                let message = format!(
                    "{} is not seen by the function, which has {} of its own: put the program elsewhere",
                    program.display(),
                    COVERED.join(", ")
                );
                Err(("command", message))
            }
            (Self::Process, Some(program)) => {
                check_program(Ok(program.to_owned()), program, "").map_err(|message| ("command", message))
            }
            (Self::Docker { .. }, _) | (_, None) => Ok(()),
        }
    }

    /// Whether something can be mounted at `target`, which must be a directory or a file as the source is.
    pub(crate) fn check_target(&self, target: &Path, is_directory: bool) -> Result<(), String> {
        let (found, place) = match self {
            Self::Oci { .. } if target.starts_with("/tmp") => return Ok(()),
            Self::Oci { image: Some(Image { lack: Some(_), .. }), .. } => return Ok(()),
            Self::Oci { rootfs, writable, .. } => {
                let found = resolve_in(rootfs, target);
                if writable.is_some() && found.as_ref().is_err_and(|error| error.kind() == NotFound) {
                    return Ok(());
                }
                (found, rootfs.join(target.strip_prefix("/").unwrap_or(target)))
            }
            Self::Process if COVERED.iter().any(|place| target.starts_with(place)) => return Ok(()),
            Self::Process => (Ok(target.to_owned()), target.to_owned()),
            // Only the daemon sees into the image, and makes what is missing.
            Self::Docker { .. } => return Ok(()),
        };
        let place = place.display();
        let (kind, make) = if is_directory { ("directory", "mkdir -p") } else { ("file", "touch") };
        match found.and_then(std::fs::metadata) {
            Ok(found) if found.is_dir() == is_directory => Ok(()),
            Ok(_) => Err(format!("{place} must be a {kind}, as the source is")),
            Err(error) => Err(format!(
                "there is no {kind} {place} to mount it at ({error}), and a start does not change the files there: \
                 `{make} {place}`"
            )),
        }
    }
}

impl DockerNetwork {
    /// The network's name, as the Docker API takes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::None => "none",
            Self::Bridge => "bridge",
            Self::Named(name) => name,
        }
    }
}

impl RuntimeKind {
    const ALL: [Self; 3] = [Self::Oci, Self::Docker, Self::Process];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::Docker => "docker",
            Self::Process => "process",
        }
    }

    /// The keys of a section that only this runtime has.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Oci => &["rootfs", "image", "writable"],
            Self::Docker => &["image", "network", "user"],
            Self::Process => &[],
        }
    }

    /// Whether a section must have a command. An image has one of its own.
    pub(super) fn needs_command(self) -> bool {
        match self {
            Self::Oci | Self::Process => true,
            Self::Docker => false,
        }
    }

    /// Whether a section can say where the program starts. An image says that itself.
    pub(super) fn has_workdir(self) -> bool {
        match self {
            Self::Oci | Self::Process => true,
            Self::Docker => false,
        }
    }

    /// Whether an instance has a network namespace of its own before it runs, in which the agent can listen.
    pub(super) fn has_ports(self) -> bool {
        match self {
            Self::Oci | Self::Process => true,
            Self::Docker => false,
        }
    }

    /// Whether the agent can put files into an instance's memory.
    pub(super) fn has_secrets(self) -> bool {
        match self {
            Self::Oci | Self::Process => true,
            Self::Docker => false,
        }
    }

    /// Whether the agent knows the processes of its containers, whose memory it can write to swap.
    pub(super) fn hibernates(self) -> bool {
        match self {
            Self::Oci | Self::Process => true,
            Self::Docker => false,
        }
    }

    /// Reads the key `runtime`.
    pub(super) fn read(table: &mut Table<'_>) -> Option<Self> {
        let why = format!(": {}", Self::list(|_| true));
        table.require("runtime", &why, |v| v.choice(&Self::ALL.map(|kind| (kind.as_str(), kind))))
    }

    /// The words of those that fit, as in `"a", "b" or "c"`.
    pub(super) fn list(fits: impl Fn(Self) -> bool) -> String {
        let words: Vec<_> = Self::ALL
            .into_iter()
            .filter(|kind| fits(*kind))
            .map(|kind| format!("\"{}\"", kind.as_str()))
            .collect();
        match words.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        }
    }

    /// Reads the keys of the section's runtime, and refuses those of others.
    pub(super) fn read_keys(kind: Option<Self>, table: &mut Table<'_>, memory: u64) -> Option<Runtime> {
        let all: BTreeSet<_> = Self::ALL.iter().flat_map(|owner| owner.keys()).collect();
        for key in all {
            match kind {
                Some(kind) if !kind.keys().contains(key) => {
                    let (owners, kind) = (Self::list(|owner| owner.keys().contains(key)), kind.as_str());
                    let message = format!("belongs to runtime = {owners}, and this function is \"{kind}\"");
                    table.refuse(key, &message);
                }
                Some(_) => {}
                // Which keys belong here is not known: none of them is wrong.
                None => drop(table.get(key)),
            }
        }
        match kind? {
            Self::Oci => {
                let default = table.get("image").map(|_| WRITABLE_BYTES.min(memory));
                let writable = table.or("writable", default, |v| writable(&v, memory));
                if let Some(name) = table.get("image") {
                    table.refuse("rootfs", "has no use with image, which brings its own");
                    let name =
                        ImageName::parse(name.string()?).or_else(|message| name.fail(message).ok_or(()));
                    let image = Some(Image::new(name.ok()?));
                    return Some(Runtime::Oci { rootfs: PathBuf::new(), image, writable });
                }
                let why = format!("{}, or image", Self::Oci.because());
                let rootfs = table.require("rootfs", &why, |v| v.absolute_path())?;
                Some(Runtime::Oci { rootfs, image: None, writable })
            }
            Self::Docker => {
                let image = table.require("image", &Self::Docker.because(), |v| image(&v));
                let network = table.or("network", DockerNetwork::None, |v| network(&v));
                let user = table.or("user", NOBODY.to_owned(), |v| user(&v));
                Some(Runtime::Docker { image: image?, network, user })
            }
            Self::Process => Some(Runtime::Process),
        }
    }

    /// Completes "is required".
    pub(super) fn because(self) -> String {
        format!(" by runtime = \"{}\"", self.as_str())
    }
}

fn image(value: &Value<'_>) -> Option<String> {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic()) && !text.starts_with('-');
    value.matching("the name of an image, as in \"orders:1\"", |text| !text.is_empty() && plain(text))
}

fn user(value: &Value<'_>) -> Option<String> {
    let name = |part: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        !part.starts_with('-') && !part.is_empty() && part.bytes().all(plain)
    };
    value.matching("a user, or a user and a group, as in \"65534:65534\" or \"app\"", |text| {
        let (user, group) = text.split_once(':').unwrap_or((text, "0"));
        name(user) && name(group)
    })
}

fn network(value: &Value<'_>) -> Option<DockerNetwork> {
    let name = value.matching("\"none\", \"bridge\" or the name of a Docker network", |text| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        text.starts_with(|first: char| first.is_ascii_alphanumeric()) && text.bytes().all(plain)
    })?;
    Some(match name.as_str() {
        "host" => {
            return value.fail(
                "\"host\" would give the function the node's own network, with the agent's admin address and every \
                 local service: use \"bridge\", or a network that you made with `docker network create`",
            );
        }
        "none" => DockerNetwork::None,
        "bridge" => DockerNetwork::Bridge,
        _ => DockerNetwork::Named(name),
    })
}
