//! A service manager for one service, as far as an agent can tell: it is told what the service is up to
//! (sd_notify(3)), keeps the descriptors that the service stores, also when that is killed, and hands them to
//! the next (sd_listen_fds(3)). systemd's file descriptor store, without systemd.

use std::ffi::OsStr;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use command_fds::{CommandFdExt as _, FdMapping};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::scratch::Scratch;

/// The first descriptor that is passed (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// Most descriptors in one message (`SCM_MAX_FD`, unix(7)).
const MOST: usize = 253;

/// The service manager. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Manager(Arc<Owner>);

/// Ends the thread when the last clone goes.
#[derive(Debug)]
struct Owner {
    inbox: Arc<Inbox>,
    path: PathBuf,
    _files: Scratch,
}

#[derive(Debug)]
struct Inbox {
    socket: UnixDatagram,
    closed: AtomicBool,
    state: Mutex<ManagerState>,
}

#[derive(Debug, Default)]
struct ManagerState {
    stored: Vec<(String, OwnedFd)>,
    said: Vec<String>,
}

impl Manager {
    /// One that has heard nothing yet.
    pub fn new() -> Result<Self> {
        let files = Scratch::new("manager")?;
        let path = files.path().join("notify");
        let socket = UnixDatagram::bind(&path).with_context(|| format!("binding {}", path.display()))?;
        socket.set_nonblocking(true)?;
        let inbox = Arc::new(Inbox { socket, closed: AtomicBool::new(false), state: Mutex::default() });
        let reader = Arc::clone(&inbox);
        thread::spawn(move || reader.read());
        Ok(Self(Arc::new(Owner { inbox, path, _files: files })))
    }

    /// `NOTIFY_SOCKET` of the service.
    pub fn socket(&self) -> &Path {
        &self.0.path
    }

    /// Names of what is stored now, one for each descriptor, in the order of storing.
    pub fn stored(&self) -> Result<Vec<String>> {
        let state = self.0.inbox.drain()?;
        Ok(state.stored.iter().map(|(name, _)| name.clone()).collect())
    }

    /// How often the service has said this line, `READY=1` for instance.
    pub fn heard(&self, line: &str) -> Result<usize> {
        Ok(self.0.inbox.drain()?.said.iter().filter(|said| *said == line).count())
    }

    /// What starts the service with all that is stored. `LISTEN_PID` is known in the new process only, so a
    /// shell sets it, and then becomes the program.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let state = self.0.inbox.drain()?;
        let mut command = Command::new("sh");
        command.env("NOTIFY_SOCKET", self.socket());
        if state.stored.is_empty() {
            command.args([OsStr::new("-c"), OsStr::new(r#"exec "$0" "$@""#), program.as_os_str()]);
            return Ok(command);
        }
        let script = r#"LISTEN_PID=$$; export LISTEN_PID; exec "$0" "$@""#;
        command.args([OsStr::new("-c"), OsStr::new(script), program.as_os_str()]);
        let names: Vec<_> = state.stored.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let mut mappings = Vec::new();
        for (child_fd, (_, descriptor)) in (FIRST..).zip(&state.stored) {
            mappings.push(FdMapping { parent_fd: descriptor.try_clone()?, child_fd });
        }
        command.fd_mappings(mappings)?;
        Ok(command)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.inbox.closed.store(true, Ordering::Release);
        let _wakes_the_reader = self.inbox.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Inbox {
    /// Reads as messages come: their senders block while the queue is full (`net.unix.max_dgram_qlen`).
    fn read(&self) {
        while !self.closed.load(Ordering::Acquire) {
            let watched = PollFd::new(self.socket.as_fd(), PollFlags::POLLIN);
            let drained = match poll(&mut [watched], PollTimeout::NONE) {
                Ok(_) => self.drain().map(drop),
                Err(nix::errno::Errno::EINTR) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = drained {
                eprintln!("the service manager cannot hear its service: {error:#}");
                return;
            }
        }
    }

    /// Takes in everything that has been said up to now, also by a service that is dead.
    fn drain(&self) -> Result<MutexGuard<'_, ManagerState>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.closed.load(Ordering::Acquire) {
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let read = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
            let length = match read {
                Ok(read) => read.bytes,
                Err(rustix::io::Errno::WOULDBLOCK) => break,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let descriptors = control.drain().flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(rights) => rights.collect(),
                _ => Vec::new(),
            });
            state.take(&String::from_utf8_lossy(&bytes[..length]), descriptors.collect())?;
        }
        Ok(state)
    }
}

impl ManagerState {
    /// One message of the service.
    fn take(&mut self, text: &str, descriptors: Vec<OwnedFd>) -> Result<()> {
        let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
        let value = |key: &str| lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        // What systemd calls a descriptor whose service gave it no name.
        let name = value("FDNAME").unwrap_or("stored");
        if value("FDSTOREREMOVE") == Some("1") {
            self.stored.retain(|(stored, _)| stored != name);
        } else if value("FDSTORE") == Some("1") {
            for descriptor in descriptors {
                self.store(name, descriptor)?;
            }
        }
        self.said.extend(lines.into_iter().map(str::to_owned));
        Ok(())
    }

    /// Keeps a descriptor, unless it is of a file that is kept already: as systemd does.
    fn store(&mut self, name: &str, descriptor: OwnedFd) -> Result<()> {
        let file = fstat(&descriptor)?;
        for (_, stored) in &self.stored {
            let known = fstat(stored)?;
            if (known.st_dev, known.st_ino) == (file.st_dev, file.st_ino) {
                return Ok(());
            }
        }
        self.stored.push((name.to_owned(), descriptor));
        Ok(())
    }
}
