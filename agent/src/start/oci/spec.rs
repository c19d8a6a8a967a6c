//! The bundle's `config.json` (OCI runtime specification 1.0).

use std::collections::HashSet;
use std::path::Path;

use headstart_config::SECRETS_PATH;
use headstart_wire::BACKENDS_PATH;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder, get_default_maskedpaths,
    get_default_readonly_paths,
};
use rustix::fs::StatVfsMountFlags;

use super::seccomp;
use crate::start::cgroup::{self, Cgroup};
use crate::start::{ContainerSpec, INIT_PATH, OPEN_FILES, TMP_BYTES, oom_score_adj};

/// Key of the annotation that names a container's function.
const ANNOTATION: &str = "headstart.function";

/// What an instance sees of the node.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    /// The directory with the sockets of its backends.
    pub(super) backends: Option<&'a Path>,
    /// The directory with its secrets.
    pub(super) secrets: Option<&'a Path>,
    /// The file of its init.
    pub(super) init: Option<&'a Path>,
}

/// The configuration of one instance. Beside the root file system stands whether it can be written to.
pub(super) fn build(
    spec: &ContainerSpec,
    (rootfs, writable): (&Path, bool),
    instance: &str,
    shown: Shown<'_>,
    cgroup: &Cgroup,
) -> Result<Spec, OciSpecError> {
    let env = spec.environment_with_control().into_iter().map(|(name, value)| format!("{name}={value}"));
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(spec.user).gid(spec.group).build()?)
        .args(spec.arguments())
        .env(env.collect::<Vec<_>>())
        .cwd(spec.workdir.clone())
        .capabilities(no_capabilities()?)
        .rlimits(rlimits()?)
        .oom_score_adj(oom_score_adj())
        .no_new_privileges(true)
        .build()?;
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(rootfs).readonly(!writable).build()?)
        .process(process)
        .hostname(crate::start::name::host(instance))
        .mounts(mounts(spec, shown)?)
        .linux(linux(spec, cgroup)?)
        .annotations([(ANNOTATION.to_owned(), spec.function.clone())])
        .build()
}

fn linux(spec: &ContainerSpec, cgroup: &Cgroup) -> Result<Linux, OciSpecError> {
    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    if Path::new("/proc/self/ns/cgroup").exists() {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    let mut builder = LinuxBuilder::default();
    if let Some(root) = spec.namespace_root {
        kinds.push(LinuxNamespaceType::User);
        let users = users(root, spec.user)?;
        builder = builder.uid_mappings(users.clone()).gid_mappings(users);
    }
    let namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<Result<Vec<_>, _>>()?;
    builder = builder
        .namespaces(namespaces)
        .cgroups_path(cgroup.path())
        .resources(resources(spec)?)
        .masked_paths(get_default_maskedpaths())
        .readonly_paths(get_default_readonly_paths());
    if let Some(profile) = seccomp::profile()? {
        builder = builder.seccomp(profile);
    }
    builder.build()
}

/// The users and groups of its namespace. The OCI runtime begins as root there. The function has the same number inside and
/// outside, so that files which it shares with the node have one owner.
fn users(root: u32, user: u32) -> Result<Vec<LinuxIdMapping>, OciSpecError> {
    let map = |inside: u32, outside: u32| {
        LinuxIdMappingBuilder::default().container_id(inside).host_id(outside).size(1u32).build()
    };
    Ok(vec![map(0, root)?, map(user, user)?])
}

/// All five sets empty, the bounding set too: nothing can be gained by any exec.
fn no_capabilities() -> Result<LinuxCapabilities, OciSpecError> {
    LinuxCapabilitiesBuilder::default()
        .bounding(HashSet::new())
        .effective(HashSet::new())
        .inheritable(HashSet::new())
        .permitted(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

fn rlimits() -> Result<Vec<PosixRlimit>, OciSpecError> {
    let limit = |kind, value: u64| PosixRlimitBuilder::default().typ(kind).soft(value).hard(value).build();
    Ok(vec![limit(PosixRlimitType::RlimitNofile, OPEN_FILES)?, limit(PosixRlimitType::RlimitCore, 0)?])
}

/// Only what programs cannot do without. `/sys` is left out: it tells a
/// function about the node and costs a mount.
fn mounts(spec: &ContainerSpec, shown: Shown<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let mount = |target: &str, kind: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(target)
            .typ(kind)
            .source(kind)
            .options(options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
            .build()
    };
    let size = format!("size={TMP_BYTES}");
    // The function owns them: runc gives a tmpfs the mode of the directory that it covers.
    let owner = format!("uid={},gid={}", spec.user, spec.group);
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"])?,
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", &owner, &size])?,
        mount("/tmp", "tmpfs", &["nosuid", "nodev", &owner, &size])?,
    ];
    let bind = |source: &Path, target: &Path, options: &[&str]| {
        let bind = MountBuilder::default().destination(target).typ("bind").source(source);
        bind.options(options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>()).build()
    };
    for (source, target) in [(shown.backends, BACKENDS_PATH), (shown.secrets, SECRETS_PATH)] {
        if let Some(source) = source {
            // Sockets can be connected to also where nothing can be written.
            mounts.push(bind(source, Path::new(target), &["bind", "ro", "nosuid", "noexec", "nodev"])?);
        }
    }
    if let Some(init) = shown.init {
        mounts.push(bind(init, Path::new(INIT_PATH), &["bind", "ro", "nosuid", "nodev"])?);
    }
    for own in &spec.mounts {
        let access = if own.read_only { "ro" } else { "rw" };
        let mut options = vec!["bind", access, "nosuid", "nodev"];
        // A user namespace cannot take it away, and runc 1.1.5 fails where it tries.
        if spec.namespace_root.is_some() && forbids_programs(&own.source) {
            options.push("noexec");
        }
        mounts.push(bind(&own.source, &own.target, &options)?);
    }
    Ok(mounts)
}

/// Whether programs there cannot be executed.
fn forbids_programs(place: &Path) -> bool {
    rustix::fs::statvfs(place).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

/// The memory limit counts swap too where the kernel can count it. What is hibernated may have as much in swap as in memory
/// where the two have limits of their own (cgroup v2).
fn resources(spec: &ContainerSpec) -> Result<LinuxResources, OciSpecError> {
    let memory_bytes = i64::try_from(spec.memory_bytes).unwrap_or(i64::MAX);
    let mut memory = LinuxMemoryBuilder::default().limit(memory_bytes);
    if cgroup::limits_swap() {
        let in_swap = if spec.swaps && cgroup::is_unified() { memory_bytes } else { 0 };
        memory = memory.swap(memory_bytes.saturating_add(in_swap));
    }
    let pids = LinuxPidsBuilder::default().limit(i64::try_from(spec.pids).unwrap_or(i64::MAX)).build()?;
    LinuxResourcesBuilder::default().memory(memory.build()?).pids(pids).build()
}
