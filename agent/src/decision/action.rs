//! What the agent has to do, and why.

use super::state::InstanceState;
use crate::event::{Demand, FunctionId, InstanceEnd, InstanceId};

/// Why something was decided: the `reason` in logs, metrics and the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DecisionReason {
    /// Clients want the function, and there are too few instances.
    Demand,
    /// `min_ready` or `standby` wants more instances.
    Provision,
    /// Fewer containers are parked than configured.
    Refill,
    /// More containers are parked than configured, as the demand for them is over.
    Surplus,
    /// It was released or thawed, and accepts now.
    Initialised,
    /// It was taken over from an earlier agent.
    Adopted,
    /// An instance is starting or thawing; the demand joins it.
    Starting,
    /// An instance has room already.
    Ready,
    /// `max_instances` instances exist, and none has room left.
    Ceiling,
    /// Starts fail; the back-off is not over.
    Backoff,
    /// Starts have failed too often; the cool-down is not over.
    Cooldown,
    /// `max_instances` is 0.
    Off,
    /// The agent is leaving, or the function was removed.
    Closed,
    /// Another sensor saw the same SYN, or the client sent it again.
    Duplicate,
    /// It was reported after its connection was seen, or so late that its client has given up.
    Late,
    /// The SYN has no key, and the budgets for such SYNs are spent. Its connection starts the function when it is
    /// complete.
    Budget,
    /// It had no connection for long enough.
    Idle,
    /// It has a connection and cannot be frozen.
    Busy,
    /// It could not be frozen.
    FreezeFailed,
    /// Its memory could not be written to swap.
    HibernateFailed,
    /// The node is short of memory.
    Pressure,
    /// An operator asked for it.
    Requested,
    /// Its configuration has changed.
    Replaced,
    /// It did not become ready in time.
    InitTimeout,
    /// It has room, and does not accept the connection that waits.
    Hung,
    /// The connection has waited for `queue_timeout`.
    QueueTimeout,
    /// The container could not be made.
    PrepareFailed,
    /// How it ended.
    Ended(InstanceEnd),
}

impl DecisionReason {
    /// The reasons of [`Action::Suppress`].
    pub const SUPPRESS: [Self; 10] = [
        Self::Starting,
        Self::Ready,
        Self::Ceiling,
        Self::Backoff,
        Self::Cooldown,
        Self::Off,
        Self::Closed,
        Self::Duplicate,
        Self::Late,
        Self::Budget,
    ];

    /// The reasons of [`Action::Answer`].
    pub const ANSWER: [Self; 3] = [Self::QueueTimeout, Self::Cooldown, Self::Off];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Provision => "provision",
            Self::Refill => "refill",
            Self::Surplus => "surplus",
            Self::Initialised => "initialised",
            Self::Adopted => "adopted",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Ceiling => "ceiling",
            Self::Backoff => "backoff",
            Self::Cooldown => "cooldown",
            Self::Off => "off",
            Self::Closed => "closed",
            Self::Duplicate => "duplicate",
            Self::Late => "late",
            Self::Budget => "budget",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::FreezeFailed => "freeze_failed",
            Self::HibernateFailed => "hibernate_failed",
            Self::Pressure => "pressure",
            Self::Requested => "requested",
            Self::Replaced => "replaced",
            Self::InitTimeout => "init_timeout",
            Self::Hung => "hung",
            Self::QueueTimeout => "queue_timeout",
            Self::PrepareFailed => "prepare_failed",
            Self::Ended(end) => end.as_str(),
        }
    }
}

/// How closely the accept queue is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueWatchRate {
    /// Not at all.
    Off,
    /// Now and then: instances accept all connections, and only one that hangs is news.
    Slow,
    /// At once for each connection that comes.
    Immediate,
}

/// What the agent has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Create a container and park it.
    Prepare(InstanceId),
    /// Release a parked container, for this demand.
    Release(InstanceId, Demand),
    /// Freeze an instance, unless it has a connection. Answered by [`crate::event::Event::Frozen`] or
    /// [`crate::event::Event::NotFrozen`].
    Freeze(InstanceId),
    /// Write the memory of a frozen instance to swap. Answered by [`crate::event::Event::Hibernated`] or
    /// [`crate::event::Event::NotHibernated`], unless it is thawed or stopped before.
    Hibernate(InstanceId),
    /// Thaw a frozen or hibernated instance, for this demand. Answered by [`crate::event::Event::Ready`].
    Thaw(InstanceId, Demand),
    /// Ask an instance to stop; kill it when it does not. The end comes as [`crate::event::Event::Gone`].
    Stop(InstanceId),
    /// Remove a parked container.
    Discard(InstanceId),
    /// Answer this many of the connections that have waited longest: no instance will serve them.
    Answer(u32, DecisionReason),
    /// The demand needs nothing new.
    Suppress(Demand, DecisionReason),
    /// A SYN without a key took a start from the budgets.
    Spent,
    /// No connection followed the SYN or knock that started the function.
    Unused,
    /// Watch the accept queue at this rate. The connections that are in it at that moment are reported too.
    WatchQueue(QueueWatchRate),
    /// Tell the kernel half whether the function needs no early starts: with true it stops reporting SYNs.
    Warm(bool),
    /// Send [`crate::event::Event::Timer`] at this time, in nanoseconds of `CLOCK_MONOTONIC`.
    Timer(u64),
    /// Settle this other function: it has its turn now to start an instance ahead.
    Turn(FunctionId),
    /// Nothing to do: an instance has changed its state. `None`: it is gone.
    Moved(InstanceId, Option<InstanceState>, DecisionReason),
}
