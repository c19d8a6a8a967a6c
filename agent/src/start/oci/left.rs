//! What earlier agents left of this runtime.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::process::Signal;
use tokio::sync::Mutex;

use super::{Container, FIFO, Node, Oci, REMOVE_TIMEOUT};
use crate::start::cgroup::Cgroup;
use crate::start::error::within;
use crate::start::survivors::{Clean, First, Local, PARKED_FILE, Survivor, follow_again};
use crate::start::watch::Watch;
use crate::start::{BoxFuture, StartError, name, nobody, remove_directory};

/// What earlier agents left under `state_dir`.
pub(in crate::start) fn survivors(state_dir: &Path, runc: &Path) -> Vec<Box<dyn Survivor>> {
    let node = Oci::new(nobody(), PathBuf::new(), runc.to_owned(), state_dir).node;
    let mut names = name::instances_in(&node.bundles);
    names.extend(name::instances_in(&node.root));
    let found = names.into_iter().map(|instance| {
        let (bundle, first) = (node.bundles.join(&instance), node.first(&instance));
        Box::new(Local::new(instance, Arc::clone(&node), bundle, first)) as Box<dyn Survivor>
    });
    found.collect()
}

impl Node {
    fn first(&self, instance: &str) -> First {
        let bundle = self.bundles.join(instance);
        let pid = fs::read_to_string(bundle.join("pid")).ok().and_then(|text| text.trim().parse().ok());
        let fifo = self.root.join(instance).join(FIFO);
        First::find(instance, &bundle, pid, || !fifo.exists())
    }

    /// Takes over a container that runs.
    pub(super) fn adopt(self: &Arc<Self>, instance: &str) -> Result<Container, StartError> {
        let watch = self.first(instance).running(instance)?;
        Ok(Container {
            node: Arc::clone(self),
            instance: instance.to_owned(),
            bundle: self.bundles.join(instance),
            logs: follow_again(instance, watch.pid()),
            parked: None,
            watch,
            cgroup: Cgroup::of(instance),
            released: AtomicBool::new(true),
            removal: Mutex::new(()),
        })
    }
}

impl Clean for Node {
    /// Without runc. It would do no more, our containers have no hooks; but it takes a processor
    /// for tens of milliseconds, many times over, while the new agent prepares its own.
    fn clean<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(async move {
            let (cgroup, bundle) = (Cgroup::of(instance), self.bundles.join(instance));
            if !bundle.join(PARKED_FILE).exists() {
                kill_creators(&bundle).await?;
            }
            cgroup.kill();
            cgroup.remove().await.map_err(|error| StartError::Left { detail: format!("cgroup {error}") })?;
            remove_directory(&self.root.join(instance))?;
            remove_directory(&bundle)
        })
    }
}

/// Ends a `runc create` that the earlier agent did not live to see the end of: it
/// would go on making what is removed here. The init that it has begun ends with it.
async fn kill_creators(bundle: &Path) -> Result<(), StartError> {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let creates = || {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|argument| argument == bundle.as_os_str().as_encoded_bytes())
        };
        if !creates() {
            continue;
        }
        // Once more: the number may have been another process's before its pidfd was opened.
        if let Some(creator) = Watch::stranger(pid).ok().filter(|_| creates()) {
            creator.signal(Signal::KILL);
            within(REMOVE_TIMEOUT, "ending a container's creation", creator.exited()).await?;
        }
    }
    Ok(())
}
