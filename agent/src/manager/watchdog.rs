//! The service manager's watchdog, sd_watchdog_enabled(3): the manager restarts an agent that it does not hear in time.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::notify::{NotifySocket, WhenFull};

/// Pings in the time that the manager allows. sd_watchdog_enabled(3) recommends two; with three, one may be lost.
const PINGS: u32 = 3;

/// Tells the service manager that the agent's main loop runs. The loop itself must await it, because a task of its own
/// would also run beside a loop that waits for ever.
pub struct Watchdog {
    notify: Arc<NotifySocket>,
    interval: Interval,
}

impl Watchdog {
    /// Must be called in a runtime.
    pub(super) fn new(notify: Arc<NotifySocket>, timeout: Duration) -> Self {
        let mut interval = interval(timeout / PINGS);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { notify, interval }
    }

    /// One with the socket of the manager, which does not block, for tests.
    #[cfg(test)]
    pub(crate) fn with_manager(timeout: Duration) -> (std::os::unix::net::UnixDatagram, Self) {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("headstart-test-watchdog-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let manager = std::os::unix::net::UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notify = NotifySocket::to(format!("@{name}").as_ref()).unwrap();
        (manager, Self::new(Arc::new(notify), timeout))
    }

    /// Waits until a ping is due, and sends it. The first one is due at once. A call may be cancelled while it waits.
    pub async fn ping(&mut self) {
        self.interval.tick().await;
        if let Err(error) = self.notify.send("WATCHDOG=1", &[], WhenFull::Fail) {
            tracing::warn!("the service manager's watchdog cannot be notified: {error}");
        }
    }
}

/// The time within which the manager expects a ping of this process; `None` if it expects none.
pub(super) fn timeout(pid: u32, variable: impl Fn(&str) -> Option<OsString>) -> Option<Duration> {
    let text = |name| variable(name).map(|value| value.into_string().unwrap_or_default());
    if text("WATCHDOG_PID").is_some_and(|of| of.parse() != Ok(pid)) {
        return None;
    }
    // The largest number stands for no limit (`USEC_INFINITY`).
    match text("WATCHDOG_USEC")?.parse() {
        Ok(0 | u64::MAX) | Err(_) => None,
        Ok(micros) => Some(Duration::from_micros(micros)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_must_be_meant_for_this_process() {
        let timeout = |pid: Option<&str>, micros: Option<&str>| {
            super::timeout(42, |name| match name {
                "WATCHDOG_PID" => pid.map(OsString::from),
                "WATCHDOG_USEC" => micros.map(OsString::from),
                _ => None,
            })
        };
        for pid in [None, Some("42")] {
            assert_eq!(timeout(pid, Some("10000000")), Some(Duration::from_secs(10)));
            for micros in [None, Some(""), Some("0"), Some("-1"), Some("10s"), Some("18446744073709551615")] {
                assert_eq!(timeout(pid, micros), None, "{micros:?}");
            }
        }
        for pid in ["41", "", "x", "-42"] {
            assert_eq!(timeout(Some(pid), Some("10000000")), None, "{pid:?}");
        }
    }
}
