//! Containers that could not be removed: a node without room or descriptors refuses that too, for a while.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::LocalHost;
use crate::start::StartError;

/// The names of containers of which something is left.
#[derive(Default)]
pub(in crate::start) struct Leftovers(Mutex<BTreeSet<String>>);

impl Leftovers {
    /// Removes what a container of `host` leaves, or remembers it for [`Leftovers::again`].
    pub(in crate::start) async fn clean(
        &self,
        host: &dyn LocalHost,
        instance: &str,
    ) -> Result<(), StartError> {
        let cleaned = host.clean(instance).await;
        if cleaned.is_err() {
            self.names().insert(instance.to_owned());
        }
        cleaned
    }

    /// Tries to remove them again: the node has just worked.
    pub(in crate::start) async fn again(&self, host: &dyn LocalHost) {
        let names = std::mem::take(&mut *self.names());
        for instance in names {
            match host.clean_survivor(&instance).await {
                Ok(()) => tracing::info!(instance, "removed what had been left"),
                Err(error) => {
                    tracing::debug!(instance, "something is still left: {error}");
                    self.names().insert(instance);
                }
            }
        }
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
