//! What the agent keeps of root's powers once everything is set up.
//!
//! The user stays root, which owns the state directory, the cgroups and the key
//! files. Capabilities (capabilities(7)) are cut down to `TABLE`, in every set
//! and for every child: under `no_new_privs` not even a program of
//! root, such as the OCI runtime, gets back more than the agent has.
//!
//! The eBPF programs need nothing more: since Linux 6.6 whoever holds a loaded
//! program may attach it to interfaces that appear later, too.
//!
//! What is dropped always: loading eBPF, modules and raw packets, the clock, the
//! kernel's log, binding more privileged ports, and the rest. With `oci` and
//! `process` functions `CAP_SYS_ADMIN` stays, for namespaces and mounts; it is a
//! great deal, and includes using bpf(2). A node that has only `docker` functions
//! keeps nothing of it: there the daemon has the powers.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use headstart_config::{Address, Backend, Config, Interfaces, Runtime};
use nix::sys::resource::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::start::OPEN_FILES;

/// From this kernel on, what was loaded and opened can be used and attached
/// without a capability, where unprivileged bpf(2) is disabled
/// (commit c8644cd0efe7, "bpf: refine kernel.unprivileged_bpf_disabled behaviour").
const BPF_BY_DESCRIPTOR: (u32, u32) = (5, 19);

/// From this kernel on, tcx attaches by bpf(2) what had to go over netlink
/// before, which asks for `CAP_NET_ADMIN` (commit e420bed02507, "bpf: Add fd-based tcx
/// multi-prog infra with link support").
const TC_BY_DESCRIPTOR: (u32, u32) = (6, 6);

/// One capability, and when and why it is kept.
struct Row {
    capability: CapabilitySet,
    name: &'static str,
    /// Of which needs each one is enough.
    kept_for: &'static [Need],
}

/// Something that is still to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// `oci` functions: their runtime makes namespaces, mounts and devices, changes the
    /// user, sets its loopback up, gives the function its output and changes
    /// modes below the root file system, which may be another user's.
    Oci,
    /// `process` functions: the helper makes namespaces and mounts, gives up root.
    Process,
    /// More open files than the agent's own limit for an instance.
    Limits,
    /// A place of another user: the state directory, the key file, a password, a socket of a backend or of the container
    /// daemon.
    Foreign,
    /// Instances of an earlier agent, of whatever runtime, are still to be ended.
    Survivors,
    /// Interfaces that appear later get the programs too, on a kernel that has no tcx.
    OldTc,
    /// A kernel that lets nobody else use maps that are open.
    OldBpf,
}

/// Found by leaving them out one by one: the tests of `start` fail without any of `Oci` and `Process`, save
/// `CHOWN` (the function could not open its `/dev/stdout`) and `DAC_OVERRIDE` (a root file system of another user).
const TABLE: [Row; 13] = [
    row(CapabilitySet::SYS_ADMIN, "SYS_ADMIN", &[Need::Oci, Need::Process]),
    row(CapabilitySet::SETUID, "SETUID", &[Need::Oci, Need::Process]),
    row(CapabilitySet::SETGID, "SETGID", &[Need::Oci, Need::Process]),
    // A container's bounding set.
    row(CapabilitySet::SETPCAP, "SETPCAP", &[Need::Oci, Need::Process]),
    // Signals to a function, which is another user.
    row(CapabilitySet::KILL, "KILL", &[Need::Oci, Need::Process, Need::Survivors]),
    // /proc/PID/exe and ns of another user's process: the moment of its exec, and who it is.
    row(CapabilitySet::SYS_PTRACE, "SYS_PTRACE", &[Need::Oci, Need::Process]),
    // A container is prepared in the background, and let go at normal priority.
    row(CapabilitySet::SYS_NICE, "SYS_NICE", &[Need::Oci, Need::Process]),
    row(CapabilitySet::CHOWN, "CHOWN", &[Need::Oci]),
    row(CapabilitySet::FOWNER, "FOWNER", &[Need::Oci]),
    // The root of a cgroup hierarchy is writable for nobody (cgroup-v1 mounts have mode 0555).
    row(CapabilitySet::DAC_OVERRIDE, "DAC_OVERRIDE", &[Need::Oci, Need::Process, Need::Foreign]),
    row(CapabilitySet::SYS_RESOURCE, "SYS_RESOURCE", &[Need::Limits]),
    row(CapabilitySet::NET_ADMIN, "NET_ADMIN", &[Need::Oci, Need::OldTc]),
    row(CapabilitySet::BPF, "BPF", &[Need::OldBpf]),
];

