//! How many starts per second SYNs without a key may cause: a token bucket with a learning rate.
//!
//! The rate grows by one start per second with each start that a connection followed, and is halved when
//! none followed: additive increase, multiplicative decrease, as TCP finds its share of a link (RFC 5681,
//! 3.1). Starts that were already under way at a halving say nothing about the new rate, so halvings are
//! at least as far apart as the time after which a start counts as unused. That is TCP's rule too: all
//! losses within one window of data are one sign of congestion (RFC 5681, 4.3).

use std::time::Duration;

use super::nanos;
use crate::event::Rates;

/// One start in the unit of [`Budget::credit`]: rate in starts per second times nanoseconds.
const START: u64 = 1_000_000_000;

/// A token bucket. It holds at most the starts of one second at the current rate.
#[derive(Debug)]
pub struct Budget {
    rates: Rates,
    /// Starts per second.
    rate: u32,
    /// What may be spent, in billionths of a start.
    credit: u64,
    /// When `credit` was right.
    counted_ns: u64,
    /// Least time between two halvings.
    window_ns: u64,
    /// No halving before this time.
    halve_after_ns: u64,
}

impl Budget {
    /// A full budget at its highest rate. `unused_after` is how long a start may wait for its connection.
    #[must_use]
    pub fn new(rates: Rates, unused_after: Duration) -> Self {
        let min = rates.min.max(1);
        let rates = Rates { min, max: rates.max.max(min) };
        Self {
            rates,
            rate: rates.max,
            credit: u64::from(rates.max) * START,
            counted_ns: 0,
            window_ns: nanos(unused_after),
            halve_after_ns: 0,
        }
    }

    /// The current rate in starts per second.
    #[must_use]
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Whether there is a start to spend.
    pub(super) fn has_start(&mut self, now_ns: u64) -> bool {
        self.count(now_ns);
        self.credit >= START
    }

    /// Spends a start.
    pub(super) fn spend(&mut self, now_ns: u64) {
        self.count(now_ns);
        self.credit = self.credit.saturating_sub(START);
    }

    /// A connection followed a start that this budget paid for.
    pub(super) fn confirmed(&mut self, now_ns: u64) {
        self.count(now_ns);
        self.rate = self.rate.saturating_add(1).min(self.rates.max);
    }

    /// No connection followed a start that this budget paid for.
    pub(super) fn unused(&mut self, now_ns: u64) {
        if now_ns < self.halve_after_ns {
            return;
        }
        self.count(now_ns);
        self.rate = (self.rate / 2).max(self.rates.min);
        self.credit = self.credit.min(self.depth());
        self.halve_after_ns = now_ns.saturating_add(self.window_ns);
    }

    /// Adds what has become due at the current rate.
    fn count(&mut self, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.counted_ns);
        self.counted_ns = self.counted_ns.max(now_ns);
        let due = elapsed_ns.saturating_mul(u64::from(self.rate));
        self.credit = self.credit.saturating_add(due).min(self.depth());
    }

    fn depth(&self) -> u64 {
        u64::from(self.rate) * START
    }
}

#[cfg(test)]
mod tests;
