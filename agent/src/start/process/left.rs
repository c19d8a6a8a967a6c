//! What earlier agents left of this runtime.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::{Helper, Instance, Node, Plain, marker};
use crate::start::cgroup::Cgroup;
use crate::start::survivors::{Clean, First, Local, Survivor, follow_again};
use crate::start::{BoxFuture, StartError, name, nobody};

/// What earlier agents left under `state_dir`.
pub(in crate::start) fn survivors(state_dir: &Path) -> Vec<Box<dyn Survivor>> {
    let node = Plain::new(nobody(), Helper::default(), state_dir).node;
    let found = name::instances_in(&node.directory).into_iter().map(|instance| {
        let (directory, first) = (node.directory.join(&instance), node.first(&instance));
        Box::new(Local::new(instance, Arc::clone(&node), directory, first)) as Box<dyn Survivor>
    });
    found.collect()
}

impl Node {
    fn first(&self, instance: &str) -> First {
        let directory = self.directory.join(instance);
        // One that was never parked to the end was not let go either.
        First::find(instance, &directory, noted(&directory), || false)
    }

    /// Takes over a process that runs.
    pub(super) fn adopt(self: &Arc<Self>, instance: &str) -> Result<Instance, StartError> {
        let watch = self.first(instance).running(instance)?;
        Ok(Instance {
            node: Arc::clone(self),
            instance: instance.to_owned(),
            directory: self.directory.join(instance),
            _logs: follow_again(instance, watch.pid()),
            watch,
            cgroup: Cgroup::of(instance),
            release: Mutex::new(None),
            removal: Mutex::new(()),
        })
    }
}

/// The first process of the instance that has this directory, if it is still there.
pub(in crate::start) fn noted(directory: &Path) -> Option<i32> {
    let text = fs::read_to_string(directory.join("pid")).ok()?;
    let pid = text.split(' ').next()?.parse().ok()?;
    (marker(pid) == text).then_some(pid)
}

impl Clean for Node {
    fn clean<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(self.clean(instance))
    }
}
