//! `event`: the one closed list of things that can happen to a function.
//!
//! Sensors, instances, timers and operators all speak to the agent through
//! these; the task that owns the state reads nothing else.

use std::fmt;

/// Index of a function in the configuration. The kernel half uses the same number.
pub type FunctionId = u32;

/// Number of an instance, unique within its function while the agent runs.
pub type InstanceId = u64;

/// What first asked for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The client's SYN was seen by the kernel half.
    Syn,
    /// A completed connection waits in the function's accept queue.
    Accept,
    /// An operator asked through the API.
    Api,
}

impl Trigger {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Syn, Self::Accept, Self::Api];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Accept => "accept",
            Self::Api => "api",
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reason to want a function up, with the times that measure it. Both are
/// nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// What asked.
    pub trigger: Trigger,
    /// When it happened: for a SYN, when the packet passed the kernel half.
    pub at_ns: u64,
    /// When the agent learned of it.
    pub seen_ns: u64,
}

/// Something that happened to one function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The agent begins to serve the function.
    Configured,
    /// Somebody wants the function up.
    Demand(Demand),
    /// A container is created and waits.
    Parked(InstanceId),
    /// A container could not be created.
    PrepareFailed(InstanceId),
    /// An instance finished its initialisation and accepts.
    Ready(InstanceId),
    /// An instance is gone, parked or running, wanted or not.
    Gone {
        /// Which one.
        instance: InstanceId,
        /// It exited by itself with code 0, or was asked to.
        clean: bool,
    },
    /// A time that [`crate::decision::Action::Timer`] asked for has come.
    Timer,
    /// An operator wants the running instance stopped.
    Stop,
    /// The agent is leaving: nothing may be started any more.
    Shutdown,
}
