//! `decision`: a pure function from (state, event, load, now) to actions.
//!
//! One instance:
//!
//! ```text
//!  prepare            release               ready              idle             frozen
//! ─────────> parked ──────────> starting ──────────> ready ──────────> freezing ────────> frozen
//!              │                   │                 ^  │ ^              │ busy, failed    │
//!              │ surplus,          │ deadline        │  │ └──────────────┘                 │ demand
//!              │ replaced          v                 │  │ idle, hung, asked                v
//!              └─> discarded    stopping <───────────┼──┴───────────────────────────── thawing
//!                                  │ gone            └──────────────────────────────────── │ ready
//!                                  v
//!                               (nothing)          gone at any time: crashed, out of memory, ...
//! ```
//!
//! The function as a whole only has facts: its instances, who waits (`waiting`), and what has failed (`failure`).
//! An event changes facts; then `settle` compares them with what should be, and orders what is
//! missing. So it does not matter which of several events comes first, twice or not at all.
//!
//! Demand is counted in connections: those that are open, those that wait in the accept queue, and those that a SYN
//! or a knock has promised. `concurrency` of them need one instance. An instance that is on its way counts like one that
//! is there, so that no unit of demand starts two.
//!
//! A promise may be broken. SYNs that no key vouches for need a start of two budgets, the function's and the node's,
//! before they count for more than the instances that are there; what becomes of them raises and lowers the budgets.
//! Without one they cost nothing, and the connection itself is demand when it is complete.
//!
//! Connections in the queue have a deadline. Those that nobody has accepted by then, and all while the function is
//! off or is left alone after failures, are answered by the agent.
//!
//! No I/O, no clock and no randomness here, so that it can be tested with tables and random schedules.

mod action;
mod admission;
mod budget;
mod failure;
mod instances;
mod load;
mod policy;
mod recent;
mod settle;
mod state;
mod waiting;

pub use action::{Action, QueueWatchRate, Reason};
pub use admission::Admission;
pub use budget::{Budget, Rates};
pub use load::{InstanceLoad, Load};
pub use policy::Policy;
pub use state::{Instance, InstanceState, Summary};

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use self::failure::Failures;
use self::waiting::{Promise, WaitingClients};
use crate::event::{Demand, Event, FunctionId, InstanceId, Trigger};

/// An instance that crashes sooner than this after it was ready counts as a
/// failed start, so that a crash loop is slowed down like any other failure.
const LIFE_MIN: Duration = Duration::from_secs(1);

/// The state of one function.
#[derive(Debug)]
pub struct FunctionState {
    number: FunctionId,
    policy: Policy,
    starts: Budget,
    instances: BTreeMap<InstanceId, Instance>,
    /// Those of `instances` that are parked, the longest first.
    parked: VecDeque<InstanceId>,
    waiting: WaitingClients,
    /// An operator wants an instance, and none has been let go for that yet.
    woken: Option<Demand>,
    failures: Failures,
    closed: bool,
    /// Closed for good.
    removed: bool,
    /// When it was last looked at whether instances take those who wait.
    looked_ns: u64,
    warm: bool,
    watch: QueueWatchRate,
    /// The timer that is under way.
    timer_ns: Option<u64>,
    next_instance: InstanceId,
}

impl FunctionState {
    /// A function that nobody has asked for yet.
    #[must_use]
    pub fn new(number: FunctionId, policy: Policy) -> Self {
        Self {
            number,
            policy,
            starts: Budget::new(policy.starts, policy.unused_after),
            instances: BTreeMap::new(),
            parked: VecDeque::new(),
            waiting: WaitingClients::default(),
            woken: None,
            failures: Failures::default(),
            closed: false,
            removed: false,
            looked_ns: 0,
            warm: false,
            watch: QueueWatchRate::Off,
            timer_ns: None,
            next_instance: 1,
        }
    }

    /// What the function is doing, in one word.
    #[must_use]
    pub fn summary(&self, now_ns: u64) -> Summary {
        let any = |wanted: fn(InstanceState) -> bool| self.instances.values().any(|one| wanted(one.state));
        if self.closed {
            Summary::Closed
        } else if any(|state| matches!(state, InstanceState::Ready | InstanceState::Freezing)) {
            Summary::Ready
        } else if any(|state| matches!(state, InstanceState::Starting { .. } | InstanceState::Thawing { .. }))
        {
            Summary::Starting
        } else if any(|state| state == InstanceState::Frozen) {
            Summary::Frozen
        } else if self.policy.max_instances == 0 {
            Summary::Off
        } else if self.failures.pause(now_ns).is_some() {
            Summary::Failed
        } else if self.preparing() > 0 && (self.waiting.demand() > 0 || self.woken.is_some()) {
            Summary::Starting
        } else if any(|state| matches!(state, InstanceState::Stopping { .. })) {
            Summary::Stopping
        } else {
            Summary::Cold
        }
    }

