//! From what is to what should be: runs after every event, and orders what is missing.

use std::time::Duration;

use super::{
    Action, Demand, FunctionState, Instance, InstanceLoad, InstanceState, LIFE_MIN, Load, Policy,
    QueueWatchRate, Reason, Trigger, nanos,
};
use crate::event::InstanceId;

/// How long after a connection was seen in the queue of an instance with room it is looked at again. It may have been
/// accepted before its place was counted; then the next look finds the place taken.
const LOOK_AGAIN_NS: u64 = 10_000_000;

/// The shortest wait in the queue that shows that an instance hangs.
const HUNG_MIN: Duration = Duration::from_secs(1);

/// So many looks during that wait: where the whole machine stood still, an instance had no time either.
const HUNG_LOOKS: u32 = 50;

impl FunctionState {
    pub(super) fn settle(&mut self, load: &Load, now_ns: u64, actions: &mut Vec<Action>) {
        if !self.closed {
            self.deadlines(now_ns, actions);
            self.recover(now_ns);
            self.hung(load, now_ns, actions);
            self.scale(load, now_ns, actions);
            self.answer(now_ns, actions);
            self.rest(load, now_ns, actions);
            self.refill(now_ns, actions);
        } else if self.removed {
            self.answer(now_ns, actions);
        }
        self.sensors(actions);
        self.timer(load, now_ns, actions);
    }

    /// Instances that take too long.
    fn deadlines(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        for id in self.in_state(|state| deadline_ns(state).is_some_and(|at_ns| at_ns <= now_ns)) {
            self.stop(id, true, Reason::InitTimeout, now_ns, actions);
        }
    }

    /// A start that went well, for long enough.
    fn recover(&mut self, now_ns: u64) {
        let healthy = self.instances.values().filter(|one| {
            one.state == InstanceState::Ready
                && one.ready_ns > 0
                && now_ns.saturating_sub(one.ready_ns) >= nanos(LIFE_MIN)
        });
        if let Some(released_ns) = healthy.map(|instance| instance.released_ns).max() {
            self.failures.healthy(released_ns);
        }
    }

    /// Instances that had room and took nobody for a whole `queue_timeout`, while the same connection waited. A wait of
    /// less than [`HUNG_MIN`] says nothing, any function may pause so long; nor does a place that has only become free a
    /// moment ago. One that does not count has room when it is to serve everybody.
    fn hung(&mut self, load: &Load, now_ns: u64, actions: &mut Vec<Action>) {
        let head_ns = self.waiting.head_ns();
        let patience_ns = nanos(self.policy.queue_timeout.max(HUNG_MIN));
        let over = |since_ns: u64| now_ns.saturating_sub(since_ns) >= patience_ns;
        let counts = now_ns.saturating_sub(self.looked_ns) >= LOOK_AGAIN_NS;
        if counts {
            self.looked_ns = now_ns;
        }
        let mut hung = Vec::new();
        for (id, instance) in &mut self.instances {
            let seen = load.of(*id);
            let known = seen.open.is_some() || self.policy.concurrency.is_none();
            let has_room = instance.state == InstanceState::Ready && known && self.policy.has_room(&seen);
            if head_ns.is_none() || !has_room || instance.seen != seen {
                (instance.seen, instance.unmoved_ns, instance.looks) = (seen, now_ns, 0);
                continue;
            }
            instance.looks = instance.looks.saturating_add(u32::from(counts));
            if head_ns.is_some_and(over) && over(instance.unmoved_ns) && instance.looks >= HUNG_LOOKS {
                hung.push(*id);
            }
        }
        for id in hung {
            self.stop(id, true, Reason::Hung, now_ns, actions);
        }
    }

