//! Compares the facts with what should be, after every event, and orders what is missing.

use std::time::Duration;

use super::{
    Action, Admission, DecisionReason, Demand, FunctionLoad, FunctionState, HEALTHY_AFTER, Instance,
    InstanceLoad, InstanceState, Policy, QueueWatchRate, Trigger, nanos,
};
use crate::event::InstanceId;

/// The pause between two checks of a queue whose connection an instance has room for. The instance may have accepted the
/// connection and not counted it yet; the next check then sees the count.
const CHECK_PAUSE_NS: u64 = 10_000_000;

/// The shortest wait in the queue that shows that an instance hangs.
const HUNG_MIN: Duration = Duration::from_secs(1);

/// The fewest checks during that wait: if the whole machine stood still, the instance had no time either.
const HUNG_CHECKS: u32 = 50;

impl FunctionState {
    pub(super) fn settle(
        &mut self,
        load: &FunctionLoad,
        now_ns: u64,
        node: &mut Admission,
        actions: &mut Vec<Action>,
    ) {
        if !self.closed {
            self.retire_outdated(now_ns, actions);
            self.stop_late(now_ns, actions);
            self.recover(now_ns);
            self.stop_hung(load, now_ns, actions);
            self.scale(load, now_ns, actions);
            self.answer(now_ns, actions);
            self.rest_idle(load, now_ns, actions);
        } else if self.removed {
            self.answer(now_ns, actions);
        }
        self.keep_standby(now_ns, node, actions);
        if !self.closed {
            self.refill(now_ns, actions);
        }
        self.set_sensors(actions);
        self.set_timer(load, now_ns, actions);
    }

    /// Stops instances that take too long to become ready.
    fn stop_late(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        for id in self.in_state(|state| deadline_ns(state).is_some_and(|at_ns| at_ns <= now_ns)) {
            self.stop(id, true, DecisionReason::InitTimeout, now_ns, actions);
        }
    }

    /// Forgets failures that an instance has outlived: it has been ready for long enough.
    fn recover(&mut self, now_ns: u64) {
        let healthy = self.instances.values().filter(|one| {
            one.state == InstanceState::Ready
                && one.ready_ns > 0
                && now_ns.saturating_sub(one.ready_ns) >= nanos(HEALTHY_AFTER)
        });
        if let Some(released_ns) = healthy.map(|instance| instance.released_ns).max() {
            self.failures.healthy(released_ns);
        }
    }

    /// Stops instances that had room and accepted no connection for a whole `queue_timeout`, while the same connection
    /// waited. A wait of less than [`HUNG_MIN`] says nothing, because any function may pause that long. The time counts
    /// from when the instance had room. An instance that does not count its connections always has room if
    /// `concurrency` is not limited, and is left out otherwise.
    fn stop_hung(&mut self, load: &FunctionLoad, now_ns: u64, actions: &mut Vec<Action>) {
        let head_ns = self.waiting.head_ns();
        let patience_ns = nanos(self.policy.queue_timeout.max(HUNG_MIN));
        let over = |since_ns: u64| now_ns.saturating_sub(since_ns) >= patience_ns;
        let is_check = now_ns.saturating_sub(self.hung_check_ns) >= CHECK_PAUSE_NS;
        if is_check {
            self.hung_check_ns = now_ns;
        }
        let mut hung = Vec::new();
        for (id, instance) in &mut self.instances {
            let seen = load.of(*id);
            let known = seen.open.is_some() || self.policy.concurrency.is_none();
            let has_room = instance.state == InstanceState::Ready && known && self.policy.has_room(&seen);
            if head_ns.is_none() || !has_room || instance.seen != seen {
                (instance.seen, instance.unmoved_ns, instance.checks) = (seen, now_ns, 0);
                continue;
            }
            instance.checks = instance.checks.saturating_add(u32::from(is_check));
            if head_ns.is_some_and(over) && over(instance.unmoved_ns) && instance.checks >= HUNG_CHECKS {
                hung.push(*id);
            }
        }
        for id in hung {
            self.stop(id, true, DecisionReason::Hung, now_ns, actions);
        }
    }

