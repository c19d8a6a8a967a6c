//! How many idle connections to keep, by the leases of the last minutes.
//!
//! ```text
//! wanted = rate x replenish + burst
//! ```
//!
//! * rate: leases per second; older ones count less, by half after 42 s
//! * replenish: how long a connect takes, the last ones most
//! * burst: 95 % of the bursts of the last ten minutes were not larger. A burst is the leases that come before a connect,
//!   begun for the first of them, can have ended.
//!
//! The first part is for a steady load (Little's law), the second for bursts.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

const RATE_MEMORY: Duration = Duration::from_secs(60);
const BURST_MEMORY: Duration = Duration::from_secs(600);
/// The most bursts that are remembered.
const BURSTS_MAX: usize = 128;
/// The share of bursts that should find enough idle connections.
const QUANTILE: f64 = 0.95;
/// The weight of the last connect among all.
const WEIGHT: f64 = 0.2;
/// Leases that are closer are one burst, however fast connects are.
const TOGETHER: Duration = Duration::from_millis(10);

/// The estimate.
#[derive(Debug, Default)]
pub(super) struct DemandEstimate {
    /// Leases per second, at the time of the last one.
    rate: f64,
    last: Option<Instant>,
    replenish: Option<f64>,
    /// When each began, and how many leases it had. The last one may not be over.
    bursts: VecDeque<(Instant, usize)>,
}

impl DemandEstimate {
    /// A lease was wanted.
    pub(super) fn leased(&mut self, now: Instant) {
        self.rate = self.rate_at(now) + 1.0 / RATE_MEMORY.as_secs_f64();
        self.last = Some(now);
        let together = Duration::from_secs_f64(self.replenish.unwrap_or(0.0)).max(TOGETHER);
        match self.bursts.back_mut() {
            Some((began, leases)) if now - *began <= together => *leases += 1,
            _ => self.bursts.push_back((now, 1)),
        }
        if self.bursts.len() > BURSTS_MAX {
            self.bursts.pop_front();
        }
    }

    /// A connect has taken so long.
    pub(super) fn connected(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.replenish = Some(self.replenish.map_or(took, |before| before + WEIGHT * (took - before)));
    }

    /// How many idle connections there should be now.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "small numbers, not below zero"
    )]
    pub(super) fn wanted(&self, now: Instant) -> usize {
        let lately = self.bursts.iter().filter(|(began, _)| now - *began <= BURST_MEMORY);
        let mut sizes: Vec<usize> = lately.map(|(_, leases)| *leases).collect();
        sizes.sort_unstable();
        let rank = (sizes.len() as f64 * QUANTILE).ceil() as usize;
        let burst = rank.checked_sub(1).map_or(0, |index| sizes[index]);
        let steady = self.rate_at(now) * self.replenish.unwrap_or(0.0);
        // Less than a tenth of a connection is none.
        (steady - 0.1).ceil().max(0.0) as usize + burst
    }

    fn rate_at(&self, now: Instant) -> f64 {
        let since = self.last.map_or(Duration::ZERO, |last| now - last);
        self.rate * (-since.as_secs_f64() / RATE_MEMORY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn nothing_is_wanted_without_leases() {
        let (mut size, now) = (DemandEstimate::default(), Instant::now());
        assert_eq!(size.wanted(now), 0);
        size.connected(after(5));
        assert_eq!(size.wanted(now), 0);
    }

    #[test]
    fn a_steady_stream_wants_what_is_on_its_way() {
        let (mut size, mut now) = (DemandEstimate::default(), Instant::now());
        size.connected(after(200));
        // 20 a second for two minutes, each connect 200 ms: four are on their way. In 200 ms come five.
        for _ in 0..2_400 {
            now += after(50);
            size.leased(now);
        }
        assert!((8..=9).contains(&size.wanted(now)), "{}", size.wanted(now));
        // A minute later it may be over; the bursts are remembered longer.
        assert_eq!(size.wanted(now + after(300_000)), 5);
        assert_eq!(size.wanted(now + after(601_000)), 0);
    }

    #[test]
    fn bursts_are_expected_again_but_the_rarest() {
        let (mut size, begin) = (DemandEstimate::default(), Instant::now());
        size.connected(after(20));
        let mut burst = |number: u32, leases: usize| {
            for _ in 0..leases {
                size.leased(begin + number * after(1_000));
            }
            size.wanted(begin + number * after(1_000) + after(500))
        };
        assert_eq!(burst(0, 30), 30, "the first is all that is known");
        for number in 1..20 {
            burst(number, 3);
        }
        assert_eq!(burst(20, 3), 3, "one of twenty-one is rare");
        assert_eq!(burst(21, 30), 30, "two of twenty-two are not");
    }

    #[test]
    fn it_follows_slow_servers() {
        let (mut size, mut now) = (DemandEstimate::default(), Instant::now());
        for took in [10, 500, 500, 500, 500, 500, 500, 500, 500, 500, 500] {
            size.connected(after(took));
        }
        for _ in 0..600 {
            now += after(100);
            size.leased(now);
        }
        // About 6.3 a second (the average has not caught up), each 0.45 s: 3, and bursts of 5.
        assert!((7..=9).contains(&size.wanted(now)), "{}", size.wanted(now));
    }
}
