//! What the agent can read of a function's connections without asking its instances: the kernel's accept queue, and
//! the pages on which instances count.

use crate::event::InstanceId;

/// The connections of one function, read just before an event is decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FunctionLoad {
    /// Complete connections that are not accepted yet.
    pub queued: u32,
    /// Connections accepted so far: by instances that count, and by the agent itself.
    pub accepted: u64,
    /// The instances that were released and are not known to be gone.
    pub instances: Vec<(InstanceId, InstanceLoad)>,
}

impl FunctionLoad {
    /// The load of one instance.
    pub(super) fn of(&self, instance: InstanceId) -> InstanceLoad {
        let found = self.instances.iter().find(|(known, _)| *known == instance);
        found.map(|(_, seen)| *seen).unwrap_or_default()
    }
}

/// What one instance counts on its page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InstanceLoad {
    /// Connections that are open now; `None` when it does not count them.
    pub open: Option<u32>,
    /// Connections that it has accepted so far.
    pub accepted: u64,
    /// When one was last opened or closed, in nanoseconds of `CLOCK_MONOTONIC`; 0 for never.
    pub changed_ns: u64,
    /// The agent counts those that it sees, and does not see all.
    pub sampled: bool,
}

impl InstanceLoad {
    /// Whether no connection can come without being counted.
    pub(super) fn is_exact(&self) -> bool {
        self.open.is_some() && !self.sampled
    }
}