    /// Thaws, releases and orders as many instances as the demand needs.
    fn scale(&mut self, load: &FunctionLoad, now_ns: u64, actions: &mut Vec<Action>) {
        let requested = u64::from(self.requested.is_some());
        let wanted = self.policy.instances_for(self.units(load).max(requested));
        let coming = self.count(|state| state.has_room() || state == InstanceState::Freezing);
        let mut missing = wanted.saturating_sub(coming);
        if missing == 0 {
            if self.count(InstanceState::has_room) > 0 {
                self.requested = None;
            }
            return;
        }
        let mut asleep = self.in_state(InstanceState::is_asleep);
        // First those with their memory. Last in, first out: the one that was busy last has the warmest caches.
        asleep.sort_by_key(|id| {
            let one = self.instances.get(id);
            let deep = one.is_some_and(|one| one.state != InstanceState::Frozen);
            (deep, std::cmp::Reverse(one.map(|one| one.since_ns)))
        });
        for id in asleep.into_iter().take(missing as usize) {
            let demand = self.demand_for(now_ns);
            let reason = if demand.trigger == Trigger::Provision {
                DecisionReason::Provision
            } else {
                DecisionReason::Demand
            };
            self.thaw(id, demand, reason, now_ns, actions);
            missing -= 1;
        }
        if self.failures.pause(now_ns).is_some() {
            return;
        }
        let room = self.policy.max_instances.saturating_sub(self.count(InstanceState::is_alive));
        missing = missing.min(room);
        while missing > 0
            && let Some(id) = self.parked.pop_front()
        {
            let demand = self.demand_for(now_ns);
            self.release(id, demand, now_ns, actions);
            missing -= 1;
        }
        // A container that failed does not delay the demand itself: that has a back-off of its own.
        let ordered = self.count(|state| state == InstanceState::Preparing { stale: false });
        for _ in ordered..missing {
            self.prepare(DecisionReason::Demand, now_ns, actions);
        }
    }

    /// The demand that the next instance is for.
    fn demand_for(&mut self, now_ns: u64) -> Demand {
        if let Some(demand) = self.waiting.pop_late().or_else(|| self.waiting.start_for_next()) {
            return demand;
        }
        if let Some(came_ns) = self.waiting.head_ns() {
            return Demand { seen_ns: now_ns, ..Demand::local(Trigger::Accept, came_ns) };
        }
        self.requested.take().unwrap_or_else(|| Demand::local(Trigger::Provision, now_ns))
    }

    pub(super) fn release(&mut self, id: InstanceId, demand: Demand, now_ns: u64, actions: &mut Vec<Action>) {
        let reason = if demand.trigger == Trigger::Provision {
            DecisionReason::Provision
        } else {
            DecisionReason::Demand
        };
        let deadline_ns = now_ns.saturating_add(nanos(self.policy.init_timeout));
        self.set(id, InstanceState::Starting { deadline_ns }, reason, now_ns, actions);
        if let Some(instance) = self.instances.get_mut(&id) {
            (instance.released_ns, instance.is_standby) = (now_ns, false);
        }
        actions.push(Action::Release(id, demand));
    }

    pub(super) fn prepare(
        &mut self,
        reason: DecisionReason,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) -> InstanceId {
        let id = self.next_instance;
        self.next_instance += 1;
        let state = InstanceState::Preparing { stale: false };
        self.instances.insert(id, Instance::new(state, reason, now_ns));
        actions.extend([Action::Moved(id, Some(state), reason), Action::Prepare(id)]);
        id
    }

    /// Answers the connections that no instance will serve in time.
    fn answer(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let no_instance = self
            .count(|state| state.has_room() || state.is_asleep() || state == InstanceState::Freezing)
            == 0;
        let (count, reason) = if self.removed {
            (self.waiting.queued(), DecisionReason::Closed)
        } else if self.policy.max_instances == 0 {
            (self.waiting.queued(), DecisionReason::Off)
        } else if no_instance && self.failures.pause(now_ns) == Some(DecisionReason::Cooldown) {
            (self.waiting.queued(), DecisionReason::Cooldown)
        } else {
            let came_ns = now_ns.checked_sub(nanos(self.policy.queue_timeout));
            (came_ns.map_or(0, |came_ns| self.waiting.queued_until(came_ns)), DecisionReason::QueueTimeout)
        };
        if count > 0 {
            self.waiting.remove_answered(count);
            actions.push(Action::Answer(count, reason));
        }
    }

