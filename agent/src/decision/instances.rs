//! Events of instances, and the changes of their states.

use super::budget::Budget;
use super::failure::Failures;
use super::{
    Action, Admission, DecisionReason, FunctionLoad, FunctionState, HEALTHY_AFTER, Instance, InstanceState,
    Policy, nanos,
};
use crate::event::{Demand, FailureCause, InstanceEnd, InstanceId, Trigger};

impl FunctionState {
    pub(super) fn adopted(&mut self, id: InstanceId, now_ns: u64, actions: &mut Vec<Action>) {
        self.next_instance = self.next_instance.max(id + 1);
        let instance = Instance::new(InstanceState::Ready, DecisionReason::Adopted, now_ns);
        self.instances.insert(id, Instance { released_ns: now_ns, ready_ns: now_ns, ..instance });
        actions.push(Action::Moved(id, Some(InstanceState::Ready), DecisionReason::Adopted));
    }

    pub(super) fn changed(&mut self, policy: Policy, replace: bool, now_ns: u64, actions: &mut Vec<Action>) {
        if policy.starts != self.policy.starts || policy.unused_after != self.policy.unused_after {
            self.starts = Budget::new(policy.starts, policy.unused_after);
        }
        self.policy = policy;
        // The change may have repaired what failed.
        self.failures = Failures::default();
        if !replace {
            return;
        }
        for instance in self.instances.values_mut() {
            if let InstanceState::Preparing { stale } = &mut instance.state {
                *stale = true;
            }
        }
        self.discard_all(DecisionReason::Replaced, actions);
        if !self.outdate() {
            self.stop_all(DecisionReason::Replaced, now_ns, actions);
        }
    }

    pub(super) fn on_parked(&mut self, id: InstanceId, now_ns: u64, actions: &mut Vec<Action>) {
        let Some(Instance { state: InstanceState::Preparing { stale }, .. }) = self.instances.get(&id) else {
            return;
        };
        if *stale || self.closed {
            let reason = if self.closed { DecisionReason::Closed } else { DecisionReason::Replaced };
            self.instances.remove(&id);
            actions.extend([Action::Discard(id), Action::Moved(id, None, reason)]);
            return;
        }
        self.failures.prepared();
        self.parked.push_back(id);
        self.set(id, InstanceState::Parked, DecisionReason::Refill, now_ns, actions);
    }

    pub(super) fn prepare_failed(
        &mut self,
        id: InstanceId,
        cause: FailureCause,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        let stale = match self.instances.get(&id) {
            Some(Instance { state: InstanceState::Preparing { stale }, .. }) => *stale,
            _ => return,
        };
        self.instances.remove(&id);
        actions.push(Action::Moved(id, None, DecisionReason::PrepareFailed));
        if stale {
            return;
        }
        self.failures.prepare_failed(cause, now_ns, &self.policy);
        // Clients wait for it: for them it is a start that failed.
        if self.parked.is_empty() && (self.waiting.demand() > 0 || self.requested.is_some()) {
            self.start_failed(cause, now_ns);
        }
    }

    pub(super) fn ready(&mut self, id: InstanceId, now_ns: u64, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if let InstanceState::Starting { .. } | InstanceState::Thawing { .. } = instance.state {
            if instance.ready_ns == 0 {
                instance.ready_ns = now_ns;
                self.failures.started();
            }
            self.set(id, InstanceState::Ready, DecisionReason::Initialised, now_ns, actions);
        }
    }

    /// An instance that does not count its connections reports that it has answered one. A false report only keeps the
    /// budgets at their maximum.
    pub(super) fn served(&mut self, id: InstanceId, load: &FunctionLoad, now_ns: u64, node: &mut Admission) {
        if self.instances.contains_key(&id)
            && !load.of(id).is_exact()
            && let Some(expected) = self.waiting.take_first()
        {
            self.expected_came(&expected, now_ns, node);
        }
    }

    pub(super) fn frozen(
        &mut self,
        id: InstanceId,
        load: &FunctionLoad,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        if self.state(id) != Some(InstanceState::Freezing) {
            return;
        }
        self.set(id, InstanceState::Frozen, DecisionReason::Idle, now_ns, actions);
        // A client connected before the freezer had stopped it.
        if load.of(id).open.is_some_and(|open| open > 0) {
            self.thaw(id, Demand::local(Trigger::Accept, now_ns), DecisionReason::Busy, now_ns, actions);
        }
    }

