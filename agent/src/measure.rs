//! `measure`: every step's time, as a timeline, a log line and metrics.

mod kernel;
mod metrics;
mod timeline;

pub use metrics::front::{
    CarryReason, HandshakeOutcome, RequestOutcome, declare_front, front_expiry, record_front_connection,
    record_front_guess, record_front_handshake, record_front_request,
};
pub use metrics::{
    Export, declare, install, record_decision, record_inject, record_log_left_out, record_lost,
    record_outcome, record_overload, record_refused, record_reload, record_spent, record_stages,
    record_suppressed, record_syn, record_thaw, record_transition, record_unused, scrape,
};
pub use timeline::{Stages, StartOutcome, Timeline};

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// How many timelines `GET /api/v1/starts` remembers.
pub const STARTS_MAX: usize = 256;

/// The last cold starts, newest last.
#[derive(Debug, Default)]
pub struct StartHistory(Mutex<VecDeque<Timeline>>);

impl StartHistory {
    /// Adds a timeline, or replaces the one of the same instance.
    pub fn put(&self, timeline: &Timeline) {
        let mut starts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = starts.iter_mut().rev().find(|known| known.instance == timeline.instance) {
            known.clone_from(timeline);
            return;
        }
        if starts.len() == STARTS_MAX {
            starts.pop_front();
        }
        starts.push_back(timeline.clone());
    }

    /// All of them, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Timeline> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of the kernel half and of functions too.
#[must_use]
pub fn now_ns() -> u64 {
    // The clock exists on every Linux. Zero would only spoil one measurement.
    headstart_wire::monotonic_ns().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_start_goes_when_there_are_too_many_and_an_update_is_none() {
        let starts = StartHistory::default();
        for number in 0..STARTS_MAX + 3 {
            let timeline = timeline::example(&format!("orders-{number}"));
            starts.put(&timeline);
            starts.put(&timeline);
        }
        let list = starts.list();
        assert_eq!(list.len(), STARTS_MAX);
        assert_eq!(list[0].instance, "orders-3");
    }
}
