//! What has failed, and when it may be tried again.
//!
//! ```text
//! the function fails ──> back-off, doubled each time, for `start_attempts` and a second ──> cool-down: 1 s, doubled each
//!                                                    time up to `cooldown`, with `start_attempts` between two of them
//! backend or node fails ──> back-off, doubled up to a part of the time that clients wait, until it works again
//! ```
//!
//! Clients of a function that always fails get their answer soon. But one that fails may work a moment later, because
//! something is out that the agent does not see: therefore it is tried for a second, and the first cool-downs are short.

use std::time::Duration;

use super::{DecisionReason, Policy, nanos};
use crate::event::FailureCause;

/// First delay after a failed start or prepare; doubles with each one that follows.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// So long a function is tried at least before its first cool-down (if its clients wait so long), which takes as long.
const FIRST_COOLDOWN: Duration = Duration::from_secs(1);

/// While a backend or the node fails, a client sees this many attempts at least.
const ATTEMPTS_PER_WAIT: u32 = 4;

/// Failures of one function.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Failed starts since the last good one, or since the last cool-down began, that are the function's failure.
    starts: u32,
    /// When the first of them failed.
    first_ns: u64,
    /// Failed starts since the last good one that are not the function's failure.
    outside: u32,
    /// Whose failure the last failed start is.
    cause: Option<FailureCause>,
    /// Before this time nothing is released.
    until_ns: u64,
    /// The pause is a cool-down.
    cooling: bool,
    /// Cool-downs since the last good start.
    cooldowns: u32,
    /// When a start failed last.
    last_ns: u64,
    /// Failed prepares since the last good one, whose failure the last is, and when the next is allowed.
    prepares: u32,
    prepare_cause: Option<FailureCause>,
    prepare_after_ns: u64,
}

impl Failures {
    pub(super) fn starts(&self) -> u32 {
        if self.cooling { 0 } else { self.starts.saturating_add(self.outside) }
    }

    pub(super) fn cause(&self) -> Option<FailureCause> {
        self.cause.or(self.prepare_cause)
    }

    /// Why nothing may be started now; `None` when starts are allowed.
    pub(super) fn pause(&self, now_ns: u64) -> Option<DecisionReason> {
        let reason = if self.cooling { DecisionReason::Cooldown } else { DecisionReason::Backoff };
        (now_ns < self.until_ns).then_some(reason)
    }

    /// When a start, or a container, is tried again. It stays in the past until one succeeds.
    pub(super) fn retry_at_ns(&self) -> Option<u64> {
        let prepares = (self.prepares > 0).then_some(self.prepare_after_ns);
        self.cause.map(|_| self.until_ns).or(prepares)
    }

    /// Whether a container may be made ahead of any demand.
    pub(super) fn may_prepare(&self, now_ns: u64) -> bool {
        now_ns >= self.prepare_after_ns
    }

    /// When the next pause ends.
    pub(super) fn next_ns(&self, now_ns: u64) -> Option<u64> {
        [self.until_ns, self.prepare_after_ns].into_iter().filter(|at_ns| *at_ns > now_ns).min()
    }

    /// Starts that fail while a pause runs were begun before it: they say nothing new.
    pub(super) fn start_failed(&mut self, cause: FailureCause, now_ns: u64, policy: &Policy) {
        self.last_ns = now_ns;
        if now_ns < self.until_ns {
            return;
        }
        self.cause = Some(cause);
        let pause_ns = match cause {
            FailureCause::Function => self.function_failed(now_ns, policy),
            FailureCause::Backend | FailureCause::Node => {
                self.cooling = false;
                self.outside = self.outside.saturating_add(1);
                let share = (policy.queue_timeout / ATTEMPTS_PER_WAIT).max(BACKOFF_MIN);
                backoff_ns(self.outside, policy.retry_max.min(share))
            }
        };
        self.until_ns = now_ns.saturating_add(pause_ns);
    }

    fn function_failed(&mut self, now_ns: u64, policy: &Policy) -> u64 {
        if self.starts == 0 {
            self.first_ns = now_ns;
        }
        self.starts = self.starts.saturating_add(1);
        let pause_ns = backoff_ns(self.starts, policy.retry_max);
        let horizon =
            if self.cooldowns > 0 { Duration::ZERO } else { policy.queue_timeout.min(FIRST_COOLDOWN) };
        let is_late = now_ns.saturating_add(pause_ns) >= self.first_ns.saturating_add(nanos(horizon));
        self.cooling = self.starts >= policy.start_attempts && is_late;
        if !self.cooling {
            return pause_ns;
        }
        (self.starts, self.cooldowns) = (0, self.cooldowns.saturating_add(1));
        doubled_ns(FIRST_COOLDOWN, self.cooldowns, policy.cooldown)
    }

    pub(super) fn prepare_failed(&mut self, cause: FailureCause, now_ns: u64, policy: &Policy) {
        self.prepare_cause = Some(cause);
        self.prepares = self.prepares.saturating_add(1);
        self.prepare_after_ns = now_ns.saturating_add(backoff_ns(self.prepares, policy.retry_max));
    }

    /// A container was made: the node works again.
    pub(super) fn prepared(&mut self) {
        (self.prepares, self.prepare_cause, self.prepare_after_ns) = (0, None, 0);
        if self.cause == Some(FailureCause::Node) {
            self.works_again();
        }
    }

    /// An instance is ready: node and backends work again.
    pub(super) fn started(&mut self) {
        if matches!(self.cause, Some(FailureCause::Node | FailureCause::Backend)) {
            self.works_again();
        }
    }

    /// The pause is over. It goes on to grow if the next start fails too.
    fn works_again(&mut self) {
        self.until_ns = 0;
        self.cause = (self.starts > 0).then_some(FailureCause::Function);
    }

    /// An instance that was released at this time is healthy: earlier failures no longer count.
    pub(super) fn healthy(&mut self, released_ns: u64) {
        if released_ns > self.last_ns {
            let Self { last_ns, prepares, prepare_cause, prepare_after_ns, .. } = *self;
            *self = Self { last_ns, prepares, prepare_cause, prepare_after_ns, ..Self::default() };
        }
    }
}

fn backoff_ns(failures: u32, most: Duration) -> u64 {
    doubled_ns(BACKOFF_MIN, failures, most)
}

/// The pause of this number, from 1 on.
fn doubled_ns(first: Duration, number: u32, most: Duration) -> u64 {
    let doubled = nanos(first).saturating_mul(1u64 << number.saturating_sub(1).min(20));
    doubled.min(nanos(most)).max(1)
}
