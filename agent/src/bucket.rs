//! A token bucket: so many at once, and so many a second from then on.

use std::time::Duration;

use tokio::time::Instant;

/// What one peer may do. Bounds its share, not what it asks for at a time.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    interval: Duration,
    burst: Duration,
    /// When the bucket will be full again.
    full_at: Instant,
}

impl TokenBucket {
    /// Full, for `burst` at once and `per_second` later.
    pub(crate) fn new(burst: u32, per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, burst: interval * burst, full_at: Instant::now() }
    }

    /// When there is a token again; `None` if there is one.
    pub(crate) fn wait(&self) -> Option<Instant> {
        let at = (self.full_at + self.interval).checked_sub(self.burst)?;
        (at > Instant::now()).then_some(at)
    }

    /// Takes so many tokens if there is one; what is missing is taken from later ones. False when there is none.
    pub(crate) fn take(&mut self, tokens: u32) -> bool {
        let free = self.wait().is_none();
        if free {
            self.full_at = self.full_at.max(Instant::now()) + self.interval * tokens;
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_so_many_a_second() {
        let mut bucket = TokenBucket::new(10, 4);
        let taken = |bucket: &mut TokenBucket| (0..100).filter(|_| bucket.take(1)).count();
        assert_eq!(taken(&mut bucket), 10);
        let at = bucket.wait().unwrap();
        tokio::time::sleep_until(at).await;
        assert_eq!((taken(&mut bucket), at.elapsed()), (1, Duration::ZERO));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(taken(&mut bucket), 4);
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert_eq!(taken(&mut bucket), 10, "no more than the burst");
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert!(bucket.take(14), "on credit");
        assert_eq!(taken(&mut bucket), 0);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(taken(&mut bucket), 4);
    }
}
