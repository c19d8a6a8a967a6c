//! One task per container waits for its first process; any number of others may ask how it ended.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::{Exit, StartError};
use crate::fd;

/// Sends how a process ended.
type ExitSender = watch::Sender<Option<Exit>>;

/// A container's first process. The number of a child of the agent cannot be
/// reused before the task here has waited for it.
pub(super) struct PidWatch {
    pid: i32,
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<Exit>>,
    namespace: Option<PathBuf>,
}

impl PidWatch {
    /// Begins to watch `pid`; its former parent must be gone. `oom` tells,
    /// after the end, whether the kernel killed for lack of memory.
    pub(super) fn child(pid: i32, oom: impl Fn() -> bool + Send + 'static) -> Result<Self, StartError> {
        let (watch, pidfd, sender) = Self::begin(pid)?;
        tokio::spawn(async move {
            let mut end = wait(&pidfd).await;
            end.oom = end.code != Some(0) && oom();
            sender.send_replace(Some(end));
        });
        Ok(watch)
    }

    /// Begins to watch a process that is not the agent's child: that it ended will be seen, but not
    /// how. The watch ends with its last user.
    pub(super) fn foreign(pid: i32) -> Result<Self, StartError> {
        let (watch, pidfd, sender) = Self::begin(pid)?;
        tokio::spawn(async move {
            tokio::select! {
                // An error only means that the whole runtime shuts down.
                _gone = pidfd.readable() => drop(sender.send_replace(Some(Exit::default()))),
                () = sender.closed() => {}
            }
        });
        Ok(watch)
    }

    fn begin(pid: i32) -> Result<(Self, AsyncFd<OwnedFd>, ExitSender), StartError> {
        let failed = StartError::system("watching a container");
        let number = Pid::from_raw(pid).ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        // It is readable when its process is gone (pidfd_open(2)).
        let ready =
            pidfd.try_clone().and_then(|pidfd| fd::register(pidfd, Interest::READABLE)).map_err(failed)?;
        let (sender, exit) = watch::channel(None);
        Ok((Self { pid, pidfd, exit, namespace: namespace_of(pid) }, ready, sender))
    }

    /// The process number in the agent's namespace. Only meaningful until the exit.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// How it ended, if it has.
    pub(super) fn now(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the end. Any number of tasks may.
    pub(super) async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        // The sender only goes away unsent when the whole runtime shuts down.
        exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or_default()
    }

    /// Sends a signal; nothing happens when it is gone.
    pub(super) fn signal(&self, signal: Signal) {
        // ESRCH is what the caller wanted anyway, and there is no other error for a child.
        let _gone = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Whether `pid` lives in the PID namespace of this container.
    pub(super) fn shares_namespace(&self, pid: i32) -> bool {
        self.now().is_none() && self.namespace.is_some() && namespace_of(pid) == self.namespace
    }
}

async fn wait(pidfd: &AsyncFd<OwnedFd>) -> Exit {
    loop {
        let Ok(mut ready) = pidfd.readable().await else { return Exit::default() };
        match waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => {
                return Exit { code: status.exit_status(), signal: status.terminating_signal(), oom: false };
            }
            Ok(None) => ready.clear_ready(),
            // Not our child: the agent is not a subreaper. It is gone, that much is known.
            Err(_) => return Exit::default(),
        }
    }
}

fn namespace_of(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// The program a process runs, to see an exec from outside.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Image {
    file: Option<(u64, u64)>,
    name: String,
}

impl Image {
    /// What `pid` runs now; `None` when it is gone and waited for. A zombie
    /// no longer has a file, but still its name.
    pub(super) fn of(pid: i32) -> Option<Self> {
        // In this order: once there is no file, the name is final.
        let file = fs::metadata(format!("/proc/{pid}/exe")).ok().map(|file| (file.dev(), file.ino()));
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some(Self { file, name })
    }

    /// As [`Image::parse`] reads it.
    pub(super) fn to_line(&self) -> String {
        let (device, inode) = self.file.unwrap_or_default();
        format!("{device} {inode} {}", self.name)
    }

    /// Reads what [`Image::to_line`] wrote of a process that was not a zombie.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        let mut number = || words.next()?.parse().ok();
        let file = Some((number()?, number()?));
        Some(Self { file, name: words.next()?.to_owned() })
    }

    /// Whether it was not yet a zombie.
    pub(super) fn is_alive(&self) -> bool {
        self.file.is_some()
    }

    /// Whether `later` shows that the process has exec'd since. The kernel
    /// changes the file before it closes the close-on-exec descriptors, and the
    /// name after: the name only counts when there is no file.
    pub(super) fn replaced_by(&self, later: &Self) -> bool {
        match later.file {
            Some(file) => self.file != Some(file),
            None => self.name != later.name,
        }
    }
}
