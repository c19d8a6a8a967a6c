//! What earlier agents left of this runtime.

use std::path::Path;
use std::sync::Arc;

use super::api::{Listed, container_name};
use super::{Docker, Node, RETRY_PAUSE, STATE_DIR_LABEL};
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
    for Listed { id, instance, runs, frozen } in node.api.list(&[label]).await? {
        names.remove(&instance);
        found.push(Box::new(Left { node: Arc::clone(&node), instance, id, runs, frozen }));
    }
    for instance in names {
        // The daemon may only now be making it; a name will do as well.
        let id = container_name(&instance);
        found.push(Box::new(Left { node: Arc::clone(&node), instance, id, runs: false, frozen: false }));
    }
    Ok(found)
}

/// A container of an earlier agent, or only its directory.
struct Left {
    node: Arc<Node>,
    instance: String,
    id: String,
    runs: bool,
    frozen: bool,
}

impl Left {
    /// Nothing reaches a frozen container.
    async fn ensure_thawed(&self) {
        if self.frozen
            && let Err(error) = self.node.api.unpause(&self.id).await
        {
            tracing::warn!(instance = self.instance, "cannot be thawed: {error}");
        }
    }
}

impl Survivor for Left {
    fn instance(&self) -> &str {
        &self.instance
    }

    fn runs(&self) -> bool {
        self.runs
    }

    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(error) = self.node.api.terminate(&self.id).await {
                tracing::warn!(instance = self.instance, "was not asked to stop: {error}");
            }
            self.ensure_thawed().await;
        })
    }

    fn gone(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            while let Err(error) = self.node.api.wait(&self.id).await {
                tracing::debug!(id = self.id, %error, "waiting for a container is interrupted");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            self.ensure_thawed().await;
            self.node.api.remove(&self.id).await?;
            remove_directory(&self.node.directory.join(&self.instance))
        })
    }
}
