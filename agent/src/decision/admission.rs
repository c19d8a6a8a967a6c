//! What the functions of a node share when they decide about early demand.

use std::time::Duration;

use super::budget::Budget;
use super::recent::RecentClients;
use crate::event::Rates;

/// Which clients have asked already, and what SYNs without a key may still start on this node.
#[derive(Debug)]
pub struct Admission {
    pub(super) recent: RecentClients,
    pub(super) starts: Budget,
}

impl Admission {
    /// The admission of one node. `unused_after` is how long a start may wait for its connection.
    #[must_use]
    pub fn new(starts: Rates, unused_after: Duration) -> Self {
        Self { recent: RecentClients::new(), starts: Budget::new(starts, unused_after) }
    }

    /// The node's current rate, in starts per second.
    #[must_use]
    pub fn rate(&self) -> u32 {
        self.starts.rate()
    }

    /// Spends a start of the node's budget and of the function's `own`, or of neither.
    pub(super) fn spend(&mut self, own: &mut Budget, now_ns: u64) -> bool {
        let both = own.has_start(now_ns) && self.starts.has_start(now_ns);
        if both {
            own.spend(now_ns);
            self.starts.spend(now_ns);
        }
        both
    }
}
