//! An instance of which only its cgroup is left: an earlier agent made it, and its files are gone with the state directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::{Cgroup, Cgroups};
use crate::start::local;
use crate::start::survivors::Survivor;
use crate::start::{BoxFuture, StartError};

/// Between looks whether its processes have ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl Cgroups {
    /// Those of which nothing is `known` but the cgroup.
    pub(in crate::start) fn orphans(&self, known: impl Fn(&str) -> bool) -> Vec<Box<dyn Survivor>> {
        let orphan = |instance: String| -> Box<dyn Survivor> {
            let cgroup = self.of(&instance);
            Box::new(Orphan { path: cgroup.path(), cgroup, instance })
        };
        self.instances().into_iter().filter(|instance| !known(instance)).map(orphan).collect()
    }
}

struct Orphan {
    instance: String,
    path: PathBuf,
    cgroup: Cgroup,
}

impl Survivor for Orphan {
    fn instance(&self) -> &str {
        &self.instance
    }

    /// It has no files: nothing is noted there.
    fn directory(&self) -> &Path {
        &self.path
    }

    /// A client may wait for an answer of it.
    fn runs(&self) -> bool {
        !self.cgroup.processes().is_empty()
    }

    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.cgroup.signal_all(Signal::TERM) })
    }

    fn gone(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            while self.runs() {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            self.cgroup.kill();
            local::remove_cgroup(&self.cgroup).await
        })
    }
}
