//! Instances that are initialised ahead of any demand, and sleep: `standby` of them exist at all times.
//!
//! Functions take turns at it ([`StandbyTurns`]), so that after a boot or a reload of many functions the clients' own starts
//! find processors.
//!
//! When the configuration has changed, those of the old version serve until those of the new one are initialised.

use std::collections::BTreeSet;

use super::{Action, Admission, DecisionReason, Demand, FunctionState, InstanceState, Policy, Trigger};
use crate::event::{FunctionId, InstanceId};

/// Functions that may initialise an instance at a time for which no client waits. A start keeps about one processor busy, and
/// small nodes have two.
const TURNS_MAX: usize = 2;

/// Which functions have a turn, and which wait for one.
#[derive(Debug, Default)]
pub(super) struct StandbyTurns {
    taken: BTreeSet<FunctionId>,
    waiting: BTreeSet<FunctionId>,
    /// The node is short of memory, and no function gets a turn.
    is_paused: bool,
}

impl StandbyTurns {
    /// Takes a turn, or waits for one. Returns whether the function has it.
    fn take(&mut self, function: FunctionId) -> bool {
        if self.taken.contains(&function) {
            return true;
        }
        if self.is_paused || self.taken.len() >= TURNS_MAX {
            self.waiting.insert(function);
            return false;
        }
        self.waiting.remove(&function);
        self.taken.insert(function)
    }

    /// Gives the turn back, and returns the function that has it now.
    fn leave(&mut self, function: FunctionId) -> Option<FunctionId> {
        self.waiting.remove(&function);
        if !self.taken.remove(&function) {
            return None;
        }
        self.next()
    }

    fn next(&mut self) -> Option<FunctionId> {
        if self.is_paused || self.taken.len() >= TURNS_MAX {
            return None;
        }
        let next = self.waiting.pop_first()?;
        self.taken.insert(next);
        Some(next)
    }

    /// The node is short of memory, or is no longer. Returns the functions that get a turn.
    fn pause(&mut self, is_paused: bool) -> Vec<FunctionId> {
        self.is_paused = is_paused;
        std::iter::from_fn(|| self.next()).collect()
    }
}

impl Admission {
    /// Says whether the node is short of memory: nothing is started ahead then. The functions that are returned have their
    /// turn now: each wants [`crate::event::Event::Timer`].
    pub fn pause_standby(&mut self, is_short: bool) -> Vec<FunctionId> {
        self.standby.pause(is_short)
    }
}

impl Policy {
    /// Instances that are kept initialised: `standby`, at most `max_instances`.
    pub(super) fn kept(&self) -> u32 {
        self.standby.min(self.max_instances)
    }
}

impl FunctionState {
    /// Starts one more instance ahead, when nothing more urgent is under way.
    pub(super) fn keep_standby(&mut self, now_ns: u64, node: &mut Admission, actions: &mut Vec<Action>) {
        let is_under_way = self.instances.values().any(|one| {
            one.is_standby
                && matches!(one.state, InstanceState::Preparing { .. } | InstanceState::Starting { .. })
        });
        if is_under_way && !self.closed {
            return;
        }
        if !self.needs_standby(now_ns) {
            actions.extend(node.standby.leave(self.number).map(Action::Turn));
        } else if node.standby.take(self.number) {
            if let Some(id) = self.parked.pop_front() {
                self.release(id, Demand::local(Trigger::Provision, now_ns), now_ns, actions);
                self.mark_standby(id);
            } else if self.preparing() == 0 {
                let id = self.prepare(DecisionReason::Provision, now_ns, actions);
                self.mark_standby(id);
            }
        }
    }

    fn mark_standby(&mut self, id: InstanceId) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.is_standby = true;
        }
    }

    fn needs_standby(&self, now_ns: u64) -> bool {
        let clients_wait = self.waiting.demand() > 0 || self.requested.is_some();
        let starts = self.count(|state| matches!(state, InstanceState::Starting { .. })) > 0;
        let has_place = self.count(InstanceState::is_alive) < self.policy.max_instances;
        let there = self.instances.values().filter(|one| !one.is_outdated && is_kept(one.state)).count();
        !self.closed
            && there < self.policy.kept() as usize
            && has_place
            && !clients_wait
            && !starts
            && self.failures.pause(now_ns).is_none()
            && self.failures.may_prepare(now_ns)
    }

    /// The configuration has changed. Returns whether the instances stay until others have taken their place.
    pub(super) fn outdate(&mut self) -> bool {
        let stay = self.policy.kept() > 0 && self.count(InstanceState::is_alive) < self.policy.max_instances;
        if stay {
            for instance in self.instances.values_mut().filter(|one| is_kept(one.state)) {
                instance.is_outdated = true;
            }
        }
        stay
    }

    /// Stops instances of an earlier configuration as those of this one take their place.
    pub(super) fn retire_outdated(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let there = |is_outdated| {
            let of = self.instances.iter().filter(move |(_, one)| one.is_outdated == is_outdated);
            of.filter(|(_, one)| is_kept(one.state))
        };
        let outdated: Vec<_> = there(true).map(|(id, _)| *id).collect();
        let initialised =
            there(false).filter(|(_, one)| !matches!(one.state, InstanceState::Starting { .. })).count();
        let (kept, is_full) = (self.policy.kept() as usize, self.count(is_kept) >= self.policy.max_instances);
        if initialised == 0 && kept > 0 && (!is_full || there(false).count() > 0) {
            return;
        }
        // Without a place for the next new one, one more makes room.
        let stay = kept.saturating_sub(initialised + usize::from(is_full));
        for id in outdated.into_iter().skip(stay) {
            self.stop(id, false, DecisionReason::Replaced, now_ns, actions);
        }
    }

    /// Instances that may be stopped because they are idle.
    pub(super) fn beyond_standby(&self) -> u32 {
        self.count(is_kept).saturating_sub(self.policy.kept())
    }
}

/// It is released, and does not stop.
fn is_kept(state: InstanceState) -> bool {
    state.is_alive() && !matches!(state, InstanceState::Stopping { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_functions_have_a_turn_and_the_others_get_one_in_order() {
        let mut turns = StandbyTurns::default();
        assert!(turns.take(7) && turns.take(3) && turns.take(7));
        assert!(!turns.take(5) && !turns.take(4));
        assert_eq!(turns.leave(9), None, "it had none");
        assert_eq!(turns.leave(5), None, "it only waited");
        assert_eq!(turns.leave(7), Some(4));
        assert!(turns.take(4) && !turns.take(7));
        assert_eq!(turns.leave(3), Some(7));
        assert_eq!(turns.leave(4), None, "none waits");
        assert!(turns.pause(true).is_empty());
        assert!(!turns.take(8) && !turns.take(2) && !turns.take(6));
        assert_eq!(turns.leave(7), None, "none gets a turn while memory is short");
        assert_eq!(turns.pause(false), [2, 6]);
        assert_eq!((turns.leave(2), turns.leave(6), turns.leave(8)), (Some(8), None, None));
        assert!(turns.take(1));
    }
}
