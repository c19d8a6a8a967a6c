//! The service manager: stores the descriptors that the next agent needs while no agent runs. These are the listening
//! sockets, and of each running instance the control socket and the activity page. It also restarts an agent that hangs
//! ([`Watchdog`]).
//!
//! ```text
//! agent 1 ──FDSTORE=1, FDNAME=..., descriptor──> manager
//!   dies                                           │ clients' connections wait in the accept queues,
//!                                                  │ instances' messages in their control sockets
//! agent 2 <──LISTEN_FDS, LISTEN_FDNAMES────────────┘
//! ```
//!
//! Protocols: sd_notify(3) and sd_listen_fds(3). Without a manager that stores
//! descriptors nothing here does anything: then the sockets close with the agent.

mod descriptor_store;
mod notify;
mod watchdog;

pub use descriptor_store::{DescriptorStore, StoreError};
pub use watchdog::Watchdog;

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Protocol, Socket, Type};

use self::notify::{Notification, NotifySocket, WhenFull, cannot_notify};

/// The variables in which the manager tells the agent what it stores and expects. Children of the agent must not see them.
pub const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// The first inherited descriptor (`SD_LISTEN_FDS_START`, sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// Most inherited descriptors that are taken: more than a manager is configured to store for the agent.
const INHERITED_MAX: RawFd = 65_536;

/// Names a listening socket, also for the next agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerKey {
    /// The socket that is bound to this address.
    Bound(SocketAddr),
    /// A socket on a free loopback port, for the function with this ID that shares this address.
    Hidden(SocketAddr, u32),
}

impl fmt::Display for ListenerKey {
    /// A name as `FDNAME` allows it: ASCII, no colon, at most 255 bytes (sd_notify(3)).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Bound(address) => format!("listen-{address}"),
            Self::Hidden(address, id) => format!("listen-{address}-{id}"),
        };
        f.write_str(&name.replace(':', "_"))
    }
}

impl ListenerKey {
    /// Whether this is a listening TCP socket that fits the key.
    fn fits(&self, socket: &Socket) -> io::Result<bool> {
        let listens = socket.r#type()? == Type::STREAM
            && socket.protocol()? == Some(Protocol::TCP)
            && socket.is_listener()?;
        let bound = socket.local_addr()?.as_socket();
        let there = bound.is_some_and(|bound| match self {
            Self::Bound(address) => bound == *address,
            Self::Hidden(address, _) => {
                bound.ip().to_canonical().is_loopback()
                    && bound.is_ipv4() == address.is_ipv4()
                    && bound.port() != 0
            }
        });
        Ok(listens && there)
    }
}

/// The service manager, or the lack of one.
#[derive(Default)]
pub struct ServiceManager {
    notify: Option<Arc<NotifySocket>>,
    /// A thread that sends the messages, once the agent serves.
    thread: Option<SyncSender<Notification>>,
    /// What an earlier agent stored and this one has not taken yet, by its name.
    inherited: HashMap<String, Vec<OwnedFd>>,
}

impl ServiceManager {
    /// Takes the descriptors that the environment announces. Must be the first call of the process, before it opens
    /// descriptors itself: until then nothing owns the announced numbers.
    #[must_use]
    pub fn from_environment() -> Self {
        let mut inherited: HashMap<_, Vec<_>> = HashMap::new();
        let announced = announced(std::process::id(), |name| env::var_os(name));
        if !announced.is_empty() {
            match take(announced) {
                Ok(taken) => taken.into_iter().for_each(|(name, descriptor)| {
                    inherited.entry(name).or_default().push(descriptor);
                }),
                Err(error) => eprintln!("headstart: inherited sockets cannot be taken: {error}"),
            }
        }
        let notify = env::var_os("NOTIFY_SOCKET").and_then(|path| match NotifySocket::to(&path) {
            Ok(notify) => Some(Arc::new(notify)),
            Err(error) => {
                eprintln!("headstart: NOTIFY_SOCKET={} cannot be used: {error}", path.display());
                None
            }
        });
        Self { notify, thread: None, inherited }
    }

