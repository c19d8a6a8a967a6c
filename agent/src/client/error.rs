//! Why `tag` and `knock` could not do what they were asked to.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use headstart_config::keys::KeyError;

use super::Destination;

/// What went wrong, and what to do about it. None of these is worth a retry without a change.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The key file cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The key file has no such key, or none.
    #[error(
        "{} has no key{}: it has {}; choose one of its keys with --key, or add one",
        file.display(),
        number.map(|number| format!(" number {number}")).unwrap_or_default(),
        if there.is_empty() { "none".to_owned() } else { format!("number {there}") }
    )]
    NoKey {
        /// The key file.
        file: PathBuf,
        /// The number that was asked for.
        number: Option<u8>,
        /// The numbers that it has.
        there: String,
    },
    /// An option that would say nothing.
    #[error(
        "function 0 is the port's default function, which clients get without a tag: give the --function ID, or \
         a --key-file to authenticate for the default function"
    )]
    NothingToSay,
    /// The host has no address.
    #[error("{host} cannot be resolved: {error}; give an address, or correct the name")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        error: io::Error,
    },
    /// It has far too many.
    #[error("{to} has {addresses} addresses, more than {max}: give one of them")]
    TooManyAddresses {
        /// The destination.
        to: Destination,
        /// How many.
        addresses: usize,
        /// The limit.
        max: usize,
    },

    /// The path is something else.
    #[error("{} is not a directory of cgroup v2; {}", path.display(), mounted(mounts))]
    NotCgroup {
        /// The path.
        path: PathBuf,
        /// Where cgroup v2 is mounted.
        mounts: Vec<PathBuf>,
    },
    /// The path cannot be opened.
    #[error("{} cannot be opened: {error}; {}", path.display(), mounted(mounts))]
    OpenCgroup {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
        /// Where cgroup v2 is mounted.
        mounts: Vec<PathBuf>,
    },
    /// There is no place for a command's cgroup.
    #[error("this process is in no cgroup v2 that can be found: {}", mounted(&[]))]
    NoCgroup,
    /// A step on the way into a cgroup of the command's own.
    #[error("{what} {}: {error}; it takes root, or a cgroup delegated to this user (or use --cgroup)", path.display())]
    OwnCgroup {
        /// What was tried, such as "cannot create the cgroup".
        what: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },

    /// The kernel does not take the program.
    #[error(
        "the kernel refused the eBPF program: {0}; it takes root (or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON), and Linux 5.10 or newer with BTF"
    )]
    Load(String),
    /// The program cannot be attached.
    #[error(
        "the eBPF program cannot be attached to {}: {reason}; it takes root (or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)",
        path.display()
    )]
    Attach {
        /// The cgroup.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// The object has no such part.
    #[error("the eBPF object has no {0}: rebuild it with ebpf/build.sh --update")]
    Object(&'static str),
    /// A map of the program cannot be written.
    #[error("an eBPF map cannot be used: {0}")]
    Map(#[from] aya::maps::MapError),
    /// The command is not there, or cannot be run.
    #[error("{command} cannot be executed: {error}; check its name, the PATH and its mode")]
    Execute {
        /// Its name.
        command: String,
        /// Why not.
        error: io::Error,
    },
    /// Something that should work did not.
    #[error("{what}: {error}")]
    System {
        /// What was tried, such as "signals cannot be received".
        what: &'static str,
        /// Why not.
        error: io::Error,
    },

    /// No address took the knock.
    #[error("the knock cannot be sent to {to}: {reasons}; check the route to it")]
    Send {
        /// The destination.
        to: Destination,
        /// Each address with its reason.
        reasons: String,
    },
}

impl ClientError {
    /// 2 for bad usage or configuration, 1 for the rest; a command that cannot be run, as env(1) has it.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Keys(_)
            | Self::NoKey { .. }
            | Self::NothingToSay
            | Self::NotCgroup { .. }
            | Self::OpenCgroup { .. } => ExitCode::from(2),
            Self::Execute { error, .. } if error.kind() == io::ErrorKind::NotFound => ExitCode::from(127),
            Self::Execute { .. } => ExitCode::from(126),
            _ => ExitCode::FAILURE,
        }
    }
}

fn mounted(mounts: &[PathBuf]) -> String {
    if mounts.is_empty() {
        return "cgroup v2 is not mounted here: `mount -t cgroup2 none /sys/fs/cgroup/unified`".to_owned();
    }
    let mounts: Vec<_> = mounts.iter().map(|mount| mount.display().to_string()).collect();
    format!("cgroup v2 is mounted at {}: give a directory in it", mounts.join(" and "))
}
