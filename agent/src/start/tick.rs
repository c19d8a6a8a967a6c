//! A timer finer than the runtime's, whose steps are a millisecond.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::fd;

/// A timer that fires again and again (timerfd_create(2)).
pub(super) struct Ticks(AsyncFd<OwnedFd>);

impl Ticks {
    /// Fires every `interval` from now on.
    pub(super) fn every(interval: Duration) -> io::Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let every = Expiration::Interval(TimeSpec::from_duration(interval));
        timer.set(every, TimerSetTimeFlags::empty())?;
        fd::register(timer.into(), Interest::READABLE).map(Self)
    }

    /// Waits for the next tick.
    pub(super) async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            // The count of ticks, which empties the timer.
            match nix::unistd::read(self.0.get_ref(), &mut [0u8; 8]) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
