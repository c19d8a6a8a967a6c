//! The settings of one function that decisions depend on.

use std::time::Duration;

use super::budget::Rates;
use super::load::InstanceLoad;

/// The settings of one function that decisions depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Containers kept parked while there is no demand.
    pub prepared: u32,
    /// Connections that one instance serves at a time; `None`: all of them.
    pub concurrency: Option<u32>,
    /// Instances kept ready without any demand.
    pub min_ready: u32,
    /// Most instances at a time, including those that are stopping. 0: the function is off.
    pub max_instances: u32,
    /// How long a connection may wait in the accept queue before it is answered by the agent.
    pub queue_timeout: Duration,
    /// Idle time after which an instance is frozen.
    pub freeze_after: Option<Duration>,
    /// Idle time after which an instance is stopped.
    pub stop_after: Option<Duration>,
    /// From release to ready; an instance that takes longer is killed.
    pub init_timeout: Duration,
    /// Failed starts in a row before a cool-down begins.
    pub start_attempts: u32,
    /// How long a cool-down lasts.
    pub cooldown: Duration,
    /// Longest delay after repeated failures.
    pub retry_max: Duration,
    /// How long after a SYN or a knock its connection may come. After that the start counts as unused.
    pub unused_after: Duration,
    /// Starts that SYNs without a key may cause.
    pub starts: Rates,
}

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
