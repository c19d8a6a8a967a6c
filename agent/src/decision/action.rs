//! What the agent is to do, and why.

use crate::event::{Demand, InstanceId};

/// Why a decision was what it was: the `reason` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The function was cold.
    Cold,
    /// An instance is on its way; the demand joins it.
    Starting,
    /// An instance accepts already.
    Ready,
    /// An instance is leaving; whoever still waits after that is seen in the accept queue.
    Stopping,
    /// Starts fail; the back-off is not over.
    Backoff,
    /// The agent is leaving.
    Closed,
    /// Another sensor saw the same SYN, or the client sent it again.
    Duplicate,
    /// No key vouches for the SYN, and SYNs like it have started enough for now. Its
    /// connection starts the function when it is complete.
    Budget,
    /// Fewer containers are parked than configured.
    Refill,
    /// The instance did not become ready in time.
    InitTimeout,
    /// An operator, or the agent's own end.
    Requested,
}

impl Reason {
    /// Those of [`Action::Suppress`].
    pub const SUPPRESS: [Self; 7] = [
        Self::Starting,
        Self::Ready,
        Self::Stopping,
        Self::Backoff,
        Self::Closed,
        Self::Duplicate,
        Self::Budget,
    ];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Closed => "closed",
            Self::Duplicate => "duplicate",
            Self::Budget => "budget",
            Self::Refill => "refill",
            Self::InitTimeout => "init_timeout",
            Self::Requested => "requested",
        }
    }
}

/// What the agent is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Create a container and park it.
    Prepare(InstanceId, Reason),
    /// Let a parked container go, for this demand.
    Release(InstanceId, Demand),
    /// Ask an instance to stop; kill it when it does not. The end comes as [`crate::event::Event::Gone`].
    Stop(InstanceId, Reason),
    /// Remove a parked container.
    Discard(InstanceId),
    /// The demand needs nothing new.
    Suppress(Demand, Reason),
    /// No connection followed the SYN or knock that started the function.
    Unused,
    /// Watch the listener: a connection in its accept queue is demand.
    Watch,
    /// Stop watching: an instance accepts by itself.
    Unwatch,
    /// Tell the kernel half whether SYNs are news.
    Warm(bool),
    /// Send [`crate::event::Event::Timer`] at this time, in nanoseconds of `CLOCK_MONOTONIC`.
    Timer(u64),
}