    /// Thaws, lets go and orders as many instances as the demand needs.
    fn scale(&mut self, load: &Load, now_ns: u64, actions: &mut Vec<Action>) {
        let woken = u64::from(self.woken.is_some());
        let wanted = self.policy.instances_for(self.units(load).max(woken));
        let coming = self.count(|state| state.has_room() || state == InstanceState::Freezing);
        let mut missing = wanted.saturating_sub(coming);
        if missing == 0 {
            if self.count(InstanceState::has_room) > 0 {
                self.woken = None;
            }
            return;
        }
        let mut frozen = self.in_state(|state| state == InstanceState::Frozen);
        // Last in, first out: the one that was busy last has the warmest caches.
        frozen.sort_by_key(|id| std::cmp::Reverse(self.instances.get(id).map(|one| one.since_ns)));
        for id in frozen.into_iter().take(missing as usize) {
            let demand = self.demand_for(now_ns);
            let reason =
                if demand.trigger == Trigger::Provision { Reason::Provision } else { Reason::Demand };
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
        // The demand itself is not delayed by a container that failed: it has a back-off of its own.
        let ordered = self.count(|state| state == InstanceState::Preparing { stale: false });
        for _ in ordered..missing {
            self.prepare(Reason::Demand, now_ns, actions);
        }
    }

    /// For whom the next instance is.
    fn demand_for(&mut self, now_ns: u64) -> Demand {
        if let Some(demand) = self.waiting.start_late().or_else(|| self.waiting.start_one()) {
            return demand;
        }
        if let Some(came_ns) = self.waiting.head_ns() {
            return Demand { seen_ns: now_ns, ..Demand::local(Trigger::Accept, came_ns) };
        }
        self.woken.take().unwrap_or_else(|| Demand::local(Trigger::Provision, now_ns))
    }

    fn release(&mut self, id: InstanceId, demand: Demand, now_ns: u64, actions: &mut Vec<Action>) {
        let reason = if demand.trigger == Trigger::Provision { Reason::Provision } else { Reason::Demand };
        let deadline_ns = now_ns.saturating_add(nanos(self.policy.init_timeout));
        self.set(id, InstanceState::Starting { deadline_ns }, reason, now_ns, actions);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.released_ns = now_ns;
        }
        actions.push(Action::Release(id, demand));
    }

    fn prepare(&mut self, reason: Reason, now_ns: u64, actions: &mut Vec<Action>) {
        let id = self.next_instance;
        self.next_instance += 1;
        let state = InstanceState::Preparing { stale: false };
        self.instances.insert(id, Instance::new(state, reason, now_ns));
        actions.extend([Action::Moved(id, Some(state), reason), Action::Prepare(id)]);
    }

    /// Connections that nobody will serve in time.
    fn answer(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let nobody = self.count(|state| {
            state.has_room() || matches!(state, InstanceState::Freezing | InstanceState::Frozen)
        }) == 0;
        let (count, reason) = if self.removed {
            (self.waiting.queued(), Reason::Closed)
        } else if self.policy.max_instances == 0 {
            (self.waiting.queued(), Reason::Off)
        } else if nobody && self.failures.pause(now_ns) == Some(Reason::Cooldown) {
            (self.waiting.queued(), Reason::Cooldown)
        } else {
            let came_ns = now_ns.checked_sub(nanos(self.policy.queue_timeout));
            (came_ns.map_or(0, |came_ns| self.waiting.came_until(came_ns)), Reason::QueueTimeout)
        };
        if count > 0 {
            self.waiting.answered(count);
            actions.push(Action::Answer(count, reason));
        }
    }

    /// Freezes and stops what nobody has been connected to for long enough.
    fn rest(&mut self, load: &Load, now_ns: u64, actions: &mut Vec<Action>) {
        let idle = self.idle(load);
        if idle.is_empty() {
            return;
        }
        let mut spare = self.spare(load);
        let over = |after: Option<Duration>, since_ns: u64| {
            after.is_some_and(|after| now_ns.saturating_sub(since_ns) >= nanos(after))
        };
        let (freeze_after, stop_after) = (self.policy.freeze_after, self.policy.stop_after);
        for (id, idle_ns) in idle {
            let frozen = self.state(id) == Some(InstanceState::Frozen);
            if !frozen && spare == 0 {
                continue;
            }
            if over(stop_after, idle_ns) {
                self.stop(id, false, Reason::Idle, now_ns, actions);
            } else if !frozen && over(freeze_after, idle_ns) {
                self.freeze(id, idle_ns, Reason::Idle, now_ns, actions);
            } else {
                continue;
            }
            spare = spare.saturating_sub(u32::from(!frozen));
        }
    }

    /// Instances that neither the demand nor `min_ready` needs.
    fn spare(&self, load: &Load) -> u32 {
        self.count(InstanceState::has_room).saturating_sub(self.policy.instances_for(self.units(load)))
    }

