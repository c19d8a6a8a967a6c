//! What a pool tells about itself. The exporter chooses the names of metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::{DiscardReason, FailureReason, FallbackReason};

/// A snapshot of a pool.
#[derive(Debug, Clone, Serialize)]
pub struct PoolStatus {
    /// The configured name.
    pub backend: String,
    /// Idle connections that the pool wants at least, as applied.
    pub min_idle: usize,
    /// Idle connections that it wants now: more than `min_idle` where it follows demand.
    pub wanted: usize,
    /// The limit of `idle + kept + connecting + leased`, as applied.
    pub max: usize,
    /// Connections ready for a lease.
    pub idle: usize,
    /// Recycled connections that wait for the same function again.
    pub kept: usize,
    /// Connects under way.
    pub connecting: usize,
    /// Connections that were handed to an instance or a client.
    pub leased: usize,
    /// Leases that wait for a connection.
    pub waiting: usize,
    /// Why the last connect failed, until one succeeds.
    pub last_error: Option<String>,
    /// Time to the next background attempt, when the last connect failed.
    pub next_attempt_in: Option<Duration>,
    /// Whether the pool was closed.
    pub closed: bool,
    /// Totals since the pool began.
    #[serde(flatten)]
    pub tally: Tally,
}

/// Totals since the pool began. Every reason is present, also with 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Connections made.
    pub connects: u64,
    /// Leases served by an idle connection.
    pub leased_idle: u64,
    /// Leases served by a connection that was not yet there: each is also a
    /// [`FallbackReason::PoolEmpty`].
    pub leased_connected: u64,
    /// Leases whose connection was cleaned and kept.
    pub recycled: u64,
    /// Failed connects.
    pub failures: BTreeMap<FailureReason, u64>,
    /// Connections given up. An attempt that is cut short by closing the pool is none.
    pub discards: BTreeMap<DiscardReason, u64>,
    /// Leases not served by an idle connection.
    pub fallbacks: BTreeMap<FallbackReason, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            connects: 0,
            leased_idle: 0,
            leased_connected: 0,
            recycled: 0,
            failures: FailureReason::ALL.iter().map(|reason| (*reason, 0)).collect(),
            discards: DiscardReason::ALL.iter().map(|reason| (*reason, 0)).collect(),
            fallbacks: FallbackReason::ALL.iter().map(|reason| (*reason, 0)).collect(),
        }
    }
}

impl Tally {
    pub(super) fn failure(&mut self, reason: FailureReason) {
        *self.failures.entry(reason).or_default() += 1;
    }

    pub(super) fn discard(&mut self, reason: DiscardReason) {
        *self.discards.entry(reason).or_default() += 1;
    }

    pub(super) fn fallback(&mut self, reason: FallbackReason) {
        *self.fallbacks.entry(reason).or_default() += 1;
    }
}
