//! Finds what a test or the agent left behind.

use crate::lab::{self, DockerDaemon};
use anyhow::Result;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The things that are watched. Tests run side by side, so mounts, cgroups, interfaces and namespaces count
/// only if their path or name contains one of the given names.
#[derive(Clone, Debug, Default)]
pub struct LeakWatch {
    names: Vec<String>,
    process: Option<u32>,
    runc_roots: Vec<PathBuf>,
    docker: Option<(Arc<DockerDaemon>, String)>,
}

/// What was there, and how many of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, usize>);

impl LeakWatch {
    /// Everything called after Headstart or after this process.
    pub fn all() -> Self {
        Self::default()
            .name("headstart")
            .name(&format!("{}-", lab::prefix()))
            .name(&format!("{}v", lab::prefix()))
    }

    /// Mounts, cgroups, interfaces and network namespaces whose path or name contains `name`.
    pub fn name(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }

    /// Open descriptors of a process, counted by kind.
    pub fn process(mut self, id: u32) -> Self {
        self.process = Some(id);
        self
    }

    /// Containers of runc whose state is anywhere below `root`.
    pub fn runc(mut self, root: &Path) -> Self {
        self.runc_roots.push(root.to_owned());
        self
    }

    /// Docker containers that match a filter such as `label=headstart`.
    pub fn docker(mut self, docker: &Arc<DockerDaemon>, filter: &str) -> Self {
        self.docker = Some((Arc::clone(docker), filter.to_owned()));
        self
    }

    /// What is there now.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut found = Snapshot::default();
        let wanted = |text: &str| self.names.iter().any(|name| text.contains(name.as_str()));
        for mount in
            lab::mounts()?.iter().map(|mount| mount.display().to_string()).filter(|path| wanted(path))
        {
            found.add("mount", &without_ids(&mount));
        }
        for cgroup in lab::cgroups(&wanted) {
            found.add("cgroup", &cgroup.display().to_string());
        }
        for interface in lab::interfaces("").iter().filter(|name| wanted(name)) {
            found.add("interface", interface);
        }
        for namespace in lab::namespaces("").iter().filter(|name| wanted(name)) {
            found.add("namespace", namespace);
        }
        for (root, id) in self.runc_roots.iter().flat_map(|root| lab::containers_below(root, RUNC_DEPTH)) {
            found.add("runc container", &format!("{id} in {}", root.display()));
        }
        if let Some((docker, filter)) = &self.docker {
            docker.containers(filter)?.iter().for_each(|id| found.add("docker container", id));
        }
        if let Some(process) = self.process {
            descriptors(process)?.iter().for_each(|target| found.add("descriptor", &kind(target)));
        }
        Ok(found)
    }

    /// What is there now and was not `before`. Cgroups, namespaces and sockets go a moment after
    /// their last user, so what is there is looked at again until `limit`.
    pub fn leaked_since(&self, before: &Snapshot, limit: Duration) -> Result<Vec<String>> {
        lab::settle(limit, || Ok(self.snapshot()?.beyond(before)), Vec::is_empty)
    }
}

/// The path of a mount, without the numbers that Docker gives its containers: where one is parked there always is one.
fn without_ids(path: &str) -> String {
    let is_id = |part: &str| part.len() >= 12 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    path.split('/').map(|part| if is_id(part) { "ID" } else { part }).collect::<Vec<_>>().join("/")
}

/// How deep below the given root a state root may lie.
const RUNC_DEPTH: usize = 6;

impl Snapshot {
    fn add(&mut self, kind: &str, name: &str) {
        *self.0.entry(format!("{kind} {name}")).or_default() += 1;
    }

    /// What this one has more of than `before`.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let count = |item: &String| before.0.get(item).copied().unwrap_or(0);
        let more = self.0.iter().filter(|(item, now)| **now > count(item));
        more.map(|(item, now)| format!("{item} ({} -> {now})", count(item))).collect()
    }
}

/// What the open descriptors of a process refer to.
pub fn descriptors(process: u32) -> Result<Vec<String>> {
    let entries = fs::read_dir(format!("/proc/{process}/fd"))?.flatten();
    // One that is closed meanwhile is none.
    Ok(entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect())
}

/// `socket:[4711]` is a socket like any other.
fn kind(target: &str) -> String {
    target.split_once(":[").map_or(target, |(kind, _)| kind).to_owned()
}
