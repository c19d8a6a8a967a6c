//! Maps and links that outlive the agent, pinned in a BPF file system, so that sensors work during a restart.
//!
//! ```text
//! PIN_DIR/                       locked (flock(2)) by the agent that owns it
//!   maps-<layout>/FUNCTIONS ...  one file for each map of the contract
//!   links/xdp-native-<ifindex>   xdp-generic-, tcx-; and lookup
//!   guards/<cgroup>/connect4 ... links of the programs on a cgroup of an agent (`guard.rs`)
//! ```
//!
//! The new agent opens the maps, writes its own functions into them, and replaces the program behind each link
//! in place. Then it removes maps of another layout.

use std::fs::{self, File};
use std::io;
use std::mem::size_of;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use headstart_ebpf::event::{SensorCounters, SynEvent};
use headstart_ebpf::maps::{
    self, ENTRIES_MAX, EVENTS_BYTES, FUNCTIONS_MAX, FunctionEntry, KEYS_MAX, KeySlot, LISTENERS_MAX,
    OpenedKey, PacketFlow, PortKey, REMEMBERED_MAX, ReportedSyns, SOURCES_MAX, Settings,
};
use headstart_ebpf::replay::{ReplaySet, SETS};
use headstart_ebpf::sketch::Sketch;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::chain;

/// The usual mount point of the BPF file system, also systemd's.
const BPFFS: &str = "/sys/fs/bpf";

/// The pinned maps: those of the contract with user space. Others, such as scratch space, are not pinned.
pub(super) const MAPS: [&str; 16] = [
    maps::FUNCTIONS,
    maps::PORTS,
    maps::SETTINGS,
    maps::KEYS,
    maps::SOURCES,
    maps::FUNCTION_GATES,
    maps::GLOBAL_GATE,
    maps::SKETCH,
    maps::TOLD,
    maps::REPLAYS,
    maps::OPENED,
    maps::STEERED,
    maps::LISTENERS,
    maps::EVENTS_AUTHENTICATED,
    maps::EVENTS_OPEN,
    maps::STATS,
];

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Another agent owns the directory.
    #[error(
        "another agent runs with the pin directory {}: stop it, or set another `pin_dir` in [syn]",
        .0.display()
    )]
    Locked(PathBuf),
    /// The directory is not on a BPF file system, and none can be mounted there.
    #[error(
        "{} is not on a BPF file system ({why}): mount -t bpf bpf {BPFFS}, and set `pin_dir` in [syn] to a \
         directory below it",
        .dir.display()
    )]
    NotBpffs {
        /// The configured directory.
        dir: PathBuf,
        /// The reason.
        why: String,
    },
    /// The file system refuses an operation.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A link cannot be pinned.
    #[error("{} cannot be pinned: {why}", .path.display())]
    Pin {
        /// The path.
        path: PathBuf,
        /// The kernel's error.
        why: String,
    },
}

/// Links, each by the name of its program.
pub(crate) type NamedLinks = Vec<(&'static str, FdLink)>;

/// A locked pin directory.
pub struct Pins {
    dir: PathBuf,
    keep: bool,
    /// Locked until the agent ends, even if it is killed.
    _lock: Flock<File>,
}

impl Pins {
    /// Locks the directory; makes it, and mounts the file system, if necessary. Without `keep` nothing is pinned, and the
    /// pins of an earlier agent are taken over and removed.
    ///
    /// # Errors
    /// [`PinError::Locked`] when another agent uses the directory; the other errors mean that this host cannot pin.
    pub fn open(dir: &Path, keep: bool) -> Result<Self, PinError> {
        ensure_bpffs(dir)?;
        let io = |error| PinError::Io { path: dir.to_owned(), error };
        fs::create_dir_all(dir).map_err(io)?;
        let lock = match Flock::lock(File::open(dir).map_err(io)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::Error::EWOULDBLOCK)) => return Err(PinError::Locked(dir.to_owned())),
            Err((_, error)) => return Err(io(error.into())),
        };
        let pins = Self { dir: dir.to_owned(), keep, _lock: lock };
        if keep {
            for dir in [pins.links(), pins.maps_dir(), pins.guards()] {
                make(&dir)?;
            }
        }
        Ok(pins)
    }

    /// The directory of this layout's maps; `None` without pinning.
    pub(super) fn maps(&self) -> Option<PathBuf> {
        self.keep.then(|| self.maps_dir())
    }

    /// Whether links and maps are pinned.
    pub(super) fn keeps(&self) -> bool {
        self.keep
    }

    fn maps_dir(&self) -> PathBuf {
        self.dir.join(format!("maps-{:016x}", layout()))
    }

    fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    fn guards(&self) -> PathBuf {
        self.dir.join("guards")
    }

    /// Pins the links of the programs on a cgroup, by the programs' names, in place of older ones. Links that the kernel has
    /// detached, because nothing is left of their cgroup, are removed.
    pub(crate) fn pin_guard(&self, cgroup: u64, links: NamedLinks) -> Result<NamedLinks, PinError> {
        for other in list(&self.guards()).into_iter().map(|name| self.guards().join(name)) {
            if !self.keep || list(&other).iter().all(|link| is_detached(&other.join(link))) {
                remove(fs::remove_dir_all(&other), &other.display().to_string());
            }
        }
        if !self.keep {
            return Ok(links);
        }
        let dir = self.guards().join(cgroup.to_string());
        make(&dir)?;
        links.into_iter().map(|(name, link)| Ok((name, pin(link, &dir, name)?))).collect()
    }

    /// Opens a link that an earlier agent pinned.
    pub(super) fn opened(&self, name: &str) -> Option<FdLink> {
        PinnedLink::from_pin(self.links().join(name)).ok().map(FdLink::from)
    }

    /// Pins a link under a name, and atomically replaces an older pin of that name.
    pub(super) fn pin(&self, link: FdLink, name: &str) -> Result<FdLink, PinError> {
        if !self.keep {
            self.forget(name);
            return Ok(link);
        }
        pin(link, &self.links(), name)
    }

    /// Removes a pin; the program detaches when no process has the link open.
    pub(super) fn forget(&self, name: &str) {
        remove(fs::remove_file(self.links().join(name)), name);
    }

    /// Removes every link that is not among `names`, and the maps of other layouts.
    pub(super) fn retain(&self, names: &[String]) {
        for name in list(&self.links()).into_iter().filter(|name| !names.contains(name)) {
            self.forget(&name);
        }
        let current = self.maps();
        for name in list(&self.dir).into_iter().filter(|name| name.starts_with("maps-")) {
            let path = self.dir.join(&name);
            if current.as_ref() != Some(&path) {
                remove(fs::remove_dir_all(&path), &name);
            }
        }
    }

    /// Removes links and maps of sensors.
    pub(crate) fn forget_sensors(&self) {
        self.retain(&[]);
        remove(fs::remove_dir_all(self.maps_dir()), "maps");
    }

    /// Removes all pins and the directory. Programs detach when the agent closes its own descriptors.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn clear(&self) -> Result<(), PinError> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Io { path: self.dir.clone(), error })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Pins {
    /// An agent that failed to start has pinned nothing, and leaves no directory either.
    fn drop(&mut self) {
        if !self.keep {
            let _used_or_absent = fs::remove_dir(&self.dir);
        }
    }
}

