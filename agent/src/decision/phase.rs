//! Where a function is: the boxes of the state machine.

use crate::event::{Demand, InstanceId};

/// Where a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No instance; demand starts one.
    Cold,
    /// Demand came while nothing was parked: a container is being created for it.
    Waiting {
        /// The demand that is served first.
        demand: Demand,
    },
    /// A container was let go and has not said that it is ready.
    Starting {
        /// Which one.
        instance: InstanceId,
        /// When it is killed, in nanoseconds of `CLOCK_MONOTONIC`.
        deadline_ns: u64,
    },
    /// An instance accepts connections.
    Ready {
        /// Which one.
        instance: InstanceId,
        /// Since when, in nanoseconds of `CLOCK_MONOTONIC`.
        since_ns: u64,
    },
    /// An instance was asked to go.
    Stopping {
        /// Which one.
        instance: InstanceId,
        /// It never became ready: its end counts as a failed start.
        failed: bool,
    },
    /// Starts fail; the next is tried at this time, if anybody still waits.
    Failed {
        /// In nanoseconds of `CLOCK_MONOTONIC`.
        until_ns: u64,
    },
    /// The agent is leaving.
    Closed,
}

impl Phase {
    /// The name of this phase in API, log and metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Waiting { .. } | Self::Starting { .. } => "starting",
            Self::Ready { .. } => "ready",
            Self::Stopping { .. } => "stopping",
            Self::Failed { .. } => "failed",
            Self::Closed => "closed",
        }
    }

    /// The instance that was released and is not known to be gone.
    #[must_use]
    pub fn instance(self) -> Option<InstanceId> {
        match self {
            Self::Starting { instance, .. }
            | Self::Ready { instance, .. }
            | Self::Stopping { instance, .. } => Some(instance),
            Self::Cold | Self::Waiting { .. } | Self::Failed { .. } | Self::Closed => None,
        }
    }
}