const fn row(capability: CapabilitySet, name: &'static str, kept_for: &'static [Need]) -> Row {
    Row { capability, name, kept_for }
}

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

/// What a configuration needs after its set-up, and the instances that an earlier agent left.
#[must_use]
pub fn needs(config: &Config, survivors: bool) -> Vec<Need> {
    // Unknown is old.
    needs_on(kernel_release().unwrap_or((0, 0)), config, survivors)
}

fn needs_on(release: (u32, u32), config: &Config, survivors: bool) -> Vec<Need> {
    let runs =
        |wanted: fn(&Runtime) -> bool| config.functions.iter().any(|function| wanted(&function.runtime));
    let (oci, process) = (
        runs(|runtime| matches!(runtime, Runtime::Oci { .. })),
        runs(|runtime| matches!(runtime, Runtime::Process)),
    );
    let docker = runs(|runtime| matches!(runtime, Runtime::Docker { .. }));
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
    let sockets = config.backends.iter().filter_map(|backend| match &backend.address {
        Address::Unix(path) => Some(path),
        Address::Tcp { .. } => None,
    });
    let places = sockets.chain(docker.then_some(&config.agent.docker_socket));
    let places = places.chain(&config.syn.key_file).chain([&config.agent.state_dir]);
    // A reload reads them again.
    let places = places.chain(config.backends.iter().flat_map(Backend::files));
    let foreign = places.into_iter().any(|place| is_foreign(place));
    let interfaces = config.agent.interfaces != Interfaces::Named(Vec::new());
    let all = [
        (Need::Oci, oci),
        (Need::Process, process),
        (Need::Limits, (oci || process) && limit < OPEN_FILES),
        (Need::Foreign, foreign),
        (Need::Survivors, survivors),
        (Need::OldTc, interfaces && release < TC_BY_DESCRIPTOR),
        (Need::OldBpf, (interfaces || config.syn.lookup) && release < BPF_BY_DESCRIPTOR),
    ];
    all.into_iter().filter(|(_, needed)| *needed).map(|(need, _)| need).collect()
}

/// Whether a path leads through what is not root's. What is not there yet counts as root's.
fn is_foreign(path: &Path) -> bool {
    path.ancestors().any(|part| fs::metadata(part).is_ok_and(|part| part.uid() != 0))
}

/// Major and minor number of the kernel.
fn kernel_release() -> Option<(u32, u32)> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The capabilities for these needs.
fn wanted(needs: &[Need]) -> CapabilitySet {
    let rows = TABLE.iter().filter(|row| row.kept_for.iter().any(|need| needs.contains(need)));
    rows.fold(CapabilitySet::empty(), |all, row| all | row.capability)
}

/// The names of the capabilities that these needs ask for and others do not, and that this process has given up.
///
/// # Errors
/// When the kernel does not tell what it has.
pub fn missing(needs: &[Need], others: &[Need]) -> io::Result<Vec<&'static str>> {
    let missing = wanted(needs) - wanted(others) - rustix::thread::capabilities(None)?.permitted;
    Ok(TABLE.iter().filter(|row| missing.contains(row.capability)).map(|row| row.name).collect())
}

/// Gives up, for good and for every child, what these needs do not include.
/// Returns the names of what is kept.
///
/// Capabilities belong to threads: must be called when the process has only one.
///
/// # Errors
/// See [`PrivilegeError`]. Then some may be dropped and others not.
pub fn drop_all_but(needs: &[Need]) -> Result<Vec<&'static str>, PrivilegeError> {
    let now = rustix::thread::capabilities(None).map_err(refused("reading the capabilities"))?;
    let keep = wanted(needs) & now.permitted;
    // Without SETPCAP there is none to drop it with; no_new_privs keeps children from regaining any.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        bound(keep).map_err(refused("limiting the capabilities of children"))?;
    }
    rustix::thread::clear_ambient_capability_set().map_err(refused("dropping ambient capabilities"))?;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(refused("dropping capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(refused("forbidding new privileges"))?;
    match threads_with_more(keep).map_err(refused("looking at the threads"))? {
        0 => Ok(TABLE.iter().filter(|row| keep.contains(row.capability)).map(|row| row.name).collect()),
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
