//! Binds the addresses anew of listeners that instances have ended.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Reload;
use crate::api::Unavailable;
use crate::node::FunctionChange;
use crate::serve::{BindingError, BindingKeys, is_listening};

/// The pause before a listener that did not last is bound anew, and before another attempt; each time twice as long, up
/// to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// After this time without a new end the pauses begin again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(120);

/// Names of functions whose listener has ended; each is there once.
const WAITING_MAX: usize = 64;

/// The functions whose listener has ended.
pub(super) struct EndedListeners {
    sender: mpsc::Sender<String>,
    receiver: mpsc::Receiver<String>,
    /// When each is to be tried next, of those that wait.
    due: HashMap<String, Instant>,
    /// How often in a row, and when last.
    attempts: HashMap<String, (u32, Instant)>,
    /// What `/readyz` says about those that have no listener.
    pub(super) reasons: HashMap<String, String>,
}

impl EndedListeners {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let (due, attempts, reasons) = <_>::default();
        Self { sender, receiver, due, attempts, reasons }
    }

    /// Takes the names of functions whose listener has ended.
    pub(super) fn sender(&self) -> mpsc::Sender<String> {
        self.sender.clone()
    }

    /// The next function whose address must be bound anew now, or which has to wait: then the pause.
    pub(super) async fn next(&mut self) -> (String, Option<Duration>) {
        let first = self.due.iter().min_by_key(|(_, at)| **at).map(|(name, at)| (name.clone(), *at));
        tokio::select! {
            // This holds a sender, so there is always one.
            Some(name) = self.receiver.recv() => {
                let pause = self.pause(&name);
                if let Some(pause) = pause {
                    self.due.insert(name.clone(), Instant::now() + pause);
                }
                (name, pause)
            }
            name = expired(first) => {
                self.due.remove(&name);
                (name, None)
            }
        }
    }

    /// Counts an attempt, and returns the pause before it.
    fn pause(&mut self, name: &str) -> Option<Duration> {
        let now = Instant::now();
        let recent = self.attempts.get(name).filter(|(_, at)| now - *at < FORGIVEN_AFTER);
        let before = recent.map_or(0, |(attempts, _)| *attempts);
        self.attempts.insert(name.to_owned(), (before.saturating_add(1), now));
        let doubled = before.checked_sub(1)?;
        Some(PAUSE.saturating_mul(2u32.saturating_pow(doubled)).min(PAUSE_MAX))
    }

    fn forget(&mut self, name: &str) {
        self.due.remove(name);
        self.attempts.remove(name);
        self.reasons.remove(name);
    }
}

async fn expired(first: Option<(String, Instant)>) -> String {
    match first {
        Some((name, at)) => {
            tokio::time::sleep_until(at).await;
            name
        }
        None => std::future::pending().await,
    }
}

impl Reload {
    /// Where the node sends the names of functions whose listener an instance has ended.
    pub fn ended_listeners(&self) -> mpsc::Sender<String> {
        self.ended.sender()
    }

    /// Binds the address of a function anew, after the pause if there is one.
    pub(super) async fn renew_listener(&mut self, name: String, pause: Option<Duration>) {
        let ended = self.services.get(&name).is_some_and(|served| !is_listening(&served.resources.listener));
        if !ended {
            // It was removed, or a reload has bound it anew.
            self.ended.forget(&name);
        } else if let Some(pause) = pause {
            let reason =
                format!("its instances have ended its listener again: bound anew in {} s", pause.as_secs());
            tracing::warn!(function = name, "not served: {reason}");
            self.ended.reasons.insert(name, reason);
        } else {
            match self.bind_anew(&name).await {
                Ok(()) => {
                    tracing::info!(function = name, "its address is bound anew");
                    self.ended.reasons.remove(&name);
                }
                Err(error) => {
                    tracing::error!(function = name, "not served: {error}");
                    let pause = self.ended.pause(&name).unwrap_or(PAUSE);
                    self.ended.due.insert(name.clone(), Instant::now() + pause);
                    self.ended.reasons.insert(name, error.to_string());
                }
            }
        }
        self.publish();
    }

    async fn bind_anew(&mut self, name: &str) -> Result<(), BindingError> {
        let (Some(function), Some(served)) = (self.config.function(name), self.services.get(name)) else {
            return Ok(());
        };
        let key = BindingKeys::of(&self.config).key(function);
        let bound = self.bindings.open(function, key)?;
        let mut service = served.clone();
        service.resources.listener = bound.listener;
        self.bindings.record(function, key, &service.resources.listener);
        self.manager.remove_listener(key);
        self.manager.store_listener(key, &service.resources.listener);
        self.services.insert(name.to_owned(), service.clone());
        self.node.change(vec![FunctionChange::Alter { service: Box::new(service), replace: false }]).await;
        Ok(())
    }

    /// What is not served because its listener has ended.
    pub(super) fn without_listener(&self) -> Vec<Unavailable> {
        let reasons = self.ended.reasons.iter();
        reasons.map(|(name, reason)| Unavailable::new(name.clone(), reason.clone())).collect()
    }
}
