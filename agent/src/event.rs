//! `event`: the one closed list of things that can happen to a function.
//!
//! Sensors, instances, timers and operators all speak to the agent through
//! these; the task that owns the state reads nothing else.

use std::fmt;
use std::net::SocketAddr;

/// Index of a function in the configuration. The kernel half uses the same number.
pub type FunctionId = u32;

/// Number of an instance, unique within its function while the agent runs.
pub type InstanceId = u64;

/// What first asked for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The client's SYN was seen by the kernel half, on an interface.
    Syn,
    /// The client's SYN was seen by the kernel half, in the socket lookup.
    Lookup,
    /// A valid knock: a client is about to connect.
    Knock,
    /// A completed connection waits in the function's accept queue.
    Accept,
    /// An operator asked through the API.
    Api,
}

impl Trigger {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Syn, Self::Lookup, Self::Knock, Self::Accept, Self::Api];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Lookup => "lookup",
            Self::Knock => "knock",
            Self::Accept => "accept",
            Self::Api => "api",
        }
    }

    /// Whether it announces a connection that may never come.
    #[must_use]
    pub fn is_early(self) -> bool {
        match self {
            Self::Syn | Self::Lookup | Self::Knock => true,
            Self::Accept | Self::Api => false,
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who asks, as far as it takes to tell two reports of one SYN from two SYNs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client {
    /// Its address and port.
    pub address: SocketAddr,
    /// The initial sequence number of its SYN; 0 where the sensor does not know it.
    pub isn: u32,
}

/// A reason to want a function up, with the times that measure it. Both are
/// nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// What asked.
    pub trigger: Trigger,
    /// A key vouches for it, or the operator allows its source: no budget applies.
    pub trusted: bool,
    /// Who asked, where a packet said so.
    pub client: Option<Client>,
    /// When it happened: for a SYN or a knock, when the packet passed the kernel half.
    pub at_ns: u64,
    /// When the agent learned of it.
    pub seen_ns: u64,
}

impl Demand {
    /// Demand that no packet announced: a waiting connection, or an operator.
    #[must_use]
    pub fn local(trigger: Trigger, now_ns: u64) -> Self {
        Self { trigger, trusted: false, client: None, at_ns: now_ns, seen_ns: now_ns }
    }

    /// Whether it announces a connection that may never come, and nobody vouches for it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.trigger.is_early() && !self.trusted
    }
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
    /// An instance says that it has answered its first connection.
    Served(InstanceId),
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
