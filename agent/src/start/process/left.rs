//! What earlier agents left of this runtime.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::{Helper, Node, Plain, marker};
use crate::start::survivors::{Clean, Local, Survivor};
use crate::start::{BoxFuture, StartError, name, nobody};

/// What earlier agents left under `state_dir`.
pub(in crate::start) fn survivors(state_dir: &Path) -> Vec<Box<dyn Survivor>> {
    let node = Plain::new(nobody(), Helper::default(), state_dir).node;
    let found = name::instances_in(&node.directory).into_iter().map(|instance| {
        let directory = node.directory.join(&instance);
        // One that was never parked to the end was not let go either.
        let survivor = Local::find(instance, Arc::clone(&node), &directory, noted(&directory), || false);
        Box::new(survivor) as Box<dyn Survivor>
    });
    found.collect()
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