    /// From now on another thread waits for the manager, which may be slow.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub fn start_thread(&mut self) -> io::Result<()> {
        self.thread = self.notify.clone().map(NotifySocket::start).transpose()?;
        Ok(())
    }

    /// Whether an earlier agent's socket for this key may be there.
    #[must_use]
    pub fn has_listener(&self, key: ListenerKey) -> bool {
        self.inherited.contains_key(&key.to_string())
    }

    /// An earlier agent's socket for this key. Closes a descriptor that has the name of the key and is something else.
    pub fn take_listener(&mut self, key: ListenerKey) -> Option<OwnedFd> {
        let name = key.to_string();
        for descriptor in self.inherited.remove(&name)? {
            let socket = Socket::from(descriptor);
            match key.fits(&socket) {
                Ok(true) => return Some(socket.into()),
                Ok(false) => {
                    tracing::warn!(name, "an inherited descriptor is not what its name says: closed")
                }
                Err(error) => tracing::warn!(name, "an inherited descriptor is no socket: {error}"),
            }
        }
        // The manager has stored something else under this name. The caller will store a new socket.
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        None
    }

    /// An earlier agent's control socket and activity page of an instance. The manager keeps its copies. Closes
    /// descriptors that have their name and are something else, and one of the two without the other.
    pub fn take_instance(&mut self, instance: &str) -> Option<(OwnedFd, OwnedFd)> {
        let name = descriptor_store::name(instance);
        let (mut control, mut page) = (None, None);
        for descriptor in self.inherited.remove(&name)? {
            if descriptor_store::is_control(&descriptor) {
                control = Some(descriptor);
            } else if descriptor_store::is_page(&descriptor) {
                page = Some(descriptor);
            } else {
                tracing::warn!(name, "an inherited descriptor is not what its name says: closed");
            }
        }
        let both = control.zip(page);
        if both.is_none() {
            tracing::warn!(name, "the control socket or the activity page of an instance is missing: closed");
            self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        }
        both
    }

    /// Where instances store their descriptors.
    #[must_use]
    pub fn descriptor_store(&self) -> DescriptorStore {
        DescriptorStore::new(self.notify.clone())
    }

    /// What the agent's main loop must await from [`Self::ready`] on; `None` if the manager has no watchdog for this
    /// process.
    ///
    /// # Panics
    /// When it is called outside of a runtime.
    #[must_use]
    pub fn watchdog(&self) -> Option<Watchdog> {
        let timeout = watchdog::timeout(std::process::id(), |name| env::var_os(name))?;
        Some(Watchdog::new(Arc::clone(self.notify.as_ref()?), timeout))
    }

    /// Another connection to the same manager, without the inherited descriptors.
    #[must_use]
    pub fn without_inherited(&self) -> Self {
        Self { notify: self.notify.clone(), thread: self.thread.clone(), inherited: HashMap::new() }
    }

    /// Stores a new socket for the next agent.
    pub fn store_listener(&self, key: ListenerKey, listener: &OwnedFd) {
        self.tell(&format!("FDSTORE=1\nFDNAME={key}"), Some(listener));
    }

    /// Tells the manager to close what it stores for this key.
    pub fn remove_listener(&self, key: ListenerKey) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={key}"), None);
    }

    /// Tells the manager that the agent serves. Inherited descriptors that were not taken belong to no function that is
    /// configured: they are closed, here and in the manager.
    pub fn ready(&mut self) {
        let unused: Vec<String> = self.inherited.drain().map(|(name, _closed)| name).collect();
        for name in unused {
            tracing::info!(name, "an inherited descriptor belongs to no configured function: closed");
            if is_legal(&name) {
                self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
            }
        }
        self.tell("READY=1", None);
    }

    /// Tells the manager that the agent ends, and how long that may take. The manager keeps the sockets, and closes
    /// them if it does not start the agent again.
    pub fn stopping(&self, at_most: Duration) {
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", at_most.as_micros()), None);
    }

    fn tell(&self, state: &str, descriptor: Option<&OwnedFd>) {
        let Some(notify) = &self.notify else { return };
        let sent = match &self.thread {
            None => notify.send(state, descriptor.map(AsFd::as_fd).as_slice(), WhenFull::Wait),
            Some(thread) => descriptor.map(OwnedFd::try_clone).transpose().and_then(|descriptor| {
                let notification = Notification { state: state.to_owned(), descriptor };
                thread.try_send(notification).map_err(|_full| io::ErrorKind::WouldBlock.into())
            }),
        };
        if let Err(error) = sent {
            cannot_notify(state, &error);
        }
    }
}

/// As systemd's `fdname_is_valid`.
fn is_legal(name: &str) -> bool {
    name.len() <= 255 && name.bytes().all(|byte| (b' '..127).contains(&byte) && byte != b':')
}

/// The descriptors that the environment announces to this process, with their
/// names. None if a variable is malformed.
fn announced(pid: u32, variable: impl Fn(&str) -> Option<OsString>) -> Vec<(RawFd, String)> {
    let text = |name| variable(name)?.into_string().ok();
    let number = |name| text(name)?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(pid) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok());
    let Some(count @ 1..=INHERITED_MAX) = count else { return Vec::new() };
    let names = text("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    // Without names they can only be closed.
    let name = |at: RawFd| match usize::try_from(at) {
        Ok(at) if names.len() == usize::try_from(count).unwrap_or(0) => names[at].to_owned(),
        _ => String::new(),
    };
    (0..count).map(|at| (FIRST + at, name(at))).collect()
}

/// Makes owned, close-on-exec descriptors of inherited numbers, and closes the numbers.
fn take(announced: Vec<(RawFd, String)>) -> io::Result<Vec<(String, OwnedFd)>> {
    // A wrong list may contain free numbers. No descriptor that is opened here may get one of them.
    let beyond = FIRST + RawFd::try_from(announced.len()).unwrap_or(INHERITED_MAX);
    let away = |descriptor: OwnedFd| rustix::io::fcntl_dupfd_cloexec(descriptor, beyond);
    let own = away(pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?)?;
    let mut taken = Vec::new();
    for (number, name) in announced {
        match pidfd_getfd(&own, number, PidfdGetfdFlags::empty()).and_then(away) {
            Ok(descriptor) => taken.push((name, descriptor)),
            Err(rustix::io::Errno::BADF) => continue,
            Err(error) => return Err(error.into()),
        }
        // The number is open, and nothing in this process owns it: so it can only succeed.
        let _closed = nix::unistd::close(number);
    }
    Ok(taken)
}

#[cfg(test)]
mod tests;
