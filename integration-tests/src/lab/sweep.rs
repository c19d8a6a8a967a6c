//! Clears what killed runs left behind: processes, containers, cgroups, interfaces, namespaces, pins,
//! mounts, directories. A run is dead when no process holds the lock of its directory.

use super::{
    command::{ip, run},
    docker, pins, process, scratch,
};
use anyhow::Result;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How long a process may take to shut down; PostgreSQL needs that to free its shared memory.
const GRACE: Duration = Duration::from_secs(3);

/// How deep below a scratch directory a runtime's state file may lie.
const STATE_DEPTH: usize = 8;

/// Clears every dead run under `base`.
pub(super) fn sweep(base: &Path) {
    // The last of another run's leases may remove the directory meanwhile.
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let Ok(pid) = name.parse::<u32>() else { continue };
        if let Ok(_claim) = scratch::claim(&path) {
            clear(&format!("hs{pid}"), &path);
        }
    }
}

/// Best effort, in the order in which things hold each other. What fails here, fails again with a
/// message where the name is needed.
fn clear(prefix: &str, path: &Path) {
    let below = format!("{}/", path.display());
    stop(&processes(|line| line.contains(&below)));
    for (root, id) in containers_below(path, STATE_DEPTH) {
        let _ = run(Command::new("runc").arg("--root").arg(root).args(["delete", "--force", &id]));
    }
    for namespace in namespaces(&format!("{prefix}-")) {
        let inside = ip(&format!("netns pids {namespace}")).unwrap_or_default();
        stop(&inside.lines().filter_map(|pid| pid.trim().parse().ok()).collect::<Vec<_>>());
        let _ = ip(&format!("netns delete {namespace}"));
    }
    for interface in interfaces(&format!("{prefix}v")) {
        let _ = ip(&format!("link delete {interface}"));
    }
    pins::sweep(&format!("{prefix}-"));
    remove_cgroups(&format!("{prefix}-"));
    fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .for_each(|files| docker::remove_stray_key(&files.path()));
    let _ = scratch::remove(path);
}

/// Names of network namespaces that start with `prefix`.
pub(crate) fn namespaces(prefix: &str) -> Vec<String> {
    names_in(Path::new("/run/netns"), prefix)
}

/// Names of interfaces in this network namespace that start with `prefix`.
pub(crate) fn interfaces(prefix: &str) -> Vec<String> {
    names_in(Path::new("/sys/class/net"), prefix)
}

fn names_in(directory: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Mount points of this mount namespace, in the order of mounting.
pub(crate) fn mounts() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect())
}

/// Mount points below `path`, innermost first.
pub(super) fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    let mut below: Vec<_> = mounts()?.into_iter().filter(|mount| mount.starts_with(path)).collect();
    below.reverse();
    Ok(below)
}

/// Directories below the cgroup hierarchies that `wanted` accepts by name, parents first.
pub(crate) fn cgroups(wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if wanted(&entry.file_name().to_string_lossy()) {
                    found.push(entry.path());
                }
                open.push(entry.path());
            }
        }
    }
    found
}

/// Kills what runs in the cgroups whose name contains `text`, and removes them. That of an agent has its directory's name.
pub(super) fn remove_cgroups(text: &str) {
    for top in cgroups(&|name| name.contains(text)) {
        let mut all = vec![top];
        let mut next = 0;
        while let Some(directory) = all.get(next).cloned() {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            all.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
            next += 1;
        }
        for directory in all.into_iter().rev() {
            let inside = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            stop(&inside.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>());
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Containers of runc (state roots and ids) whose state is kept below `path`.
pub(crate) fn containers_below(path: &Path, depth: usize) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory && depth > 0 {
            found.extend(containers_below(&entry.path(), depth - 1));
        } else if entry.file_name() == "state.json"
            && let (Some(id), Some(root)) = (path.file_name(), path.parent())
        {
            found.push((root.to_path_buf(), id.to_string_lossy().into_owned()));
        }
    }
    found
}

fn processes(wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            wanted(&String::from_utf8_lossy(&line))
        })
        .collect()
}

/// Asks, waits, then kills. Descriptors are taken first, so a reused number is never hit twice.
fn stop(pids: &[u32]) {
    let held: Vec<_> = pids.iter().filter_map(|pid| Some((*pid, process::pidfd(*pid).ok()?))).collect();
    for (signal, grace) in [(Signal::SIGQUIT, GRACE), (Signal::SIGKILL, GRACE)] {
        for (pid, pidfd) in &held {
            if !process::ended(pidfd.as_fd(), Some(Duration::ZERO)) {
                let _ = i32::try_from(*pid).map(|pid| kill(Pid::from_raw(pid), signal));
            }
        }
        if held.iter().all(|(_, pidfd)| process::ended(pidfd.as_fd(), Some(grace))) {
            return;
        }
    }
}
