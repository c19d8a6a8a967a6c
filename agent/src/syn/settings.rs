//! The settings of the eBPF programs, and the task that updates their epoch.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aya::maps::{Array, MapData};
use headstart_config::Syn;
use headstart_ebpf::auth::{EPOCH_SECONDS, epoch};
use headstart_ebpf::maps::{SETTINGS_LOBBY, SETTINGS_SOURCES, Settings};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;

use super::SynError;
use crate::fd;

/// The settings for a configuration. `seed` is random.
pub(super) fn settings(config: &Syn, seed: u64, lobby: bool) -> Settings {
    let sources = !config.allow.is_empty() || !config.ignore.is_empty();
    let (function_interval_ns, function_burst_ns) = rate_limit(config.events.function);
    let (global_interval_ns, global_burst_ns) = rate_limit(config.events.global);
    Settings {
        epoch: epoch(unix_seconds()),
        seed,
        function_interval_ns,
        function_burst_ns,
        global_interval_ns,
        global_burst_ns,
        opened_ns: u64::try_from(config.knock_opens.as_nanos()).unwrap_or(u64::MAX),
        source_limit: config.events.source,
        knock_port: config.knock_port.unwrap_or(0),
        pad: 0,
        flags: if sources { SETTINGS_SOURCES } else { 0 } | if lobby { SETTINGS_LOBBY } else { 0 },
    }
}

/// Interval and burst, in nanoseconds, of a rate limit of `rate` events per second, all of which may come at once.
fn rate_limit(rate: u32) -> (u64, u64) {
    let rate = u64::from(rate).max(1);
    let interval_ns = 1_000_000_000 / rate;
    (interval_ns, interval_ns * (rate - 1))
}

/// Writes the current epoch for the eBPF programs.
pub struct Clock {
    map: Array<MapData, Settings>,
    settings: Settings,
    timer: TimerFd,
}

impl Clock {
    /// Writes the settings. Maps of an earlier agent keep their seed, because their digests of connections depend on it.
    pub(super) fn new(mut map: Array<MapData, Settings>, mut settings: Settings) -> Result<Self, SynError> {
        match map.get(&0, 0)?.seed {
            0 => {}
            before => settings.seed = before,
        }
        map.set(0, settings, 0)?;
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
            .map_err(|error| SynError::Io { what: "cannot make the timer of epochs", error: error.into() })?;
        Ok(Self { map, settings, timer })
    }

    /// Writes each new epoch when it begins, also when the clock is set.
    pub(super) async fn keep(mut self) {
        loop {
            let now = unix_seconds();
            self.settings.epoch = epoch(now);
            if let Err(error) = self.map.set(0, self.settings, 0) {
                tracing::error!(
                    "the kernel keeps an old epoch, so it will refuse tags: {error}; restart the agent"
                );
            }
            if let Err(error) = self.next(now).await {
                tracing::error!(
                    "epochs are no longer updated, so the kernel will refuse tags: {error}; restart the agent"
                );
                return;
            }
        }
    }

    /// Waits until the epoch of `now` is over, or the clock is set.
    async fn next(&self, now: u64) -> io::Result<()> {
        let over = Duration::from_secs((epoch(now) + 1) * EPOCH_SECONDS);
        // A step of the clock cancels the timer (timerfd_create(2)): it becomes readable, and a read fails with ECANCELED.
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        self.timer.set(Expiration::OneShot(TimeSpec::from_duration(over)), flags)?;
        let timer: OwnedFd = self.timer.as_fd().try_clone_to_owned()?;
        let readable = fd::register(timer, Interest::READABLE)?;
        readable.readable().await?.retain_ready();
        Ok(())
    }
}

fn unix_seconds() -> u64 {
    // Before 1970 there is no epoch, and all tags are refused.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use headstart_config::Config;
    use headstart_ebpf::rate_limit::pass;

    fn config(text: &str) -> Syn {
        Config::parse("test.toml", text).unwrap().syn
    }

    #[test]
    fn a_rate_limit_passes_one_second_of_events_at_once_and_the_rate_in_the_long_run() {
        for rate in [1, 3, 256, 1_000_000] {
            let (interval_ns, burst_ns) = rate_limit(rate);
            let (mut due, mut passed) = (0, 0);
            // 5 s of a flood in steps of 0.1 s, until the limit is reached each time.
            for step in 0..50 {
                let now = 1_000_000_000_000 + step * 100_000_000;
                while let Some(next) = pass(due, now, interval_ns, burst_ns) {
                    due = next;
                    passed += 1;
                }
            }
            let most = u64::from(rate) * 6;
            assert!((u64::from(rate) * 5..=most).contains(&passed), "{rate}: {passed}");
        }
    }

    #[test]
    fn flags_follow_the_configuration() {
        let open = settings(&config(""), 7, false);
        assert_eq!((open.flags, open.seed, open.knock_port, open.pad), (0, 7, 0, 0));
        let closed = settings(&config("[syn]\nignore = [\"10.0.0.0/8\"]\n"), 7, true);
        assert_eq!(closed.flags, SETTINGS_SOURCES | SETTINGS_LOBBY);
    }
}
