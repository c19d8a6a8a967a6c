//! The states of one instance, and of a function as a whole.

use super::{DecisionReason, InstanceLoad};

/// The state of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// Its container is being created.
    Preparing {
        /// The configuration has changed since, and the container is discarded when it is made.
        stale: bool,
    },
    /// Its container waits for its release.
    Parked,
    /// It was released and has not reported that it is ready.
    Starting {
        /// When it is killed, in nanoseconds of `CLOCK_MONOTONIC`.
        deadline_ns: u64,
    },
    /// It accepts connections. It is busy while one is open.
    Ready,
    /// It was told that the agent will freeze it.
    Freezing,
    /// Its processes are stopped.
    Frozen,
    /// Its processes are stopped, and the kernel writes its memory to swap.
    Hibernating,
    /// Its processes are stopped, and its memory is in swap.
    Hibernated,
    /// It runs again, and has not reported that it accepts.
    Thawing {
        /// When it is killed, in nanoseconds of `CLOCK_MONOTONIC`.
        deadline_ns: u64,
    },
    /// It was asked to stop.
    Stopping {
        /// This counts as a failed start.
        failed: bool,
    },
}

impl InstanceState {
    /// All names, in the order in which an instance passes the states.
    pub const NAMES: [&'static str; 10] = [
        "preparing",
        "parked",
        "starting",
        "ready",
        "freezing",
        "frozen",
        "hibernating",
        "hibernated",
        "thawing",
        "stopping",
    ];

    /// The name of this state in API, log and metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing { .. } => "preparing",
            Self::Parked => "parked",
            Self::Starting { .. } => "starting",
            Self::Ready => "ready",
            Self::Freezing => "freezing",
            Self::Frozen => "frozen",
            Self::Hibernating => "hibernating",
            Self::Hibernated => "hibernated",
            Self::Thawing { .. } => "thawing",
            Self::Stopping { .. } => "stopping",
        }
    }

    /// It was released and is not known to be gone: it takes one of the `max_instances` places.
    #[must_use]
    pub fn is_alive(self) -> bool {
        !matches!(self, Self::Preparing { .. } | Self::Parked)
    }

    /// Its processes are stopped: it accepts when it has been thawed.
    pub(super) fn is_asleep(self) -> bool {
        matches!(self, Self::Frozen | Self::Hibernating | Self::Hibernated)
    }

    /// It accepts connections, or will without any further action.
    pub(super) fn has_room(self) -> bool {
        matches!(self, Self::Starting { .. } | Self::Ready | Self::Thawing { .. })
    }
}

/// One instance.
#[derive(Debug, Clone, Copy)]
pub struct Instance {
    /// Its state.
    pub state: InstanceState,
    /// Why it is in this state.
    pub reason: DecisionReason,
    /// Since when it is in this state, in nanoseconds of `CLOCK_MONOTONIC`.
    pub since_ns: u64,
    /// When it was released; 0 before.
    pub(super) released_ns: u64,
    /// When it first became ready; 0 before.
    pub(super) ready_ns: u64,
    /// When it was frozen: since when it had had no connection.
    pub(super) idle_ns: u64,
    /// Its memory could not be written to swap since it was frozen.
    pub(super) stays_frozen: bool,
    /// It was started ahead, and nothing has wanted it since.
    pub(super) is_standby: bool,
    /// The configuration has changed since it was started.
    pub(super) is_outdated: bool,
    /// Its load when it last changed, had no room, or no connection waited.
    pub(super) seen: InstanceLoad,
    /// Since when it has had room and has not accepted the connection that waits.
    pub(super) unmoved_ns: u64,
    /// How often that was checked since then.
    pub(super) checks: u32,
}

/// A function as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Summary {
    /// No instance; demand starts one.
    Cold,
    /// Instances are starting or thawing.
    Starting,
    /// An instance accepts connections.
    Ready,
    /// No instance accepts, and one is frozen; demand thaws it.
    Frozen,
    /// No instance accepts, and those that are frozen have their memory in swap; demand thaws one.
    Hibernated,
    /// All instances were asked to stop.
    Stopping,
    /// Starts fail; the agent tries again later.
    Failed,
    /// `max_instances` is 0.
    Off,
    /// The agent is leaving, or the function was removed.
    Closed,
}

impl Summary {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Cold,
        Self::Starting,
        Self::Ready,
        Self::Frozen,
        Self::Hibernated,
        Self::Stopping,
        Self::Failed,
        Self::Off,
        Self::Closed,
    ];

    /// The name of this state in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Frozen => "frozen",
            Self::Hibernated => "hibernated",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Off => "off",
            Self::Closed => "closed",
        }
    }
}
