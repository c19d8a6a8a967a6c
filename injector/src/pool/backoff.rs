//! When to try again after a failure.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

/// Exponential back-off with full jitter: a pause is random between `min` and a ceiling that doubles
/// with each failure in a row, up to `max`. Failures while a pause runs do not lengthen it.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        let min = min.max(Duration::from_millis(1)); // never a busy loop
        Self { min, max: max.max(min), failures: 0, retry_at: None }
    }

    /// A failure. After one that a retry does not help, the ceiling is the longest at once.
    pub(super) fn failed(&mut self, now: Instant, retry_helps: bool) {
        if self.retry_at.is_some_and(|at| at > now) {
            return;
        }
        self.failures = if retry_helps { self.failures.saturating_add(1) } else { u32::MAX };
        let pause = rand::rng().random_range(self.min..=self.ceiling());
        self.retry_at = Some(now + pause);
    }

    fn ceiling(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.min.saturating_mul(factor).min(self.max)
    }

    /// A connect succeeded: no pause. The series goes on until [`Self::proved_good`], because a server
    /// may accept connections only to close them.
    pub(super) fn succeeded(&mut self) {
        self.retry_at = None;
    }

    /// A connection was alive when it was needed: the next failure begins a new series.
    pub(super) fn proved_good(&mut self) {
        self.failures = 0;
    }

    /// The end of the pause, if the last connect failed.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(10);
    const MAX: Duration = Duration::from_secs(1);

    fn pause_after(failures: u32, retry_helps: bool) -> Duration {
        let mut backoff = Backoff::new(MIN, MAX);
        let mut now = Instant::now();
        for _ in 0..failures {
            now = backoff.retry_at().unwrap_or(now);
            backoff.failed(now, retry_helps);
        }
        backoff.retry_at().unwrap() - now
    }

    #[test]
    fn ceiling_doubles_up_to_the_maximum() {
        for (failures, ceiling_ms) in [(1, 20), (2, 40), (4, 160), (7, 1000), (40, 1000)] {
            for _ in 0..50 {
                let pause = pause_after(failures, true);
                assert!((MIN..=Duration::from_millis(ceiling_ms)).contains(&pause), "{failures}: {pause:?}");
            }
        }
    }

    #[test]
    fn hopeless_failure_gets_the_longest_ceiling() {
        let longest = (0..200).map(|_| pause_after(1, false)).max().unwrap();
        assert!(longest > MAX / 2, "{longest:?}");
    }

    #[test]
    fn failures_during_a_pause_do_not_lengthen_it() {
        let mut backoff = Backoff::new(MIN, MAX);
        let now = Instant::now();
        backoff.failed(now, true);
        let at = backoff.retry_at();
        (0..64).for_each(|_| backoff.failed(now, true));
        assert_eq!(backoff.retry_at(), at);
    }

    #[test]
    fn success_ends_the_pause_and_proof_ends_the_series() {
        let mut backoff = Backoff::new(MIN, MAX);
        let now = Instant::now();
        backoff.failed(now, false);
        backoff.succeeded();
        assert_eq!(backoff.retry_at(), None);
        backoff.failed(now, true);
        assert_eq!(backoff.ceiling(), MAX);
        backoff.succeeded();
        backoff.proved_good();
        backoff.failed(now, true);
        assert_eq!(backoff.ceiling(), 2 * MIN);
    }

    #[test]
    fn absurd_settings_still_pause() {
        let mut backoff = Backoff::new(Duration::ZERO, Duration::ZERO);
        let now = Instant::now();
        backoff.failed(now, true);
        assert_eq!(backoff.retry_at(), Some(now + Duration::from_millis(1)));
    }
}
