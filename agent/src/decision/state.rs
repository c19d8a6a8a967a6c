//! The states of one instance, and of a function as a whole.

use super::{InstanceLoad, Reason};

/// Where an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// Its container is being created.
    Preparing {
        /// It is of a configuration that holds no more, and is discarded when it is there.
        stale: bool,
    },
    /// Its container waits to be let go.
    Parked,
    /// It was let go and has not said that it is ready.
    Starting {
        /// When it is killed, in nanoseconds of `CLOCK_MONOTONIC`.
        deadline_ns: u64,
    },
    /// It accepts connections. It is busy while any is open.
    Ready,
    /// It was told that it is to be frozen.
    Freezing,
    /// Its processes are stopped.
    Frozen,
    /// It runs again, and has not said that it accepts.
    Thawing {
        /// When it is killed, in nanoseconds of `CLOCK_MONOTONIC`.
        deadline_ns: u64,
    },
    /// It was asked to go.
    Stopping {
        /// That counts as a failed start.
        failed: bool,
    },
}

impl InstanceState {
    /// All names, in the order of a life.
    pub const NAMES: [&'static str; 8] =
        ["preparing", "parked", "starting", "ready", "freezing", "frozen", "thawing", "stopping"];

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
            Self::Thawing { .. } => "thawing",
            Self::Stopping { .. } => "stopping",
        }
    }

    /// It was let go and is not known to be gone: it takes one of the `max_instances` places.
    #[must_use]
    pub fn is_alive(self) -> bool {
        !matches!(self, Self::Preparing { .. } | Self::Parked)
    }

    /// It accepts connections, or will without anybody's doing.
    pub(super) fn has_room(self) -> bool {
        matches!(self, Self::Starting { .. } | Self::Ready | Self::Thawing { .. })
    }
}

/// One instance.
#[derive(Debug, Clone, Copy)]
pub struct Instance {
    /// Where it is.
    pub state: InstanceState,
    /// Why.
    pub reason: Reason,
    /// Since when, in nanoseconds of `CLOCK_MONOTONIC`.
    pub since_ns: u64,
    /// When it was let go; 0 before.
    pub(super) released_ns: u64,
    /// When it first became ready; 0 before.
    pub(super) ready_ns: u64,
    /// Since when nobody was connected to it when it was frozen.
    pub(super) idle_ns: u64,
    /// What was last seen of it while it had no room, or nobody waited, or when it changed.
    pub(super) seen: InstanceLoad,
    /// Since when it has had room and has taken nobody, although somebody waited.
    pub(super) unmoved_ns: u64,
    /// How often it was looked at since then.
    pub(super) looks: u32,
}

/// A function as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Summary {
    /// No instance; demand starts one.
    Cold,
    /// Instances are on their way.
    Starting,
    /// An instance accepts connections.
    Ready,
    /// All instances are frozen; demand thaws one.
    Frozen,
    /// All instances were asked to go.
    Stopping,
    /// Starts fail; the next is tried later.
    Failed,
    /// `max_instances` is 0.
    Off,
    /// The agent is leaving, or the function was removed.
    Closed,
}

impl Summary {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Cold,
        Self::Starting,
        Self::Ready,
        Self::Frozen,
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
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Off => "off",
            Self::Closed => "closed",
        }
    }
}