    /// Its memory is in swap, or could not be written there.
    pub(super) fn hibernated(
        &mut self,
        id: InstanceId,
        succeeded: bool,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        if self.state(id) != Some(InstanceState::Hibernating) {
            return;
        }
        let (state, reason) = if succeeded {
            (InstanceState::Hibernated, self.reason(id))
        } else {
            (InstanceState::Frozen, DecisionReason::HibernateFailed)
        };
        self.set(id, state, reason, now_ns, actions);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.stays_frozen = !succeeded;
        }
    }

    pub(super) fn not_frozen(&mut self, id: InstanceId, busy: bool, now_ns: u64, actions: &mut Vec<Action>) {
        if self.state(id) == Some(InstanceState::Freezing) {
            // Its idle time starts again, and with it the time until the next attempt.
            let reason = if busy { DecisionReason::Busy } else { DecisionReason::FreezeFailed };
            self.set(id, InstanceState::Ready, reason, now_ns, actions);
        }
    }

    pub(super) fn gone(&mut self, id: InstanceId, end: InstanceEnd, now_ns: u64, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.remove(&id) else { return };
        actions.push(Action::Moved(id, None, DecisionReason::Ended(end)));
        let short = now_ns.saturating_sub(instance.ready_ns) < nanos(HEALTHY_AFTER);
        match instance.state {
            InstanceState::Preparing { .. } | InstanceState::Parked => {
                // It died while parked: replace it, but never in a tight loop.
                self.parked.retain(|parked| *parked != id);
                self.failures.prepare_failed(FailureCause::Node, now_ns, &self.policy);
            }
            InstanceState::Starting { .. } | InstanceState::Stopping { failed: true } => {
                self.start_failed(end.cause(), now_ns);
            }
            InstanceState::Stopping { failed: false } => {}
            _ if !end.is_clean() && short => self.start_failed(end.cause(), now_ns),
            _ => {}
        }
    }

    pub(super) fn start_failed(&mut self, cause: FailureCause, now_ns: u64) {
        self.failures.start_failed(cause, now_ns, &self.policy);
        if self.count(InstanceState::is_alive) == 0 {
            self.waiting.forget_expected();
            self.requested = None;
        }
    }

    pub(super) fn freeze_all(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        for id in self.in_state(|state| state == InstanceState::Ready) {
            self.freeze(id, now_ns, DecisionReason::Requested, now_ns, actions);
        }
    }

    pub(super) fn stop_all(&mut self, reason: DecisionReason, now_ns: u64, actions: &mut Vec<Action>) {
        if reason == DecisionReason::Requested {
            self.requested = None;
        }
        for id in self.in_state(|state| state.is_alive() && !matches!(state, InstanceState::Stopping { .. }))
        {
            self.stop(id, false, reason, now_ns, actions);
        }
    }

    pub(super) fn shutdown(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.closed = true;
        self.requested = None;
        self.waiting.forget_expected();
        self.stop_all(DecisionReason::Closed, now_ns, actions);
        self.discard_all(DecisionReason::Closed, actions);
    }

    pub(super) fn discard_all(&mut self, reason: DecisionReason, actions: &mut Vec<Action>) {
        for id in std::mem::take(&mut self.parked) {
            self.instances.remove(&id);
            actions.extend([Action::Discard(id), Action::Moved(id, None, reason)]);
        }
    }

    pub(super) fn state(&self, id: InstanceId) -> Option<InstanceState> {
        self.instances.get(&id).map(|instance| instance.state)
    }

    fn reason(&self, id: InstanceId) -> DecisionReason {
        self.instances.get(&id).map_or(DecisionReason::Idle, |instance| instance.reason)
    }

    pub(super) fn in_state(&self, wanted: impl Fn(InstanceState) -> bool) -> Vec<InstanceId> {
        self.instances.iter().filter(|(_, instance)| wanted(instance.state)).map(|(id, _)| *id).collect()
    }

    pub(super) fn set(
        &mut self,
        id: InstanceId,
        state: InstanceState,
        reason: DecisionReason,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        if let Some(instance) = self.instances.get_mut(&id) {
            (instance.state, instance.reason, instance.since_ns) = (state, reason, now_ns);
            actions.push(Action::Moved(id, Some(state), reason));
        }
    }

    pub(super) fn stop(
        &mut self,
        id: InstanceId,
        failed: bool,
        reason: DecisionReason,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        self.set(id, InstanceState::Stopping { failed }, reason, now_ns, actions);
        actions.push(Action::Stop(id));
    }

    /// `idle_ns`: since when it counts as idle.
    pub(super) fn freeze(
        &mut self,
        id: InstanceId,
        idle_ns: u64,
        reason: DecisionReason,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        self.set(id, InstanceState::Freezing, reason, now_ns, actions);
        if let Some(instance) = self.instances.get_mut(&id) {
            (instance.idle_ns, instance.stays_frozen) = (idle_ns, false);
        }
        actions.push(Action::Freeze(id));
    }

    pub(super) fn hibernate(
        &mut self,
        id: InstanceId,
        reason: DecisionReason,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        self.set(id, InstanceState::Hibernating, reason, now_ns, actions);
        actions.push(Action::Hibernate(id));
    }

    pub(super) fn thaw(
        &mut self,
        id: InstanceId,
        demand: Demand,
        reason: DecisionReason,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        let deadline_ns = now_ns.saturating_add(nanos(self.policy.init_timeout));
        self.set(id, InstanceState::Thawing { deadline_ns }, reason, now_ns, actions);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.is_standby = false;
        }
        actions.push(Action::Thaw(id, demand));
    }
}
