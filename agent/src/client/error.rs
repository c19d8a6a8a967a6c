//! Errors of `tag` and `knock`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use headstart_config::keys::KeyError;

use super::Destination;

/// The error, and what to do about it. A retry without a change fails again.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The key file cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The key file has no such key, or no key.
    #[error(
        "{} has no key{}: it has {}; choose one of its keys with --key, or add one",
        file.display(),
        number.map(|number| format!(" number {number}")).unwrap_or_default(),
        if present.is_empty() { "none".to_owned() } else { format!("number {present}") }
    )]
    NoKey {
        /// The key file.
        file: PathBuf,
        /// The requested number.
        number: Option<u8>,
        /// The numbers of its keys.
        present: String,
    },
    /// The option would have no effect.
    #[error(
        "function 0 is the port's default function, which clients get without a tag: give the --function ID, or \
         a --key-file to authenticate for the default function"
    )]
    NothingToSay,
    /// The host name has no address.
    #[error("{host} cannot be resolved: {error}; give an address, or correct the name")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's error.
        error: io::Error,
    },
    /// The host name has too many addresses.
    #[error("{to} has {addresses} addresses, more than {max}: give one of them")]
    TooManyAddresses {
        /// The destination.
        to: Destination,
        /// Their number.
        addresses: usize,
        /// The limit.
        max: usize,
    },

    /// The path is not a directory of cgroup v2.
    #[error("{} is not a directory of cgroup v2; {}", path.display(), mounted(mounts))]
    NotCgroup {
        /// The path.
        path: PathBuf,
        /// The mount points of cgroup v2.
        mounts: Vec<PathBuf>,
    },
    /// The path cannot be opened.
    #[error("{} cannot be opened: {error}; {}", path.display(), mounted(mounts))]
    OpenCgroup {
        /// The path.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
        /// The mount points of cgroup v2.
        mounts: Vec<PathBuf>,
    },
    /// There is no cgroup v2 in which to make a command's cgroup.
    #[error("no mounted cgroup v2 contains this process: {}", mounted(&[]))]
    NoCgroup,
    /// The command's cgroup cannot be made or entered.
    #[error("{what} {}: {error}; it takes root, or a cgroup delegated to this user (or use --cgroup)", path.display())]
    OwnCgroup {
        /// The failed step, such as "cannot create the cgroup".
        what: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },

    /// The kernel refuses the program.
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
        /// The kernel's error.
        reason: String,
    },
    /// The object lacks a map or program.
    #[error("the eBPF object has no {0}: rebuild it with ebpf/build.sh --update")]
    Object(&'static str),
    /// A map of the program cannot be written.
    #[error("an eBPF map cannot be used: {0}")]
    Map(#[from] aya::maps::MapError),
    /// The command does not exist, or cannot be run.
    #[error("{command} cannot be executed: {error}; check its name, the PATH and its mode")]
    Execute {
        /// Its name.
        command: String,
        /// The system's error.
        error: io::Error,
    },
    /// An operation of the system failed.
    #[error("{what}: {error}")]
    System {
        /// The failed operation, such as "signals cannot be received".
        what: &'static str,
        /// The system's error.
        error: io::Error,
    },

    /// The knock cannot be sent to any address.
    #[error("the knock cannot be sent to {to}: {reasons}; check the route to it")]
    Send {
        /// The destination.
        to: Destination,
        /// Each address with its error.
        reasons: String,
    },
}

impl ClientError {
    /// 2 for wrong usage or configuration, 126 or 127 for a command that cannot be run (as env(1)), else 1.
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
