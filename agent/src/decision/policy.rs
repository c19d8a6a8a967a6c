//! What the settings of a function mean for a decision.

use std::time::Duration;

use super::load::InstanceLoad;
use crate::event::Policy;

impl Policy {
    /// Instances that are needed for this many connections at a time, at most `max_instances`.
    pub(super) fn instances_for(&self, connections: u64) -> u32 {
        let wanted = match self.concurrency {
            Some(places) => connections.div_ceil(u64::from(places.max(1))),
            None => connections.min(1),
        };
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        wanted.max(self.min_ready).min(self.max_instances)
    }

    /// Connections that this many instances serve at a time.
    pub(super) fn places(&self, instances: u32) -> u64 {
        match self.concurrency {
            Some(places) => u64::from(instances) * u64::from(places.max(1)),
            None if instances > 0 => u64::MAX,
            None => 0,
        }
    }

    /// Whether an instance with this load can accept one more connection, as far as is known.
    pub(super) fn has_room(&self, seen: &InstanceLoad) -> bool {
        seen.open.is_none_or(|open| u64::from(open) < self.places(1))
    }

    /// The shortest idle time after which an instance is frozen or stopped.
    pub(super) fn idle_after(&self) -> Option<Duration> {
        [self.freeze_after, self.stop_after].into_iter().flatten().min()
    }
}
