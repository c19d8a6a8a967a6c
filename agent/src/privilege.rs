//! What the agent keeps of root's powers once everything is set up.
//!
//! The user stays root, which owns the state directory, the cgroups and the key
//! files. Capabilities (capabilities(7)) are cut down to [`needs`], in every set
//! and for every child: under `no_new_privs` not even a program of
//! root, such as the OCI runtime, gets back more than the agent has.
//!
//! What instances need is each driver's to say. The eBPF programs need nothing more: since
//! Linux 6.6 the holder of a loaded program may attach it to interfaces that appear later, too.
//!
//! What is dropped always: loading eBPF, modules and raw packets, the clock, the
//! kernel's log, binding more privileged ports (unless one is busy, and tried again), and the rest. With `oci` and
//! `process` functions `CAP_SYS_ADMIN` stays, for namespaces and mounts; it is a
//! great deal, and includes using bpf(2). A node that has only functions of a daemon
//! keeps nothing of it: there the daemon has the powers.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use headstart_config::{Address, Backend, Config, Interfaces};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// From this kernel on, what was loaded and opened can be used and attached
/// without a capability, where unprivileged bpf(2) is disabled
/// (commit c8644cd0efe7, "bpf: refine kernel.unprivileged_bpf_disabled behaviour").
const BPF_BY_DESCRIPTOR: (u32, u32) = (5, 19);

/// From this kernel on, tcx attaches by bpf(2) what had to go over netlink
/// before, which asks for `CAP_NET_ADMIN` (commit e420bed02507, "bpf: Add fd-based tcx
/// multi-prog infra with link support").
pub(crate) const TC_BY_DESCRIPTOR: (u32, u32) = (6, 6);

/// To reach a place of another user: the state directory, the key file, a password, a socket of a backend or of a
/// daemon.
const FOREIGN: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// To end the instances of an earlier agent, of whatever runtime.
const SURVIVORS: CapabilitySet = CapabilitySet::KILL;

/// To attach the programs to interfaces that appear later, on a kernel that has no tcx.
const OLD_TC: CapabilitySet = CapabilitySet::NET_ADMIN;

/// To use maps that are open, on a kernel that asks for it.
const OLD_BPF: CapabilitySet = CapabilitySet::BPF;

/// Every capability that may be kept, with its name in logs.
const NAMES: [(CapabilitySet, &str); 16] = [
    (CapabilitySet::SYS_ADMIN, "SYS_ADMIN"),
    (CapabilitySet::SETUID, "SETUID"),
    (CapabilitySet::SETGID, "SETGID"),
    (CapabilitySet::SETPCAP, "SETPCAP"),
    (CapabilitySet::KILL, "KILL"),
    (CapabilitySet::SYS_PTRACE, "SYS_PTRACE"),
    (CapabilitySet::SYS_NICE, "SYS_NICE"),
    (CapabilitySet::CHOWN, "CHOWN"),
    (CapabilitySet::FOWNER, "FOWNER"),
    (CapabilitySet::DAC_OVERRIDE, "DAC_OVERRIDE"),
    (CapabilitySet::SYS_RESOURCE, "SYS_RESOURCE"),
    (CapabilitySet::NET_ADMIN, "NET_ADMIN"),
    (CapabilitySet::MKNOD, "MKNOD"),
    (CapabilitySet::SYS_CHROOT, "SYS_CHROOT"),
    (CapabilitySet::BPF, "BPF"),
    (CapabilitySet::NET_BIND_SERVICE, "NET_BIND_SERVICE"),
];

/// Why privileges stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The kernel said no.
    #[error("{step} failed: {source}; the agent runs with more privileges than it needs")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// The error.
        source: io::Error,
    },
    /// Capabilities belong to threads, and these were begun before.
    #[error("{0} threads of the agent keep their privileges: this is a fault of the agent")]
    Threads(usize),
}

fn refused<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> PrivilegeError {
    move |source| PrivilegeError::Refused { step, source: source.into() }
}

/// The capabilities that an agent with this configuration needs after its set-up: those of its drivers, its own, and
/// those for the instances that an earlier agent left, if there are any.
#[must_use]
pub fn needs(config: &Config, of_drivers: CapabilitySet, survivors: bool) -> CapabilitySet {
    // Unknown is old.
    of_drivers | needs_on(kernel_release().unwrap_or((0, 0)), config, survivors)
}

