//! Holds the agent's sockets to the addresses they have. Instances hold some of them, of the node's network, and could
//! otherwise disconnect and use them for what they please there.
//!
//! ```text
//! the agent, in a cgroup v2 where it is alone ── makes ──> listeners, connections to backends
//!      └─ programs: connect, bind ── refuse the calls of every other process that holds the socket
//! ```
//!
//! The kernel runs the programs of the cgroup in which a socket was made. They are pinned, one set for each cgroup of an
//! agent, so that they hold also the sockets that outlive it. The kernel detaches a set when nothing of its cgroup is left.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader};
use headstart_ebpf::guard::{CGROUP, NETNS, PROGRAMS, USER};

use crate::cgroup2;
use crate::syn::{NamedLinks, Pins, chain};

mod option {
    use nix::{getsockopt_impl, libc, sockopt_impl};

    sockopt_impl!(NetnsCookie, GetOnly, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, u64);
}

/// Where agents have cgroups of their own. One more level: the top of the hierarchy is read-only (mode 0555) for an agent
/// that has given up its capabilities, and it could not remove its cgroup there.
const AGENTS: &str = "headstart-agents";

/// How often a cgroup is made again that could not be made because its parent had just gone.
const MAKE_AGAIN: usize = 10;

/// What it costs when the programs are not there.
const COST: &str = "a function can connect the sockets that it is given to other services of this node";

/// Why the programs are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuardError {
    /// The host has no hierarchy of cgroup v2.
    #[error(
        "{COST}: this needs cgroup v2 (mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified, beside version 1)"
    )]
    NoCgroup,
    /// The agent cannot have a cgroup of its own.
    #[error("{COST}: the agent cannot have the cgroup {} for itself ({error}): it needs root", .path.display())]
    Cgroup {
        /// The cgroup.
        path: PathBuf,
        /// The kernel's error.
        error: io::Error,
    },
    /// The kernel refuses the programs.
    #[error(
        "{COST}: the kernel refused the programs that prevent it ({0}): they need root, and Linux 5.14 or newer"
    )]
    Kernel(String),
}

/// The programs on the agent's cgroup.
pub(crate) struct Guard {
    /// A cgroup that was made for the agent, and where the agent was before.
    made: Option<(PathBuf, PathBuf)>,
    /// The programs stay attached while these are open or pinned.
    links: NamedLinks,
}

impl Guard {
    /// Attaches the programs to the cgroup of this process. Others there could no longer connect: so if it is not alone, it
    /// first moves to a new one below, `headstart-agents/NAME`. Call it before a socket is made that instances get.
    ///
    /// # Errors
    /// [`GuardError`].
    pub(crate) fn attach(name: &str, pins: Option<&Pins>) -> Result<Self, GuardError> {
        let home = cgroup2::own().ok_or(GuardError::NoCgroup)?;
        let refused = |path: &Path| {
            let path = path.to_owned();
            move |error| GuardError::Cgroup { path, error }
        };
        let made = match cgroup2::is_alone(&home).map_err(refused(&home))? {
            true => None,
            false => {
                let own = home.join(AGENTS).join(name);
                make(&own).and_then(|()| cgroup2::enter(&own)).map_err(refused(&own))?;
                Some((own, home.clone()))
            }
        };
        // From here on an error undoes it.
        let mut guard = Self { made, links: Vec::new() };
        let own = guard.made.as_ref().map_or(&home, |(own, _)| own);
        let (id, mut links) = load(own)?;
        if let Some(pins) = pins {
            links = match pins.pin_guard(id, links) {
                Ok(links) => links,
                Err(error) => {
                    tracing::warn!("{COST} while no agent runs: {error}");
                    load(own)?.1
                }
            };
        }
        guard.links = links;
        Ok(guard)
    }
}

impl Drop for Guard {
    /// Moves back, and removes the cgroup that was made. With pins, its sockets are still held.
    fn drop(&mut self) {
        if let Some((own, home)) = &self.made {
            match cgroup2::enter(home) {
                Ok(()) => remove(own),
                Err(error) => tracing::debug!("{} stays: {error}", own.display()),
            }
        }
    }
}

/// Removes the cgroup that an earlier agent made, if it is below this process's own and nothing is in it.
pub(crate) fn tidy(name: &str) {
    if let Some(home) = cgroup2::own() {
        remove(&home.join(AGENTS).join(name));
    }
}

/// Another agent may remove the directory of all at this moment.
fn make(own: &Path) -> io::Result<()> {
    let mut made = fs::create_dir_all(own);
    for _ in 0..MAKE_AGAIN {
        match made {
            Err(error) if error.kind() == io::ErrorKind::NotFound => made = fs::create_dir_all(own),
            made => return made,
        }
    }
    made
}

/// Removes an agent's cgroup and the directory of all, where they are empty.
fn remove(own: &Path) {
    for directory in own.ancestors().take(2) {
        let _busy_or_absent = fs::remove_dir(directory);
    }
}

/// Whether this host can do it: it does so with a cgroup that it removes again.
///
/// # Errors
/// [`GuardError`].
pub(crate) fn check() -> Result<(), GuardError> {
    let home = cgroup2::own().ok_or(GuardError::NoCgroup)?;
    let own = home.join(format!("headstart-check-{}", std::process::id()));
    fs::create_dir_all(&own).map_err(|error| GuardError::Cgroup { path: own.clone(), error })?;
    let loaded = load(&own).map(drop);
    let _stays_until_it_is_empty = fs::remove_dir(&own);
    loaded
}

/// Loads the programs for a cgroup and attaches them to it. Returns its ID, and the links by their programs' names.
fn load(cgroup: &Path) -> Result<(u64, NamedLinks), GuardError> {
    let unreadable = |error| GuardError::Cgroup { path: cgroup.to_owned(), error };
    let directory = File::open(cgroup).map_err(unreadable)?;
    // The kernel's number of a cgroup is the inode of its directory.
    let id = directory.metadata().map_err(unreadable)?.ino();
    let cookie = netns_cookie().map_err(|error| GuardError::Kernel(error.to_string()))?;
    let user = nix::unistd::geteuid().as_raw();
    let mut loader = EbpfLoader::new();
    loader.override_global(NETNS, &cookie, true);
    loader.override_global(CGROUP, &id, true);
    loader.override_global(USER, &user, true);
    let loaded = loader.load(headstart_ebpf::GUARD_OBJECT);
    let mut ebpf = loaded.map_err(|error| GuardError::Kernel(chain(&error)))?;
    let attach = |name| Ok((name, attach(&mut ebpf, name, &directory)?));
    let links = PROGRAMS.into_iter().map(attach).collect::<Result<_, String>>();
    Ok((id, links.map_err(GuardError::Kernel)?))
}

fn attach(ebpf: &mut Ebpf, name: &str, cgroup: &File) -> Result<FdLink, String> {
    let program = ebpf.program_mut(name).and_then(|program| program.try_into().ok());
    let program: &mut CgroupSockAddr = program.ok_or_else(|| format!("there is no {name}"))?;
    program.load().map_err(|error| chain(&error))?;
    // A link ignores the mode: a cgroup can have several programs, and all of them run.
    let link = program.attach(cgroup, CgroupAttachMode::Single).map_err(|error| chain(&error))?;
    let link = program.take_link(link).map_err(|error| chain(&error))?;
    link.try_into().map_err(|_| "this kernel has no links".to_owned())
}

/// What the kernel calls the network namespace of this process.
fn netns_cookie() -> io::Result<u64> {
    Ok(nix::sys::socket::getsockopt(&UnixDatagram::unbound()?, option::NetnsCookie)?)
}
