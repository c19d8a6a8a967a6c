//! What earlier agents left of this runtime.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::api::{Listed, Output, container_name};
use super::{Container, Docker, INSTANCE_LABEL, Node, RETRY_PAUSE, STATE_DIR_LABEL};
use crate::start::survivors::Survivor;
use crate::start::{BoxFuture, StartError, name, nobody, remove_directory};

/// What earlier agents left under `state_dir`: nothing is asked of a daemon
/// that no earlier agent used.
pub(in crate::start) async fn survivors(
    state_dir: &Path,
    socket: &Path,
) -> Result<Vec<Box<dyn Survivor>>, StartError> {
    let node = Docker::new(nobody(), String::new(), String::new(), socket.to_owned(), state_dir).node;
    let mut names = name::instances_in(&node.directory);
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut found: Vec<Box<dyn Survivor>> = Vec::new();
    let label = (STATE_DIR_LABEL, node.state_dir.display().to_string());
    for listed in node.api.list(&[label]).await? {
        names.remove(&listed.instance);
        found.push(Box::new(Left::new(&node, listed)));
    }
    for instance in names {
        // The daemon may only now be making it; a name will do as well.
        let listed = Listed { id: container_name(&instance), instance, runs: false, frozen: false };
        found.push(Box::new(Left::new(&node, listed)));
    }
    Ok(found)
}

impl Node {
    /// Takes over a container that runs.
    pub(super) async fn adopt(self: &Arc<Self>, instance: &str) -> Result<Container, StartError> {
        let labels =
            [(STATE_DIR_LABEL, self.state_dir.display().to_string()), (INSTANCE_LABEL, instance.to_owned())];
        let running = self.api.list(&labels).await?.into_iter().find(|listed| listed.runs);
        let Some(Listed { id, frozen, .. }) = running else {
            return Err(StartError::Adopt { instance: instance.to_owned(), detail: "it does not run" });
        };
        let container = self.container(instance, id);
        container.released.store(true, Ordering::Relaxed);
        container.frozen.store(frozen, Ordering::Relaxed);
        container.follow(Output::New);
        Ok(container)
    }
}

/// A container of an earlier agent, or only its directory.
struct Left {
    node: Arc<Node>,
    directory: PathBuf,
    listed: Listed,
}

impl Left {
    fn new(node: &Arc<Node>, listed: Listed) -> Self {
        Self { node: Arc::clone(node), directory: node.directory.join(&listed.instance), listed }
    }

    /// Nothing reaches a frozen container.
    async fn ensure_thawed(&self) {
        if self.listed.frozen
            && let Err(error) = self.node.api.unpause(&self.listed.id).await
        {
            tracing::warn!(instance = self.listed.instance, "cannot be thawed: {error}");
        }
    }
}

impl Survivor for Left {
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
            if let Err(error) = self.node.api.terminate(&self.listed.id).await {
                tracing::warn!(instance = self.listed.instance, "was not asked to stop: {error}");
            }
            self.ensure_thawed().await;
        })
    }

    fn gone(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            while let Err(error) = self.node.api.wait(&self.listed.id).await {
                tracing::debug!(id = self.listed.id, %error, "waiting for a container is interrupted");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            self.ensure_thawed().await;
            self.node.api.remove(&self.listed.id).await?;
            remove_directory(&self.directory)
        })
    }
}
