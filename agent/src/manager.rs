//! The service manager: keeps what the next agent needs while the agent is away. These are the listening
//! sockets, and of each running instance the control socket and the activity page.
//!
//! ```text
//! agent 1 ──FDSTORE=1, FDNAME=..., descriptor──> manager
//!   dies                                           │ clients' connections wait in the accept queues,
//!                                                  │ instances' messages in their control sockets
//! agent 2 <──LISTEN_FDS, LISTEN_FDNAMES────────────┘
//! ```
//!
//! Protocols: sd_notify(3) and sd_listen_fds(3). Without a manager that keeps
//! descriptors nothing here does anything: then the sockets die with the agent.

mod descriptor_store;
mod notify;

pub use descriptor_store::{DescriptorStore, StoreError};

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Protocol, Socket, Type};

use self::notify::{NotifySocket, WhenFull};

/// What the manager tells in the environment. Children of the agent must not see it.
pub const VARIABLES: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The first inherited descriptor (`SD_LISTEN_FDS_START`, sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// Most inherited descriptors that are looked at: more than a manager may be configured to keep for the agent.
const INHERITED_MAX: RawFd = 65_536;

/// Which listening socket it is, also for the next agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerKey {
    /// The one that is bound to this address.
    Bound(SocketAddr),
    /// One on a free loopback port, for the function with this id that shares this address.
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
    /// What an earlier agent stored, by its name, as far as it was not taken.
    inherited: HashMap<String, Vec<OwnedFd>>,
}

impl ServiceManager {
    /// Takes what the environment tells of. Must come first in the process,
    /// before anything opens descriptors; they are numbers of nobody until then.
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
        Self { notify, inherited }
    }

    /// Whether an earlier agent's socket for this key may be there.
    #[must_use]
    pub fn has_listener(&self, key: ListenerKey) -> bool {
        self.inherited.contains_key(&key.to_string())
    }

    /// An earlier agent's socket for this key. What has its name and is
    /// something else is closed.
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
        // What is kept under this name is of no use: the caller will store another.
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        None
    }

    /// An earlier agent's control socket and activity page of an instance, which stay kept. What has their
    /// name and is something else is closed, and so is one without the other.
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
            tracing::warn!(name, "not all that was kept of an instance is there: closed");
            self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        }
        both
    }

    /// What has instances kept, and can be shared.
    #[must_use]
    pub fn descriptor_store(&self) -> DescriptorStore {
        DescriptorStore::new(self.notify.clone())
    }

    /// Speaks to the same manager, and has inherited nothing.
    #[must_use]
    pub fn without_inherited(&self) -> Self {
        Self { notify: self.notify.clone(), inherited: HashMap::new() }
    }

    /// Has a new socket kept for the next agent.
    pub fn store_listener(&self, key: ListenerKey, listener: &OwnedFd) {
        self.tell(&format!("FDSTORE=1\nFDNAME={key}"), Some(listener));
    }

    /// Has what is kept for this key closed.
    pub fn remove_listener(&self, key: ListenerKey) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={key}"), None);
    }

    /// Says that the agent serves. What was inherited and not taken is of no
    /// function any more: it is closed, here and there.
    pub fn ready(&mut self) {
        let unused: Vec<String> = self.inherited.drain().map(|(name, _closed)| name).collect();
        for name in unused {
            tracing::info!(name, "what was inherited belongs to nothing any more: closed");
            if is_legal(&name) {
                self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
            }
        }
        self.tell("READY=1", None);
    }

    /// Says that the agent ends. The sockets stay with the manager, which drops
    /// them when it does not start the agent again.
    pub fn stopping(&self) {
        self.tell("STOPPING=1", None);
    }

    fn tell(&self, state: &str, descriptor: Option<&OwnedFd>) {
        let Some(notify) = &self.notify else { return };
        let descriptors = descriptor.map(AsFd::as_fd);
        if let Err(error) = notify.send(state, descriptors.as_slice(), WhenFull::Wait) {
            let notification = state.replace('\n', " ");
            tracing::warn!(notification, "the service manager does not listen: {error}");
        }
    }
}

/// As systemd's `fdname_is_valid`.
fn is_legal(name: &str) -> bool {
    name.len() <= 255 && name.bytes().all(|byte| (b' '..127).contains(&byte) && byte != b':')
}

/// The descriptors that the environment announces to this process, with their
/// names. None if anything about it is strange.
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
    // Without names they can still be closed.
    let name = |at: RawFd| match usize::try_from(at) {
        Ok(at) if names.len() == usize::try_from(count).unwrap_or(0) => names[at].to_owned(),
        _ => String::new(),
    };
    (0..count).map(|at| (FIRST + at, name(at))).collect()
}

/// Makes owned, close-on-exec descriptors of inherited numbers, and closes the numbers.
fn take(announced: Vec<(RawFd, String)>) -> io::Result<Vec<(String, OwnedFd)>> {
    // A wrong list names numbers that are free: what is opened here must not get one of them.
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
        // It is open, and nobody in this process knows it: so it can only succeed.
        let _closed = nix::unistd::close(number);
    }
    Ok(taken)
}

#[cfg(test)]
mod tests;
