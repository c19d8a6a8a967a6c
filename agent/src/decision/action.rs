//! What the agent is to do, and why.

use super::state::InstanceState;
use crate::event::{Demand, InstanceEnd, InstanceId};

/// Why something was decided: the `reason` in logs, metrics and the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Somebody wants the function, and there are too few instances.
    Demand,
    /// `min_ready` wants more instances.
    Provision,
    /// Fewer containers are parked than configured.
    Refill,
    /// More containers are parked than configured, as the demand for them is over.
    Surplus,
    /// It was let go, or thawed, and accepts now.
    Initialised,
    /// It was taken over from an earlier agent.
    Adopted,
    /// An instance is on its way; the demand joins it.
    Starting,
    /// An instance has room already.
    Ready,
    /// All the instances there may be have no room left.
    Ceiling,
    /// Starts fail; the back-off is not over.
    Backoff,
    /// Starts have failed too often; the function is left alone for a while.
    Cooldown,
    /// `max_instances` is 0.
    Off,
    /// The agent is leaving, or the function was removed.
    Closed,
    /// Another sensor saw the same SYN, or the client sent it again.
    Duplicate,
    /// It is told of after its connection was seen, or so late that its client has given up.
    Late,
    /// No key vouches for the SYN, and SYNs like it have started enough for now. Its
    /// connection starts the function when it is complete.
    Budget,
    /// Nobody was connected for long enough.
    Idle,
    /// Somebody is connected: it cannot be frozen.
    Busy,
    /// It could not be frozen.
    FreezeFailed,
    /// An operator asked for it.
    Requested,
    /// Its configuration has changed.
    Replaced,
    /// It did not become ready in time.
    InitTimeout,
    /// It has room, but takes no connection out of the queue.
    Hung,
    /// The connection has waited for `queue_timeout`.
    QueueTimeout,
    /// The container could not be made.
    PrepareFailed,
    /// How it ended.
    Ended(InstanceEnd),
}

impl Reason {
    /// Those of [`Action::Suppress`].
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

    /// Those of [`Action::Answer`].
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
    /// Now and then: instances accept whatever comes, and only one that hangs would be news.
    Slow,
    /// Every connection that comes is news.
    Immediate,
}

/// What the agent is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Create a container and park it.
    Prepare(InstanceId),
    /// Let a parked container go, for this demand.
    Release(InstanceId, Demand),
    /// Have an instance frozen, unless somebody is connected to it. Answered by [`crate::event::Event::Frozen`] or
    /// [`crate::event::Event::NotFrozen`].
    Freeze(InstanceId),
    /// Let a frozen instance run again, for this demand. Answered by [`crate::event::Event::Ready`].
    Thaw(InstanceId, Demand),
    /// Ask an instance to stop; kill it when it does not. The end comes as [`crate::event::Event::Gone`].
    Stop(InstanceId),
    /// Remove a parked container.
    Discard(InstanceId),
    /// Tell so many of the connections that have waited longest that nobody will serve them.
    Answer(u32, Reason),
    /// The demand needs nothing new.
    Suppress(Demand, Reason),
    /// A SYN without a key took a start from the budgets.
    Spent,
    /// No connection followed the SYN or knock that started the function.
    Unused,
    /// Watch the accept queue like this; whatever is in it then is news too.
    WatchQueue(QueueWatchRate),
    /// Tell the kernel half whether SYNs are news.
    Warm(bool),
    /// Send [`crate::event::Event::Timer`] at this time, in nanoseconds of `CLOCK_MONOTONIC`.
    Timer(u64),
    /// Nothing to do: an instance has another state now; `None` when it is gone.
    Moved(InstanceId, Option<InstanceState>, Reason),
}
