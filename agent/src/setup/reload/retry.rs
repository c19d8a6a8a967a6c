//! Functions that could not be served at the start: a port was busy, or its address not there yet.

use std::time::Duration;

use tokio::time::Instant;

use super::Reload;
use super::plan::Plan;
use crate::api::Unavailable;
use crate::node::FunctionChange;
use crate::serve::BindingKeys;

/// The pause before the first attempt. It doubles with each that follows.
const FIRST: Duration = Duration::from_secs(1);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);

/// When it is tried again.
pub(super) struct Retry {
    pause: Duration,
    at: Instant,
}

impl Retry {
    /// With growing pauses from now on.
    pub(super) fn begin() -> Self {
        Self { pause: FIRST, at: Instant::now() + FIRST }
    }

    /// Waits for the next attempt.
    pub(super) async fn due(&self) {
        tokio::time::sleep_until(self.at).await;
    }

    fn failed(&mut self) {
        self.pause = (2 * self.pause).min(LONGEST);
        self.at = Instant::now() + self.pause;
    }
}

impl Reload {
    /// Whether something is configured and not served.
    pub(super) fn has_unavailable(&self) -> bool {
        !self.unavailable.is_empty() || self.fronts.has_lacking()
    }

    /// Tries to serve what is not. What still cannot be was said before.
    pub(super) async fn retry(&mut self) {
        let mut plan = Plan {
            services: self.services.clone(),
            pools: self.pools.clone(),
            credentials: self.credentials.clone(),
            heirs: self.heirs.waiting.clone(),
            ..Plan::default()
        };
        let before: Vec<Unavailable> = self.unavailable.clone();
        let keys = BindingKeys::of(&self.config);
        for known in before {
            let function = self.config.functions.iter().find(|function| function.name == known.name);
            let Some(function) = function else { continue };
            if self.heirs.waiting.contains_key(&known.name) {
                plan.unavailable.push(known);
                continue;
            }
            let opened = plan.opened.len();
            let Ok(service) = self.service(&self.config, function, keys.key(function), None, &mut plan)
            else {
                plan.opened.truncate(opened);
                plan.unavailable.push(known);
                continue;
            };
            tracing::info!(function = known.name, "served now: what had been in the way is gone");
            plan.services.insert(known.name, service.clone());
            plan.changes.push(FunctionChange::Add(Box::new(service)));
        }
        let fronts = self.fronts.retry(&mut self.bindings, &self.manager);
        if plan.changes.is_empty() && !fronts {
            return self.retry.failed();
        }
        let config = self.config.clone();
        self.apply(config, plan).await;
    }
}
