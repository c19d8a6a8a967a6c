//! `event`: the one closed list of things that can happen to a function.
//!
//! Sensors, instances, timers and operators all send these; the task that owns the state reads nothing else.

mod policy;

use std::fmt;
use std::net::SocketAddr;

pub use policy::{Policy, Rates};

/// Index of a function in the configuration. The kernel half uses the same number.
pub type FunctionId = u32;

/// Number of an instance, unique within its function while the agent runs. The decision numbers the instances that it
/// orders, upwards from 1.
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
    /// A client's SYN to a front was seen by the kernel half, and its source went to this function last.
    #[serde(rename = "syn-guess")]
    SynGuess,
    /// A client has named the function's host in the ClientHello of its TLS handshake with a front.
    Sni,
    /// A client has named the function in the head of its request to a front.
    Host,
    /// A completed connection waits in the function's accept queue.
    Accept,
    /// An operator asked through the API.
    Api,
    /// No client: the configuration wants instances ready at all times (`min_ready`, `standby`).
    Provision,
}

impl Trigger {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Syn,
        Self::Lookup,
        Self::Knock,
        Self::SynGuess,
        Self::Sni,
        Self::Host,
        Self::Accept,
        Self::Api,
        Self::Provision,
    ];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Lookup => "lookup",
            Self::Knock => "knock",
            Self::SynGuess => "syn-guess",
            Self::Sni => "sni",
            Self::Host => "host",
            Self::Accept => "accept",
            Self::Api => "api",
            Self::Provision => "provision",
        }
    }

    /// Whether it announces a connection that may never come.
    #[must_use]
    pub fn is_early(self) -> bool {
        match self {
            Self::Syn | Self::Lookup | Self::Knock | Self::SynGuess | Self::Sni | Self::Host => true,
            Self::Accept | Self::Api | Self::Provision => false,
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A client, as far as it takes to tell two reports of one SYN from two SYNs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientIdentity {
    /// Its address and port.
    pub address: SocketAddr,
    /// The initial sequence number of its SYN; 0 where the sensor does not know it.
    pub isn: u32,
}

/// What is known of a client, and so which budget its starts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing.
    Open,
    /// The operator allows its source, which may be forged.
    Allowed,
    /// It has a key: no budget applies.
    Key,
}

/// A reason to start a function, with the times that measure the start. Both are
/// nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// What caused it.
    pub trigger: Trigger,
    /// What is known of the client.
    pub standing: Standing,
    /// The client, if a packet shows it.
    pub client: Option<ClientIdentity>,
    /// The same client by another name, under which it may have been announced before.
    pub alias: Option<ClientIdentity>,
    /// When it happened: for a SYN or a knock, when the packet passed the kernel half.
    pub at_ns: u64,
    /// When the agent learned of it.
    pub seen_ns: u64,
}

impl Demand {
    /// Demand that no packet announced: a waiting connection, or an operator.
    #[must_use]
    pub fn local(trigger: Trigger, now_ns: u64) -> Self {
        Self { trigger, standing: Standing::Open, client: None, alias: None, at_ns: now_ns, seen_ns: now_ns }
    }

    /// Whether it announces a connection that may never come, and its client has not proved anything.
    #[must_use]
    pub fn needs_budget(&self) -> bool {
        self.trigger.is_early() && self.standing != Standing::Key
    }
}

/// How an instance, parked or running, came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceEnd {
    /// By itself, with exit code 0.
    Exited,
    /// It was asked to stop.
    Asked,
    /// By itself, with another exit code, or by a signal.
    Crashed,
    /// The kernel killed it for lack of memory.
    OutOfMemory,
    /// It could not be released, or not be given its lease.
    NotStarted(FailureCause),
    /// It failed while one of its backends could not be reached, or had no connection left for it.
    NoBackend,
    /// Its exit status is unknown, because it was the child of an earlier agent.
    Unknown,
}

impl InstanceEnd {
    /// The `reason` label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Asked => "asked",
            Self::Crashed => "crashed",
            Self::OutOfMemory => "out_of_memory",
            Self::NotStarted(_) => "not_started",
            Self::NoBackend => "no_backend",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it ended without a fault.
    #[must_use]
    pub fn is_clean(self) -> bool {
        matches!(self, Self::Exited | Self::Asked)
    }

    /// Whose failure it is, if a start fails so.
    #[must_use]
    pub fn cause(self) -> FailureCause {
        match self {
            Self::NotStarted(cause) => cause,
            Self::NoBackend => FailureCause::Backend,
            Self::Exited | Self::Asked | Self::Crashed | Self::OutOfMemory | Self::Unknown => {
                FailureCause::Function
            }
        }
    }
}

/// Whose failure a failed start is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCause {
    /// The function or its configuration is wrong: starts fail until one of them is changed.
    Function,
    /// A backend's: the function works again when the backend does.
    Backend,
    /// The node's: the runtime, the disk, or a limit of the node.
    Node,
}

impl FailureCause {
    /// Its name in API and log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Backend => "backend",
            Self::Node => "node",
        }
    }
}

/// Something that happened to one function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The agent begins to serve the function.
    Configured,
    /// This agent has taken over an instance of an earlier agent, which accepts, and has given it this number.
    Adopted(InstanceId),
    /// The configuration was read again.
    Changed {
        /// The settings from now on.
        policy: Policy,
        /// Existing instances must be replaced.
        replace: bool,
    },
    /// Something asks for the function.
    Demand(Demand),
    /// A container is created and waits.
    Parked(InstanceId),
    /// A container could not be created.
    PrepareFailed {
        /// Which one.
        instance: InstanceId,
        /// Whose failure that is.
        cause: FailureCause,
    },
    /// An instance finished its initialisation and accepts, or accepts again after it was thawed.
    Ready(InstanceId),
    /// An instance reports that it has answered its first connection.
    Served(InstanceId),
    /// An instance is frozen.
    Frozen(InstanceId),
    /// An instance could not be frozen, and accepts.
    NotFrozen {
        /// Which one.
        instance: InstanceId,
        /// True: it has a connection. False: the attempt failed.
        busy: bool,
    },
    /// An instance is gone, whether it was parked or running, and whether it was asked to stop or not.
    Gone {
        /// Which one.
        instance: InstanceId,
        /// How it ended.
        end: InstanceEnd,
    },
    /// The time has come that [`crate::decision::Action::Timer`] asked for.
    Timer,
    /// The memory of an instance is in swap.
    Hibernated(InstanceId),
    /// The memory of an instance could not be written to swap: it stays frozen.
    NotHibernated(InstanceId),
    /// The node is short of memory, and this sleeping instance gives up what it can.
    Relieve(InstanceId),
    /// An operator asks for idle instances to be frozen.
    Freeze,
    /// An operator asks for the running instances to be stopped.
    Stop,
    /// The function was removed from the configuration: nothing may be started, and the agent answers its clients.
    Removed,
    /// The agent is leaving: nothing may be started. Clients that come wait for the next agent.
    Shutdown,
}
