//! What has failed, and when it may be tried again.
//!
//! ```text
//! start fails ──> back-off, doubled each time ──> ... ──> `start_attempts` in a row ──> cool-down ──> as new
//! ```

use std::time::Duration;

use super::{DecisionReason, Policy, nanos};

/// First delay after a failed start or prepare; doubles with each one that follows.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Failures of one function.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Failed starts since the last good one, or since the last cool-down began.
    starts: u32,
    /// Before this time nothing is released.
    until_ns: u64,
    /// The pause is a cool-down.
    cooling: bool,
    /// When a start failed last.
    last_ns: u64,
    /// Failed prepares since the last good one, and when the next is allowed.
    prepares: u32,
    prepare_after_ns: u64,
}

impl Failures {
    pub(super) fn starts(&self) -> u32 {
        self.starts
    }

    /// Why nothing may be started now; `None` when starts are allowed.
    pub(super) fn pause(&self, now_ns: u64) -> Option<DecisionReason> {
        let reason = if self.cooling { DecisionReason::Cooldown } else { DecisionReason::Backoff };
        (now_ns < self.until_ns).then_some(reason)
    }

    /// When a start, or a container, is tried again. It stays in the past until one succeeds.
    pub(super) fn retry_at_ns(&self) -> Option<u64> {
        let starts = (self.starts > 0 || self.cooling).then_some(self.until_ns);
        let prepares = (self.prepares > 0).then_some(self.prepare_after_ns);
        starts.into_iter().chain(prepares).max()
    }

    /// Whether a container may be made ahead of any demand.
    pub(super) fn may_prepare(&self, now_ns: u64) -> bool {
        now_ns >= self.prepare_after_ns
    }

    /// When the next pause ends.
    pub(super) fn next_ns(&self, now_ns: u64) -> Option<u64> {
        [self.until_ns, self.prepare_after_ns].into_iter().filter(|at_ns| *at_ns > now_ns).min()
    }

    pub(super) fn start_failed(&mut self, now_ns: u64, policy: &Policy) {
        self.last_ns = now_ns;
        self.starts = self.starts.saturating_add(1);
        self.cooling = self.starts >= policy.start_attempts;
        let pause_ns = if self.cooling {
            self.starts = 0;
            nanos(policy.cooldown)
        } else {
            backoff_ns(self.starts, policy)
        };
        self.until_ns = now_ns.saturating_add(pause_ns);
    }

    pub(super) fn prepare_failed(&mut self, now_ns: u64, policy: &Policy) {
        self.prepares = self.prepares.saturating_add(1);
        self.prepare_after_ns = now_ns.saturating_add(backoff_ns(self.prepares, policy));
    }

    pub(super) fn prepared(&mut self) {
        self.prepares = 0;
        self.prepare_after_ns = 0;
    }

    /// An instance that was released at this time is healthy: earlier failures no longer count.
    pub(super) fn healthy(&mut self, released_ns: u64) {
        if released_ns > self.last_ns {
            (self.starts, self.until_ns, self.cooling) = (0, 0, false);
        }
    }
}

fn backoff_ns(failures: u32, policy: &Policy) -> u64 {
    let doubled = nanos(BACKOFF_MIN).saturating_mul(1u64 << failures.saturating_sub(1).min(20));
    doubled.min(nanos(policy.retry_max)).max(1)
}