/// Whether `dir` is on a BPF file system, so that an agent may have pinned something there.
#[must_use]
pub fn is_pinned(dir: &Path) -> bool {
    is_bpffs(dir).unwrap_or(false)
}

fn make(dir: &Path) -> Result<(), PinError> {
    fs::create_dir_all(dir).map_err(|error| PinError::Io { path: dir.to_owned(), error })
}

fn pin(link: FdLink, dir: &Path, name: &str) -> Result<FdLink, PinError> {
    let (path, next) = (dir.join(name), dir.join(format!("{name}-next")));
    // An agent that died at this point has left this file.
    let _ = fs::remove_file(&next);
    let pinned = link.pin(&next).map_err(|error| PinError::Pin { path: path.clone(), why: chain(&error) })?;
    fs::rename(&next, &path).map_err(|error| PinError::Io { path, error })?;
    Ok(pinned.into())
}

/// Whether the cgroup of a pinned link is gone. The kernel's description of the open descriptor then names
/// no cgroup. What cannot be read is kept.
fn is_detached(path: &Path) -> bool {
    let Ok(link) = PinnedLink::from_pin(path) else { return false };
    let Ok(id) = FdLink::from(link).info().map(|info| info.id()) else { return false };
    let own = format!("link_id:\t{id}\n");
    let files = fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten();
    let mut texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    texts.any(|text| text.contains(&own) && text.contains("cgroup_id:\t0\n"))
}

fn remove(outcome: io::Result<()>, name: &str) {
    if let Err(error) = outcome
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(pin = name, "a pin of an earlier agent cannot be removed: {error}");
    }
}

fn list(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Mounts the BPF file system at its usual place, as systemd does at boot, unless it is mounted.
fn ensure_bpffs(dir: &Path) -> Result<(), PinError> {
    let lack = |why: String| PinError::NotBpffs { dir: dir.to_owned(), why };
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match is_bpffs(existing) {
        Ok(true) => return Ok(()),
        Ok(false) if dir.starts_with(BPFFS) && dir != Path::new(BPFFS) => {}
        Ok(false) => return Err(lack(format!("{} is on another file system", existing.display()))),
        Err(error) => return Err(lack(error.to_string())),
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|error| lack(format!("mounting one on {BPFFS}: {}", error.desc())))?;
    tracing::info!("mounted the BPF file system on {BPFFS}");
    Ok(())
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

/// A hash of this build's map layout: the layout number, and every size on which maps depend.
fn layout() -> u64 {
    let sizes = [
        maps::LAYOUT as usize,
        size_of::<PortKey>(),
        size_of::<FunctionEntry>(),
        size_of::<Settings>(),
        size_of::<KeySlot>(),
        size_of::<Sketch>(),
        size_of::<ReplaySet>(),
        size_of::<ReportedSyns>(),
        size_of::<PacketFlow>(),
        size_of::<OpenedKey>(),
        size_of::<SensorCounters>(),
        size_of::<SynEvent>(),
        ENTRIES_MAX,
        FUNCTIONS_MAX,
        KEYS_MAX,
        SOURCES_MAX,
        REMEMBERED_MAX,
        SETS,
        LISTENERS_MAX,
        EVENTS_BYTES,
    ];
    let sizes = sizes.iter().flat_map(|size| size.to_le_bytes());
    fnv1a(sizes.chain(MAPS.iter().flat_map(|name| name.bytes())))
}

/// FNV-1a (draft-eastlake-fnv): stable over builds. It needs no resistance to attacks here.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a(b"foobar".iter().copied()), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn every_map_is_pinned_once() {
        let mut names = MAPS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MAPS.len());
        assert!(MAPS.iter().all(|name| !name.contains('.')), "bpffs refuses dots");
    }

    #[test]
    fn a_directory_on_another_file_system_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let error = Pins::open(&dir.path().join("pins"), true).err().unwrap();
        assert!(matches!(error, PinError::NotBpffs { .. }));
        assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
        assert!(!dir.path().join("pins").exists());
    }
}