    /// Freezes, hibernates and stops instances that have had no connection for long enough.
    fn rest_idle(&mut self, load: &FunctionLoad, now_ns: u64, actions: &mut Vec<Action>) {
        let idle = self.idle(load);
        if idle.is_empty() {
            return;
        }
        let (mut spare, mut beyond_standby) = (self.spare(load), self.beyond_standby());
        let over = |after: Option<Duration>, since_ns: u64| {
            after.is_some_and(|after| now_ns.saturating_sub(since_ns) >= nanos(after))
        };
        let Policy { freeze_after, hibernate_after, stop_after, .. } = self.policy;
        for (id, idle_ns) in idle {
            let asleep = self.state(id).is_some_and(InstanceState::is_asleep);
            if !asleep && spare == 0 {
                continue;
            }
            // No client has ever asked for it.
            let unused = self.is_unused_standby(id, load);
            if over(stop_after, idle_ns) && beyond_standby > 0 {
                beyond_standby -= 1;
                self.stop(id, false, DecisionReason::Idle, now_ns, actions);
            } else if !asleep && freeze_after.is_some() && (unused || over(freeze_after, idle_ns)) {
                self.freeze(id, idle_ns, DecisionReason::Idle, now_ns, actions);
            } else {
                if self.may_hibernate(id)
                    && hibernate_after.is_some()
                    && (unused || over(hibernate_after, idle_ns))
                {
                    self.hibernate(id, DecisionReason::Idle, now_ns, actions);
                }
                continue;
            }
            spare = spare.saturating_sub(u32::from(!asleep));
        }
    }

    /// Whether it was initialised ahead and was never wanted: it sleeps as soon as it can. After an attempt that failed it
    /// waits as any other does.
    fn is_unused_standby(&self, id: InstanceId, load: &FunctionLoad) -> bool {
        self.instances.get(&id).is_some_and(|one| {
            let tried = matches!(one.reason, DecisionReason::Busy | DecisionReason::FreezeFailed);
            one.is_standby && load.of(id).accepted == 0 && !tried
        })
    }

    /// Whether it is frozen, and nothing speaks against writing its memory to swap.
    fn may_hibernate(&self, id: InstanceId) -> bool {
        self.instances.get(&id).is_some_and(|one| one.state == InstanceState::Frozen && !one.stays_frozen)
    }

    /// Instances that neither the demand nor `min_ready` needs.
    fn spare(&self, load: &FunctionLoad) -> u32 {
        self.count(InstanceState::has_room).saturating_sub(self.policy.instances_for(self.units(load)))
    }

    /// Instances without a connection, and since when they have had none.
    fn idle(&self, load: &FunctionLoad) -> Vec<(InstanceId, u64)> {
        let idle_ns = |id: InstanceId, instance: &Instance| match instance.state {
            state if state.is_asleep() => Some(instance.idle_ns),
            InstanceState::Ready => {
                let seen = load.of(id);
                (seen.open == Some(0)).then(|| seen.changed_ns.max(instance.since_ns))
            }
            _ => None,
        };
        self.instances.iter().filter_map(|(id, instance)| Some((*id, idle_ns(*id, instance)?))).collect()
    }

    /// Keeps as many containers parked as configured. While an instance starts, it should have the machine's cores to
    /// itself, so the next container is created after that.
    fn refill(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let prepared = if self.policy.max_instances == 0 { 0 } else { self.policy.prepared };
        while self.parked.len() > prepared as usize {
            let Some(id) = self.parked.pop_back() else { break };
            self.instances.remove(&id);
            actions.extend([Action::Discard(id), Action::Moved(id, None, DecisionReason::Surplus)]);
        }
        let starting = self.count(|state| matches!(state, InstanceState::Starting { .. })) > 0;
        if starting || self.failures.pause(now_ns).is_some() || !self.failures.may_prepare(now_ns) {
            return;
        }
        let there = self.count(|state| {
            matches!(state, InstanceState::Parked | InstanceState::Preparing { stale: false })
        });
        for _ in there..prepared {
            self.prepare(DecisionReason::Refill, now_ns, actions);
        }
    }

    /// Tells the sensors which SYNs and which connections are news.
    fn set_sensors(&mut self, actions: &mut Vec<Action>) {
        let ready = self.count(|state| state == InstanceState::Ready);
        let enough = match self.policy.concurrency {
            None => ready > 0,
            Some(_) => ready > 0 && ready >= self.policy.max_instances,
        };
        if self.warm != enough && !self.closed {
            self.warm = enough;
            actions.push(Action::Warm(enough));
        }
        let rate = match self.policy.concurrency {
            _ if self.closed && !self.removed => QueueWatchRate::Off,
            None if ready > 0 => QueueWatchRate::Slow,
            _ => QueueWatchRate::Immediate,
        };
        if self.queue_watch != rate {
            self.queue_watch = rate;
            actions.push(Action::WatchQueue(rate));
        }
    }

