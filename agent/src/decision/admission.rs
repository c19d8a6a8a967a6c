//! What the functions of a node share when they decide about early demand, and about starts without any.

use std::time::Duration;

use super::budget::Budget;
use super::recent::RecentClients;
use super::standby::StandbyTurns;
use crate::event::{Rates, Standing};

/// Which clients have asked already, and what SYNs without a key may still start on this node.
#[derive(Debug)]
pub struct Admission {
    pub(super) recent: RecentClients,
    pub(super) starts: Budget,
    /// Of the sources that the operator allows. It is the node's: an address that is believed may be forged.
    allowed: Budget,
    pub(super) standby: StandbyTurns,
}

impl Admission {
    /// The admission of one node. `unused_after` is how long a start may wait for its connection.
    #[must_use]
    pub fn new(starts: Rates, allowed: Rates, unused_after: Duration) -> Self {
        let (starts, allowed) = (Budget::new(starts, unused_after), Budget::new(allowed, unused_after));
        Self { recent: RecentClients::new(), starts, allowed, standby: StandbyTurns::default() }
    }

    /// The node's current rate, in starts per second.
    #[must_use]
    pub fn rate(&self) -> u32 {
        self.starts.rate()
    }

    /// The current rate of allowed sources, in starts per second.
    #[must_use]
    pub fn allowed_rate(&self) -> u32 {
        self.allowed.rate()
    }

    /// The budgets that a start of this standing comes from; `own` is the function's.
    fn budgets<'a>(&'a mut self, standing: Standing, own: &'a mut Budget) -> [Option<&'a mut Budget>; 2] {
        match standing {
            Standing::Open => [Some(own), Some(&mut self.starts)],
            Standing::Allowed => [Some(&mut self.allowed), None],
            Standing::Key => [None, None],
        }
    }

    /// Spends a start of each of its budgets, or of none.
    pub(super) fn spend(&mut self, standing: Standing, own: &mut Budget, now_ns: u64) -> bool {
        let mut budgets = self.budgets(standing, own);
        let all = budgets.iter_mut().flatten().all(|budget| budget.has_start(now_ns));
        if all {
            budgets.into_iter().flatten().for_each(|budget| budget.spend(now_ns));
        }
        all
    }

    /// A connection followed a start that these budgets paid for.
    pub(super) fn confirmed(&mut self, standing: Standing, own: &mut Budget, now_ns: u64) {
        self.budgets(standing, own).into_iter().flatten().for_each(|budget| budget.confirmed(now_ns));
    }

    /// No connection followed it.
    pub(super) fn unused(&mut self, standing: Standing, own: &mut Budget, now_ns: u64) {
        self.budgets(standing, own).into_iter().flatten().for_each(|budget| budget.unused(now_ns));
    }
}
