//! The settings of one function that decisions depend on. An event changes them, so they are defined with the events.

use std::time::Duration;

/// The settings of one function that decisions depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Containers kept parked while there is no demand.
    pub prepared: u32,
    /// Connections that one instance serves at a time; `None`: all of them.
    pub concurrency: Option<u32>,
    /// Instances kept ready without any demand.
    pub min_ready: u32,
    /// Instances kept initialised without any demand; they sleep when they are idle.
    pub standby: u32,
    /// Most instances at a time, including those that are stopping. 0: the function is off.
    pub max_instances: u32,
    /// How long a connection may wait in the accept queue before it is answered by the agent.
    pub queue_timeout: Duration,
    /// Idle time after which an instance is frozen.
    pub freeze_after: Option<Duration>,
    /// Idle time after which a frozen instance is hibernated.
    pub hibernate_after: Option<Duration>,
    /// Idle time after which an instance is stopped.
    pub stop_after: Option<Duration>,
    /// From release to ready; an instance that takes longer is killed.
    pub init_timeout: Duration,
    /// The fewest failed starts in a row before a cool-down begins.
    pub start_attempts: u32,
    /// How long a cool-down lasts at most.
    pub cooldown: Duration,
    /// Longest delay after repeated failures.
    pub retry_max: Duration,
    /// How long after a SYN or a knock its connection may come. After that the start counts as unused.
    pub unused_after: Duration,
    /// Starts that SYNs without a key may cause.
    pub starts: Rates,
}

/// The bounds of a budget, in starts per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// The rate that remains in a flood. At least 1.
    pub min: u32,
    /// The highest rate, with which the budget begins.
    pub max: u32,
}