    /// Every instance, from its preparation to its end.
    pub fn instances(&self) -> impl Iterator<Item = (InstanceId, &Instance)> {
        self.instances.iter().map(|(id, instance)| (*id, instance))
    }

    /// How many containers are parked.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// How many containers are being created.
    #[must_use]
    pub fn preparing(&self) -> u32 {
        self.count(|state| matches!(state, InstanceState::Preparing { .. }))
    }

    /// Starts per second that SYNs without a key may cause at present.
    #[must_use]
    pub fn rate(&self) -> u32 {
        self.starts.rate()
    }

    /// When a start or a container that failed is tried again, in nanoseconds of `CLOCK_MONOTONIC`; `None` when
    /// nothing has failed since the last success. A time in the past says that it is being tried.
    #[must_use]
    pub fn retry_at_ns(&self) -> Option<u64> {
        if self.closed { None } else { self.failures.retry_at_ns() }
    }

    /// Starts that have failed in a row, and whether the function is left alone for that.
    #[must_use]
    pub fn failed_starts(&self, now_ns: u64) -> (u32, bool) {
        (self.failures.starts(), self.failures.pause(now_ns) == Some(Reason::Cooldown))
    }

    fn count(&self, wanted: impl Fn(InstanceState) -> bool) -> u32 {
        let count = self.instances.values().filter(|instance| wanted(instance.state)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Takes one event at time `now_ns` (nanoseconds of `CLOCK_MONOTONIC`) and says what to do, in order.
    /// `load` is what is seen of the function's connections, `node` what all functions of the node share. Events
    /// about instances that are long gone are ignored.
    pub fn on(&mut self, event: Event, load: &Load, now_ns: u64, node: &mut Admission) -> Vec<Action> {
        let mut actions = Vec::new();
        for kept in self.waiting.see(load, now_ns) {
            self.kept(&kept, now_ns, node);
            // It has come before an instance could be let go for it: the next one still is for its SYN.
            if !kept.started && !kept.joins && !kept.unseen {
                self.waiting.tell_late(kept.demand);
            }
        }
        for broken in self.waiting.expired(now_ns) {
            if broken.started {
                actions.push(Action::Unused);
            }
            if broken.paid {
                self.starts.unused(now_ns);
                node.starts.unused(now_ns);
            }
        }
        match event {
            Event::Configured => {}
            Event::Demand(demand) => self.demand(demand, load, now_ns, node, &mut actions),
            Event::Adopted(instance) => self.adopted(instance, now_ns, &mut actions),
            Event::Changed { policy, replace } => self.changed(policy, replace, now_ns, &mut actions),
            Event::Parked(instance) => self.on_parked(instance, now_ns, &mut actions),
            Event::PrepareFailed(instance) => self.prepare_failed(instance, now_ns, &mut actions),
            Event::Ready(instance) => {
                self.ready(instance, now_ns, &mut actions);
                if self.is_unseen(load) {
                    self.waiting.lose_sight();
                }
            }
            Event::Served(instance) => self.served(instance, load, now_ns, node),
            Event::Frozen(instance) => self.frozen(instance, load, now_ns, &mut actions),
            Event::NotFrozen { instance, busy } => self.not_frozen(instance, busy, now_ns, &mut actions),
            Event::Gone { instance, end } => self.gone(instance, end, now_ns, &mut actions),
            Event::Timer => self.timer_ns = self.timer_ns.filter(|at_ns| *at_ns > now_ns),
            Event::Freeze => self.freeze_all(now_ns, &mut actions),
            Event::Stop => self.stop_all(Reason::Requested, now_ns, &mut actions),
            Event::Removed => {
                self.removed = true;
                self.shutdown(now_ns, &mut actions);
            }
            Event::Shutdown => self.shutdown(now_ns, &mut actions),
        }
        self.settle(load, now_ns, &mut actions);
        actions
    }

    fn demand(
        &mut self,
        demand: Demand,
        load: &Load,
        now_ns: u64,
        node: &mut Admission,
        actions: &mut Vec<Action>,
    ) {
        if node.recent.is_duplicate(self.number, &demand, now_ns) {
            actions.push(Action::Suppress(demand, Reason::Duplicate));
            return;
        }
        let needless = self.needless(&demand, load, now_ns);
        if needless.is_none() && demand.trigger.is_early() && self.is_late(&demand, now_ns) {
            node.recent.remember(self.number, &demand, false, now_ns);
            // Its connection is demand already. Where that needs an instance, this is for whom.
            if self.units(load) <= self.policy.places(self.count(InstanceState::has_room)) {
                actions.push(Action::Suppress(demand, Reason::Late));
            } else {
                self.waiting.tell_late(demand);
            }
            return;
        }
        let (reason, paid) = match needless {
            Some(reason) => (Some(reason), false),
            None if demand.is_open() && !self.fits(load) => {
                let paid = node.spend(&mut self.starts, now_ns);
                ((!paid).then_some(Reason::Budget), paid)
            }
            None => (None, false),
        };
        if paid {
            actions.push(Action::Spent);
        }
        node.recent.remember(self.number, &demand, reason == Some(Reason::Budget), now_ns);
        if let Some(reason) = reason {
            actions.push(Action::Suppress(demand, reason));
            return;
        }
        if demand.trigger == Trigger::Api {
            self.woken = Some(demand);
        }
        if demand.trigger.is_early() {
            let joins = self.fits(load);
            let deadline_ns = now_ns.saturating_add(nanos(self.policy.unused_after));
            let unseen = self.is_unseen(load);
            self.waiting.promise(Promise { demand, deadline_ns, paid, joins, started: false, unseen });
            if joins {
                let ready = self.instances.values().any(|one| one.state == InstanceState::Ready);
                actions.push(Action::Suppress(demand, if ready { Reason::Ready } else { Reason::Starting }));
            }
        }
    }

    /// Why this demand changes nothing, if it does not.
    fn needless(&self, demand: &Demand, load: &Load, now_ns: u64) -> Option<Reason> {
        let any = |wanted: fn(InstanceState) -> bool| self.instances.values().any(|one| wanted(one.state));
        let with_room = self.count(InstanceState::has_room);
        if self.closed {
            return Some(Reason::Closed);
        }
        if self.policy.max_instances == 0 {
            return Some(Reason::Off);
        }
        if with_room == 0
            && !any(|state| matches!(state, InstanceState::Frozen | InstanceState::Freezing))
            && let Some(pause) = self.failures.pause(now_ns)
        {
            return Some(pause);
        }
        let joins = with_room > 0 && (self.policy.concurrency.is_none() || demand.trigger == Trigger::Api);
        if joins && any(|state| state == InstanceState::Ready) {
            return Some(Reason::Ready);
        }
        if joins {
            return Some(Reason::Starting);
        }
        let full = self.policy.places(self.policy.max_instances);
        (demand.trigger.is_early() && self.units(load) >= full).then_some(Reason::Ceiling)
    }

    /// Whether the connection that was announced has come before the news of it, or would have.
    fn is_late(&mut self, demand: &Demand, now_ns: u64) -> bool {
        now_ns.saturating_sub(demand.at_ns) >= nanos(self.policy.unused_after)
            || self.waiting.is_late(demand.at_ns)
    }

    /// Whether an instance that does not count accepts connections.
    fn is_unseen(&self, load: &Load) -> bool {
        self.instances
            .iter()
            .any(|(id, one)| one.state == InstanceState::Ready && load.of(*id).open.is_none())
    }

    /// Whether one more connection fits into the instances that are there or on their way.
    fn fits(&self, load: &Load) -> bool {
        self.units(load) < self.policy.places(self.count(InstanceState::has_room))
    }

    /// Connections that are open, wait, or were promised.
    fn units(&self, load: &Load) -> u64 {
        let serving = self.instances.iter().filter(|(_, instance)| instance.state.has_room());
        let open = serving.map(|(id, _)| u64::from(load.of(*id).open.unwrap_or(0)));
        open.sum::<u64>() + self.waiting.demand()
    }

    /// Somebody has come who was expected.
    fn kept(&mut self, promise: &Promise, now_ns: u64, node: &mut Admission) {
        if promise.paid {
            self.starts.confirmed(now_ns);
            node.starts.confirmed(now_ns);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