    /// Asks for a timer event when something may have to be done next.
    fn set_timer(&mut self, load: &FunctionLoad, now_ns: u64, actions: &mut Vec<Action>) {
        if self.closed {
            return;
        }
        let Policy { queue_timeout, .. } = self.policy;
        let deadlines = self.instances.values().filter_map(|instance| deadline_ns(instance.state));
        let queue = self.waiting.head_ns().map(|came_ns| came_ns.saturating_add(nanos(queue_timeout)));
        let has_room = |(id, one): (&InstanceId, &Instance)| {
            one.state == InstanceState::Ready && self.policy.has_room(&load.of(*id))
        };
        let again = (self.waiting.queued() > 0 && self.instances.iter().any(has_room))
            .then(|| now_ns.saturating_add(CHECK_PAUSE_NS));
        let next = deadlines
            .chain(self.waiting.next_deadline_ns())
            .chain(self.failures.next_ns(now_ns))
            .chain(self.recovery_ns())
            .chain(queue)
            .chain(again)
            .chain(self.rest_ns(load, now_ns))
            .filter(|at_ns| *at_ns > now_ns)
            .min();
        if let Some(at_ns) = next
            && self.timer_ns.is_none_or(|known_ns| at_ns < known_ns || known_ns <= now_ns)
        {
            self.timer_ns = Some(at_ns);
            actions.push(Action::Timer(at_ns));
        }
    }

    /// When the next instance will have outlived the failures before it.
    fn recovery_ns(&self) -> Option<u64> {
        self.failures.cause()?;
        let ready =
            self.instances.values().filter(|one| one.state == InstanceState::Ready && one.ready_ns > 0);
        ready.map(|one| one.ready_ns.saturating_add(nanos(HEALTHY_AFTER))).max()
    }

    /// When the next instance may have been idle for long enough. No event says that a busy instance has become idle, so
    /// busy instances are checked after the shortest idle time, and not more often than every [`CHECK_PAUSE_NS`]. An
    /// instance that has been idle for long enough and is still needed waits for an event, or for the check of a busy
    /// one.
    fn rest_ns(&self, load: &FunctionLoad, now_ns: u64) -> Option<u64> {
        let after_ns = self.policy.idle_after().map(nanos);
        let Policy { freeze_after, hibernate_after, stop_after, .. } = self.policy;
        let idle = self.idle(load);
        let times = idle.iter().flat_map(|(id, idle_ns)| {
            let asleep = self.state(*id).is_some_and(InstanceState::is_asleep);
            let deeper =
                if asleep { hibernate_after.filter(|_| self.may_hibernate(*id)) } else { freeze_after };
            // Not only the first: `standby` keeps instances beyond `stop_after`.
            [deeper, stop_after].into_iter().flatten().map(|after| idle_ns.saturating_add(nanos(after)))
        });
        let counts = |(id, one): (&InstanceId, &Instance)| {
            one.state == InstanceState::Ready && load.of(*id).open.is_some_and(|open| open > 0)
        };
        let is_busy = self.instances.iter().any(counts);
        let busy = after_ns.filter(|_| is_busy).map(|ns| now_ns.saturating_add(ns.max(CHECK_PAUSE_NS)));
        times.filter(|at_ns| *at_ns > now_ns).chain(busy).min()
    }
}

impl Instance {
    pub(super) fn new(state: InstanceState, reason: DecisionReason, now_ns: u64) -> Self {
        let (seen, unmoved_ns, checks) = (InstanceLoad::default(), now_ns, 0);
        let (since_ns, released_ns, ready_ns, idle_ns) = (now_ns, 0, 0, 0);
        Self {
            state,
            reason,
            since_ns,
            released_ns,
            ready_ns,
            idle_ns,
            stays_frozen: false,
            is_standby: false,
            is_outdated: false,
            seen,
            unmoved_ns,
            checks,
        }
    }
}

fn deadline_ns(state: InstanceState) -> Option<u64> {
    match state {
        InstanceState::Starting { deadline_ns } | InstanceState::Thawing { deadline_ns } => Some(deadline_ns),
        _ => None,
    }
}