    /// Instances to which nobody is connected, with the time since when.
    fn idle(&self, load: &Load) -> Vec<(InstanceId, u64)> {
        let idle_ns = |id: InstanceId, instance: &Instance| match instance.state {
            InstanceState::Frozen => Some(instance.idle_ns),
            InstanceState::Ready => {
                let seen = load.of(id);
                (seen.open == Some(0)).then(|| seen.changed_ns.max(instance.since_ns))
            }
            _ => None,
        };
        self.instances.iter().filter_map(|(id, instance)| Some((*id, idle_ns(*id, instance)?))).collect()
    }

    /// Keeps as many containers parked as configured. While a start is under way the machine's cores
    /// belong to it, so the next container is only created after that.
    fn refill(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let prepared = if self.policy.max_instances == 0 { 0 } else { self.policy.prepared };
        while self.parked.len() > prepared as usize {
            let Some(id) = self.parked.pop_back() else { break };
            self.instances.remove(&id);
            actions.extend([Action::Discard(id), Action::Moved(id, None, Reason::Surplus)]);
        }
        let starting = self.count(|state| matches!(state, InstanceState::Starting { .. })) > 0;
        if starting || self.failures.pause(now_ns).is_some() || !self.failures.may_prepare(now_ns) {
            return;
        }
        let there = self.count(|state| {
            matches!(state, InstanceState::Parked | InstanceState::Preparing { stale: false })
        });
        for _ in there..prepared {
            self.prepare(Reason::Refill, now_ns, actions);
        }
    }

    /// Says which SYNs and which connections are news.
    fn sensors(&mut self, actions: &mut Vec<Action>) {
        let ready = self.count(|state| state == InstanceState::Ready);
        let enough = match self.policy.concurrency {
            None => ready > 0,
            Some(_) => ready > 0 && ready >= self.policy.max_instances,
        };
        if self.warm != enough && !self.closed {
            self.warm = enough;
            actions.push(Action::Warm(enough));
        }
        let watch = match self.policy.concurrency {
            _ if self.closed && !self.removed => QueueWatchRate::Off,
            None if ready > 0 => QueueWatchRate::Slow,
            _ => QueueWatchRate::Immediate,
        };
        if self.watch != watch {
            self.watch = watch;
            actions.push(Action::WatchQueue(watch));
        }
    }

    /// Asks for the next look.
    fn timer(&mut self, load: &Load, now_ns: u64, actions: &mut Vec<Action>) {
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
            .then(|| now_ns.saturating_add(LOOK_AGAIN_NS));
        let next = deadlines
            .chain(self.waiting.expiry_ns())
            .chain(self.failures.next_ns(now_ns))
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

    /// When the next instance may have been idle for long enough. That a busy one becomes idle raises no
    /// event, so it is looked at when it could have been idle for that long at the earliest. One that is held back
    /// although it was idle for long enough waits for an event, or for a busy one. However short that time is, a busy
    /// one is not looked at more often than every [`LOOK_AGAIN_NS`].
    fn rest_ns(&self, load: &Load, now_ns: u64) -> Option<u64> {
        let after_ns = nanos(self.policy.idle_after()?);
        let stop_ns = self.policy.stop_after.map(nanos);
        let idle = self.idle(load);
        let times = idle.iter().filter_map(|(id, idle_ns)| {
            let frozen = self.state(*id) == Some(InstanceState::Frozen);
            Some(idle_ns.saturating_add(if frozen { stop_ns? } else { after_ns }))
        });
        let counts = |(id, one): (&InstanceId, &Instance)| {
            one.state == InstanceState::Ready && load.of(*id).open.is_some_and(|open| open > 0)
        };
        let is_busy = self.instances.iter().any(counts);
        let busy = is_busy.then(|| now_ns.saturating_add(after_ns.max(LOOK_AGAIN_NS)));
        times.filter(|at_ns| *at_ns > now_ns).chain(busy).min()
    }
}

impl Instance {
    pub(super) fn new(state: InstanceState, reason: Reason, now_ns: u64) -> Self {
        let (seen, unmoved_ns, looks) = (InstanceLoad::default(), now_ns, 0);
        let (since_ns, released_ns, ready_ns, idle_ns) = (now_ns, 0, 0, 0);
        Self { state, reason, since_ns, released_ns, ready_ns, idle_ns, seen, unmoved_ns, looks }
    }
}

fn deadline_ns(state: InstanceState) -> Option<u64> {
    match state {
        InstanceState::Starting { deadline_ns } | InstanceState::Thawing { deadline_ns } => Some(deadline_ns),
        _ => None,
    }
}
