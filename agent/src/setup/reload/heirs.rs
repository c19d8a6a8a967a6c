//! Functions that get the listeners of others: renames, and ports that change hands in one reload.
//!
//! Instances of the function that had the listener may accept from it until they are gone. Only then another one gets it.
//! In between it stays open and clients wait in its queue.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use headstart_config::Config;
use tokio::sync::Notify;

use super::Reload;
use crate::manager::ListenerKey;
use crate::node::{FunctionChange, Service};
use crate::serve::BindingKeys;

/// Between two looks without a message: a task may hold the listener a moment longer than the function's record exists.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Functions that wait for a listener.
#[derive(Default)]
pub(super) struct Heirs {
    /// By their names, each with the listener that it will have.
    pub(super) waiting: BTreeMap<String, (ListenerKey, Service)>,
    forgotten: Arc<Notify>,
}

impl Heirs {
    /// Waits until one of them may begin; for ever if there is none.
    pub(super) async fn due(&self) {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        let _ = tokio::time::timeout(LOOK_AGAIN, self.forgotten.notified()).await;
    }
}

impl Reload {
    /// The node notifies `forgotten` when it has forgotten a function.
    pub fn hear_of_forgotten(&mut self, forgotten: Arc<Notify>) {
        self.heirs.forgotten = forgotten;
    }

    /// The listeners that functions give up and others get, if this configuration is taken.
    pub(super) fn inherited(&self, config: &Config) -> HashSet<ListenerKey> {
        let (keys, keys_before) = (BindingKeys::of(config), BindingKeys::of(&self.config));
        let given_up = self.config.functions.iter().filter_map(|old| {
            let key = keys_before.key(old);
            let kept = config.function(&old.name).is_some_and(|new| keys.key(new) == key);
            (!kept && self.services.contains_key(&old.name)).then_some(key)
        });
        let waited_for = self.heirs.waiting.values().map(|(key, _)| *key);
        let free: HashSet<_> = given_up.chain(waited_for).collect();
        config.functions.iter().map(|function| keys.key(function)).filter(|key| free.contains(key)).collect()
    }

    /// Serves the functions whose listener no other function holds now.
    pub(super) async fn succeed(&mut self) {
        let all = std::mem::take(&mut self.heirs.waiting);
        let keys = BindingKeys::of(&self.config);
        let mut changes = Vec::new();
        for (name, (key, service)) in all {
            if Arc::strong_count(&service.resources.listener) > 1 {
                self.heirs.waiting.insert(name, (key, service));
                continue;
            }
            let Some(function) = self.config.function(&name) else { continue };
            tracing::info!(function = name, "served now: the function that had its address is gone");
            self.bindings.record(function, keys.key(function), &service.resources.listener);
            self.unavailable.retain(|other| other.name != name);
            self.services.insert(name, service.clone());
            changes.push(FunctionChange::Add(Box::new(service)));
        }
        if !changes.is_empty() {
            self.node.change(changes).await;
            self.publish();
        }
    }
}
