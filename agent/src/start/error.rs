//! Why a container could not be prepared, released or removed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use headstart_config::PrivateFileError;

use super::Exit;
use crate::event::FailureCause;

/// Why a container could not be prepared, released or removed. Each message says
/// whose fault it is and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node lacks the program that makes containers.
    #[error("{} cannot be run: {hint}", path.display())]
    RuntimeMissing {
        /// Where it was looked for.
        path: PathBuf,
        /// What to install or configure.
        hint: &'static str,
    },
    /// The configured root file system is not there.
    #[error("the root file system {} is not a directory: unpack the function there, or correct `rootfs`", path.display())]
    RootfsMissing {
        /// The configured path.
        path: PathBuf,
    },
    /// The image is not on this node. The agent never pulls on the path of a request.
    #[error("the image {image:?} is not on this node: pull or build it first, or correct `image`")]
    ImageMissing {
        /// The configured image.
        image: String,
    },
    /// The configured command does not exist where the function would run.
    #[error("the command {command:?} is not in {place}: correct `command`, or add the program")]
    CommandMissing {
        /// The program.
        command: String,
        /// Where it was looked for.
        place: String,
    },
    /// A secret that cannot be used. A retry does not help.
    #[error("a secret: {source}")]
    Secret {
        /// Which, and why.
        source: PrivateFileError,
    },
    /// The container daemon does not answer. A retry helps once it runs.
    #[error("the container daemon at {} does not answer ({detail}): start it, or correct its socket path", socket.display())]
    DaemonUnreachable {
        /// The daemon's socket.
        socket: PathBuf,
        /// What was seen.
        detail: String,
    },
    /// An instance name that cannot be a file name, or does not belong to this function.
    #[error(
        "the instance name {instance:?} does not fit function {function:?}: this is a fault of the agent"
    )]
    InstanceName {
        /// The name.
        instance: String,
        /// The function of this runtime.
        function: String,
    },
    /// The runtime refused to make the container. A retry rarely helps.
    #[error("the container could not be made: {detail}")]
    Create {
        /// What the runtime said.
        detail: String,
    },
    /// The container ended before it was released: something on the node killed it. A retry helps.
    #[error("the container ended while it was parked ({exit}): look for what killed it, then start another")]
    Died {
        /// How it ended.
        exit: Exit,
    },
    /// The program exists but the kernel would not run it. A retry does not help.
    #[error(
        "the command {command:?} could not be executed: {detail}; check its architecture, its interpreter and its mode"
    )]
    Exec {
        /// The program.
        command: String,
        /// The error of execve(2).
        detail: String,
    },
    /// It was released before: a container runs once.
    #[error("the container was released before: this is a fault of the agent")]
    AlreadyReleased,
    /// An earlier agent's instance that no longer runs. Another one must be started.
    #[error("the instance {instance:?} of an earlier agent cannot be taken over: {detail}; start another")]
    Adopt {
        /// Its name.
        instance: String,
        /// What was seen.
        detail: &'static str,
    },
    /// A step took longer than it ever should: an overloaded node, or a stuck daemon. A retry may help.
    #[error("{step} took longer than {} s: the node is overloaded, or what it waits for is stuck", after.as_secs_f32())]
    TimedOut {
        /// What was being done.
        step: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// It was not stopped, and runs on. A retry may help.
    #[error("the instance could not be frozen and runs on: {detail}")]
    Freeze {
        /// Why, and what to do.
        detail: String,
    },
    /// It may still be frozen: whatever waits for it waits on. A retry may help.
    #[error("the instance could not be thawed: {detail}; stop it if it stays so")]
    Thaw {
        /// Why.
        detail: String,
    },
    /// A container is gone, but not all of its traces.
    #[error("the container left something behind: {detail}")]
    Left {
        /// What, and why.
        detail: String,
    },
    /// A system call of the agent failed: a limit or a missing privilege.
    #[error("{step} failed: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The error.
        source: io::Error,
    },
}

impl StartError {
    /// A short constant name, for logs and metric labels.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RuntimeMissing { .. } => "runtime_missing",
            Self::RootfsMissing { .. } => "rootfs_missing",
            Self::ImageMissing { .. } => "image_missing",
            Self::CommandMissing { .. } => "command_missing",
            Self::Secret { .. } => "secret",
            Self::DaemonUnreachable { .. } => "daemon_unreachable",
            Self::InstanceName { .. } => "instance_name",
            Self::Create { .. } => "create",
            Self::Died { .. } => "died",
            Self::Exec { .. } => "exec",
            Self::AlreadyReleased => "already_released",
            Self::Adopt { .. } => "adopt",
            Self::TimedOut { .. } => "timed_out",
            Self::Freeze { .. } => "freeze",
            Self::Thaw { .. } => "thaw",
            Self::Left { .. } => "left",
            Self::System { .. } => "system",
        }
    }

    /// Whose failure it is. What only a change of the configuration or of the function repairs is the function's.
    #[must_use]
    pub fn cause(&self) -> FailureCause {
        match self {
            Self::RootfsMissing { .. }
            | Self::ImageMissing { .. }
            | Self::CommandMissing { .. }
            | Self::Secret { .. }
            | Self::Exec { .. } => FailureCause::Function,
            Self::RuntimeMissing { .. }
            | Self::DaemonUnreachable { .. }
            | Self::InstanceName { .. }
            | Self::Create { .. }
            | Self::Died { .. }
            | Self::AlreadyReleased
            | Self::Adopt { .. }
            | Self::TimedOut { .. }
            | Self::Freeze { .. }
            | Self::Thaw { .. }
            | Self::Left { .. }
            | Self::System { .. } => FailureCause::Node,
        }
    }

    /// Wraps a failed system call; `step` is a noun phrase such as "making a pipe".
    pub(super) fn system<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::System { step, source: source.into() }
    }
}

/// Gives a step its deadline.
pub(super) async fn within<T>(
    after: Duration,
    step: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, StartError> {
    tokio::time::timeout(after, work).await.map_err(|_elapsed| StartError::TimedOut { step, after })
}