fn needs_on(release: (u32, u32), config: &Config, survivors: bool) -> CapabilitySet {
    let sockets = config.backends.iter().filter_map(|backend| match &backend.address {
        Address::Unix(path) => Some(path),
        Address::Tcp { .. } => None,
    });
    let places = sockets.chain(&config.syn.key_file).chain([&config.agent.state_dir]);
    // A reload reads them again.
    let places = places.chain(config.backends.iter().flat_map(Backend::files));
    let places = places.chain(config.fronts.iter().flat_map(|front| &front.certificates));
    let foreign = places.into_iter().any(|place| is_foreign(place));
    let interfaces = config.agent.interfaces != Interfaces::Named(Vec::new());
    let all = [
        (FOREIGN, foreign),
        (SURVIVORS, survivors),
        (OLD_TC, interfaces && release < TC_BY_DESCRIPTOR),
        (OLD_BPF, (interfaces || config.syn.lookup) && release < BPF_BY_DESCRIPTOR),
    ];
    let needed = all.into_iter().filter(|(_, needed)| *needed);
    needed.fold(CapabilitySet::empty(), |all, (capability, _)| all | capability)
}

/// What it takes to reach this place, now and later.
pub(crate) fn to_reach(place: &Path) -> CapabilitySet {
    if is_foreign(place) { FOREIGN } else { CapabilitySet::empty() }
}

/// Whether a path leads through what is not root's. What is not there yet counts as root's.
fn is_foreign(path: &Path) -> bool {
    path.ancestors().any(|part| fs::metadata(part).is_ok_and(|part| part.uid() != 0))
}

/// Major and minor number of the kernel.
pub(crate) fn kernel_release() -> Option<(u32, u32)> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The names of these capabilities, as logs show them.
fn names(set: CapabilitySet) -> Vec<&'static str> {
    NAMES.iter().filter(|(capability, _)| set.contains(*capability)).map(|(_, name)| *name).collect()
}

/// The names of the capabilities that these needs ask for and others do not, and that this process has given up.
///
/// # Errors
/// When the kernel does not tell what it has.
pub fn missing(needs: CapabilitySet, others: CapabilitySet) -> io::Result<Vec<&'static str>> {
    Ok(names(needs - others - rustix::thread::capabilities(None)?.permitted))
}

/// Gives up, for good and for every child, what these needs do not include.
/// Returns the names of what is kept.
///
/// Capabilities belong to threads: must be called when the process has only one.
///
/// # Errors
/// See [`PrivilegeError`]. Then some may be dropped and others not.
pub fn drop_all_but(needs: CapabilitySet) -> Result<Vec<&'static str>, PrivilegeError> {
    let now = rustix::thread::capabilities(None).map_err(refused("reading the capabilities"))?;
    let keep = needs & now.permitted;
    // Without SETPCAP there is none to drop it with; no_new_privs keeps children from regaining any.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        bound(keep).map_err(refused("limiting the capabilities of children"))?;
    }
    rustix::thread::clear_ambient_capability_set().map_err(refused("dropping ambient capabilities"))?;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(refused("dropping capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(refused("forbidding new privileges"))?;
    match threads_with_more(keep).map_err(refused("looking at the threads"))? {
        0 => Ok(names(keep)),
        count => Err(PrivilegeError::Threads(count)),
    }
}

/// Takes everything else out of the bounding set: no program that is executed from now on can have it.
pub(crate) fn bound(keep: CapabilitySet) -> io::Result<()> {
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?;
    let last: u32 = last.trim().parse().map_err(io::Error::other)?;
    for number in 0..=last.min(63) {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if !keep.contains(capability) {
            rustix::thread::remove_capability_from_bounding_set(capability)?;
        }
    }
    Ok(())
}

/// Threads of this process with a permitted capability that is not in `keep`.
fn threads_with_more(keep: CapabilitySet) -> io::Result<usize> {
    let mut count = 0;
    for task in fs::read_dir("/proc/self/task")? {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
        let permitted = permitted.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        count += usize::from(permitted.is_none_or(|permitted| permitted & !keep.bits() != 0));
    }
    Ok(count)
}

#[cfg(test)]
mod tests;
