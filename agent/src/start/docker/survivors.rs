//! What earlier agents left of this runtime.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::api::{ListedContainer, container_name};
use super::{DockerHost, RETRY_PAUSE, STATE_DIR_LABEL};
use crate::start::error::within;
use crate::start::survivors::Survivor;
use crate::start::{BoxFuture, StartError, directory, name};

/// How long a daemon has for its answer of which nothing is known. An agent may have no functions for it.
const UNKNOWN_DAEMON: Duration = Duration::from_secs(2);

/// What earlier agents left under the state directory, and what has its label: containers outlive a reboot, and the state
/// directory does not.
pub(super) async fn survivors(host: &Arc<DockerHost>) -> Result<Vec<Box<dyn Survivor>>, StartError> {
    let mut names = name::instances_in(&host.directory);
    let label = (STATE_DIR_LABEL, host.state_dir.display().to_string());
    let labels = [label];
    let list = host.api.list(&labels);
    let labelled = if !names.is_empty() {
        list.await?
    } else if host.api.has_socket() {
        within(UNKNOWN_DAEMON, "looking for containers of an earlier agent", list).await??
    } else {
        Vec::new()
    };
    let mut found: Vec<Box<dyn Survivor>> = Vec::new();
    for listed in labelled {
        names.remove(&listed.instance);
        found.push(Box::new(DockerSurvivor::new(host, listed)));
    }
    for instance in names {
        // The daemon may only now be making it; a name will do as well.
        let listed = ListedContainer { id: container_name(&instance), instance, runs: false, frozen: false };
        found.push(Box::new(DockerSurvivor::new(host, listed)));
    }
    Ok(found)
}

/// A container of an earlier agent, or only its directory.
struct DockerSurvivor {
    host: Arc<DockerHost>,
    directory: PathBuf,
    listed: ListedContainer,
}

impl DockerSurvivor {
    fn new(host: &Arc<DockerHost>, listed: ListedContainer) -> Self {
        Self { host: Arc::clone(host), directory: host.directory.join(&listed.instance), listed }
    }

    /// Nothing reaches a frozen container.
    async fn ensure_thawed(&self) {
        if self.listed.frozen
            && let Err(error) = self.host.api.unpause(&self.listed.id).await
        {
            tracing::warn!(instance = self.listed.instance, "cannot be thawed: {error}");
        }
    }
}

impl Survivor for DockerSurvivor {
    fn instance(&self) -> &str {
        &self.listed.instance
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn runs(&self) -> bool {
        self.listed.runs
    }

    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(error) = self.host.api.terminate(&self.listed.id).await {
                tracing::warn!(instance = self.listed.instance, "was not asked to stop: {error}");
            }
            self.ensure_thawed().await;
        })
    }

    fn gone(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            while let Err(error) = self.host.api.wait(&self.listed.id).await {
                tracing::debug!(id = self.listed.id, %error, "waiting for a container is interrupted");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            self.ensure_thawed().await;
            self.host.api.remove(&self.listed.id).await?;
            directory::remove(&self.directory)
        })
    }
}
