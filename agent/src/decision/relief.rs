//! What sleeping instances give up when the node is short of memory.

use super::{Action, DecisionReason, FunctionState, Instance, InstanceState};
use crate::event::InstanceId;

/// What an instance gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relief {
    /// Its memory, which goes to swap.
    Hibernate,
    /// All of it: it is stopped.
    Stop,
}

impl FunctionState {
    /// The instances that can give this up, and since when they have been idle.
    pub fn relief(&self, kind: Relief) -> impl Iterator<Item = (u64, InstanceId)> {
        let gives = move |one: &Instance| match kind {
            Relief::Hibernate => self.hibernates(one),
            Relief::Stop => matches!(one.state, InstanceState::Frozen | InstanceState::Hibernated),
        };
        self.instances.iter().filter(move |(_, one)| gives(one)).map(|(id, one)| (one.idle_ns, *id))
    }

    /// Whether the memory of an instance is being written to swap.
    #[must_use]
    pub fn is_hibernating(&self) -> bool {
        self.instances.values().any(|one| one.state == InstanceState::Hibernating)
    }

    fn hibernates(&self, one: &Instance) -> bool {
        self.policy.hibernate_after.is_some() && one.state == InstanceState::Frozen && !one.stays_frozen
    }

    /// The node is short of memory: the instance gives up what it can.
    pub(super) fn relieve(&mut self, id: InstanceId, now_ns: u64, actions: &mut Vec<Action>) {
        match self.instances.get(&id) {
            Some(one) if self.hibernates(one) => {
                self.hibernate(id, DecisionReason::Pressure, now_ns, actions)
            }
            Some(one) if matches!(one.state, InstanceState::Frozen | InstanceState::Hibernated) => {
                self.stop(id, false, DecisionReason::Pressure, now_ns, actions);
            }
            _ => {}
        }
    }
}
