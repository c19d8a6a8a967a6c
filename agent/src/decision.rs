//! `decision`: a pure function from (state, event, load, now) to actions.
//!
//! # One instance
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
//! A frozen instance that stays idle is hibernated: `frozen -> hibernating -> hibernated`. Demand thaws it from each of them.
//!
//! # The function as a whole
//!
//! A function has no state of its own besides facts: its instances, the clients that wait (`waiting`), and what has
//! failed (`failure`). An event changes facts; then `settle` compares them with what should be and orders what is
//! missing. So it does not matter in which order events come, or whether one comes twice or not at all.
//!
//! # Demand
//!
//! Demand is counted in connections: open ones, those in the accept queue, and those that a SYN or a knock has
//! announced and that are still expected. `concurrency` of them need one instance. An instance that is starting counts
//! as if it were ready, so that no connection starts two instances.
//!
//! # Budgets
//!
//! An announced connection may never come. A SYN without a key therefore has to pay for a start from two budgets, the
//! function's and the node's, before it counts for more than the existing instances can serve. Whether its connection
//! comes raises or lowers the budgets. A SYN that cannot pay is ignored; its connection is demand like any other once
//! it is complete.
//!
//! # Deadlines
//!
//! A connection may wait in the accept queue for `queue_timeout`. The agent then answers it. It answers all connections
//! at once while the function is off or in a cool-down after failures.
//!
//! There is no I/O, no clock and no randomness here, so that tables and random schedules can test it.

mod action;
mod admission;
mod budget;
mod failure;
mod instances;
mod load;
mod policy;
mod recent;
mod relief;
mod settle;
mod standby;
mod state;
mod waiting;

pub use action::{Action, DecisionReason, QueueWatchRate};
pub use admission::Admission;
pub use budget::Budget;
pub use load::{FunctionLoad, InstanceLoad};
pub use relief::Relief;
pub use state::{Instance, InstanceState, Summary};

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use self::failure::Failures;
use self::waiting::{ExpectedConnection, ExpectedState, WaitingClients};
use crate::event::{Demand, Event, FailureCause, FunctionId, InstanceId, Policy, Standing, Trigger};

/// An instance that crashes sooner than this after it was ready counts as a
/// failed start, so that a crash loop is slowed down like any other failure.
const HEALTHY_AFTER: Duration = Duration::from_secs(1);

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
    /// An operator wants an instance, and none has been released for that yet.
    requested: Option<Demand>,
    failures: Failures,
    /// The agent is leaving, or the function was removed: nothing may be started.
    closed: bool,
    /// The function was removed from the configuration: the agent answers the clients that still come.
    removed: bool,
    /// When [`Self::stop_hung`] last checked whether instances accept the connections that wait.
    hung_check_ns: u64,
    /// What the kernel half was last told: SYNs are not news.
    warm: bool,
    queue_watch: QueueWatchRate,
    /// When the timer expires that was last asked for.
    timer_ns: Option<u64>,
    next_instance: InstanceId,
}

impl FunctionState {
    /// A function without instances and without demand.
    #[must_use]
    pub fn new(number: FunctionId, policy: Policy) -> Self {
        Self {
            number,
            policy,
            starts: Budget::new(policy.starts, policy.unused_after),
            instances: BTreeMap::new(),
            parked: VecDeque::new(),
            waiting: WaitingClients::default(),
            requested: None,
            failures: Failures::default(),
            closed: false,
            removed: false,
            hung_check_ns: 0,
            warm: false,
            queue_watch: QueueWatchRate::Off,
            timer_ns: None,
            next_instance: 1,
        }
    }

    /// What the function does at present.
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
        } else if any(|state| matches!(state, InstanceState::Frozen | InstanceState::Hibernating)) {
            Summary::Frozen
        } else if any(|state| state == InstanceState::Hibernated) {
            Summary::Hibernated
        } else if self.policy.max_instances == 0 {
            Summary::Off
        } else if self.failures.pause(now_ns).is_some() {
            Summary::Failed
        } else if self.preparing() > 0 && (self.waiting.demand() > 0 || self.requested.is_some()) {
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

    /// Starts that have failed in a row, and whether the function is in a cool-down for that.
    #[must_use]
    pub fn failed_starts(&self, now_ns: u64) -> (u32, bool) {
        (self.failures.starts(), self.failures.pause(now_ns) == Some(DecisionReason::Cooldown))
    }

    /// Whose failure the last failed start, or else the last failed container, is; `None` when none has failed since the
    /// last success.
    #[must_use]
    pub fn failure_cause(&self) -> Option<FailureCause> {
        self.failures.cause()
    }

    fn count(&self, wanted: impl Fn(InstanceState) -> bool) -> u32 {
        let count = self.instances.values().filter(|instance| wanted(instance.state)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Takes one event at time `now_ns` (nanoseconds of `CLOCK_MONOTONIC`) and returns what the agent has to do, in
    /// order. `load` is what is seen of the function's connections, `node` what all functions of the node share.
    /// Events of instances that are gone are ignored.
    pub fn on(
        &mut self,
        event: Event,
        load: &FunctionLoad,
        now_ns: u64,
        node: &mut Admission,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        for expected in self.waiting.observe(load, now_ns) {
            self.expected_came(&expected, now_ns, node);
            // It came before an instance could be released for it: the next instance still is for its SYN.
            if expected.state == ExpectedState::NeedsInstance {
                self.waiting.push_late(expected.demand);
            }
        }
        for expected in self.waiting.take_expired(now_ns) {
            if expected.state.is_started() {
                actions.push(Action::Unused);
            }
            if let Some(standing) = expected.paid {
                node.unused(standing, &mut self.starts, now_ns);
            }
        }
        match event {
            Event::Configured => {}
            Event::Demand(demand) => self.demand(demand, load, now_ns, node, &mut actions),
            Event::Adopted(instance) => self.adopted(instance, now_ns, &mut actions),
            Event::Changed { policy, replace } => self.changed(policy, replace, now_ns, &mut actions),
            Event::Parked(instance) => self.on_parked(instance, now_ns, &mut actions),
            Event::PrepareFailed { instance, cause } => {
                self.prepare_failed(instance, cause, now_ns, &mut actions);
            }
            Event::Ready(instance) => {
                self.ready(instance, now_ns, &mut actions);
                if self.is_uncounted(load) {
                    self.waiting.stop_tracking();
                }
            }
            Event::Served(instance) => self.served(instance, load, now_ns, node),
            Event::Frozen(instance) => self.frozen(instance, load, now_ns, &mut actions),
            Event::NotFrozen { instance, busy } => self.not_frozen(instance, busy, now_ns, &mut actions),
            Event::Hibernated(instance) => self.hibernated(instance, true, now_ns, &mut actions),
            Event::NotHibernated(instance) => self.hibernated(instance, false, now_ns, &mut actions),
            Event::Gone { instance, end } => self.gone(instance, end, now_ns, &mut actions),
            Event::Timer => self.timer_ns = self.timer_ns.filter(|at_ns| *at_ns > now_ns),
            Event::Freeze => self.freeze_all(now_ns, &mut actions),
            Event::Relieve(instance) => self.relieve(instance, now_ns, &mut actions),
            Event::Stop => self.stop_all(DecisionReason::Requested, now_ns, &mut actions),
            Event::Removed => {
                self.removed = true;
                self.shutdown(now_ns, &mut actions);
            }
            Event::Shutdown => self.shutdown(now_ns, &mut actions),
        }
        self.settle(load, now_ns, node, &mut actions);
        actions
    }

    fn demand(
        &mut self,
        demand: Demand,
        load: &FunctionLoad,
        now_ns: u64,
        node: &mut Admission,
        actions: &mut Vec<Action>,
    ) {
        let alias = Demand { client: demand.alias, ..demand };
        let announced = demand.alias.is_some() && node.recent.is_duplicate(self.number, &alias, now_ns);
        if announced {
            // From now on it has both names.
            node.recent.remember(self.number, &demand, false, now_ns);
        }
        if announced || node.recent.is_duplicate(self.number, &demand, now_ns) {
            actions.push(Action::Suppress(demand, DecisionReason::Duplicate));
            return;
        }
        let needless = self.needless(&demand, load, now_ns);
        if needless.is_none() && demand.trigger.is_early() && self.is_late(&demand, now_ns) {
            node.recent.remember(self.number, &demand, false, now_ns);
            // Its connection counts as demand already. If that needs an instance, the instance is for this SYN.
            if self.units(load) <= self.policy.places(self.count(InstanceState::has_room)) {
                actions.push(Action::Suppress(demand, DecisionReason::Late));
            } else {
                self.waiting.push_late(demand);
            }
            return;
        }
        let (reason, paid) = match needless {
            Some(reason) => (Some(reason), None),
            None if demand.needs_budget() && !self.fits(load) => {
                match node.spend(demand.standing, &mut self.starts, now_ns) {
                    true => (None, Some(demand.standing)),
                    false => (Some(DecisionReason::Budget), None),
                }
            }
            None => (None, None),
        };
        if paid == Some(Standing::Open) {
            actions.push(Action::Spent);
        }
        node.recent.remember(self.number, &demand, reason == Some(DecisionReason::Budget), now_ns);
        if let Some(reason) = reason {
            actions.push(Action::Suppress(demand, reason));
            return;
        }
        if demand.trigger == Trigger::Api {
            self.requested = Some(demand);
        }
        if demand.trigger.is_early() {
            self.expect(demand, paid, load, now_ns, actions);
        }
    }

    /// Expects the connection that `demand` announces.
    fn expect(
        &mut self,
        demand: Demand,
        paid: Option<Standing>,
        load: &FunctionLoad,
        now_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        let joins = self.fits(load);
        let state = match (self.is_uncounted(load), joins) {
            (true, _) => ExpectedState::Untracked,
            (false, true) => ExpectedState::JoinsInstance,
            (false, false) => ExpectedState::NeedsInstance,
        };
        let deadline_ns = now_ns.saturating_add(nanos(self.policy.unused_after));
        self.waiting.expect(ExpectedConnection { demand, deadline_ns, paid, state });
        if joins {
            let ready = self.instances.values().any(|one| one.state == InstanceState::Ready);
            actions.push(Action::Suppress(
                demand,
                if ready { DecisionReason::Ready } else { DecisionReason::Starting },
            ));
        }
    }

    /// Why this demand needs nothing, or `None` when it may need something.
    fn needless(&self, demand: &Demand, load: &FunctionLoad, now_ns: u64) -> Option<DecisionReason> {
        let any = |wanted: fn(InstanceState) -> bool| self.instances.values().any(|one| wanted(one.state));
        let with_room = self.count(InstanceState::has_room);
        if self.closed {
            return Some(DecisionReason::Closed);
        }
        if self.policy.max_instances == 0 {
            return Some(DecisionReason::Off);
        }
        if with_room == 0
            && !any(|state| state.is_asleep() || state == InstanceState::Freezing)
            && let Some(pause) = self.failures.pause(now_ns)
        {
            return Some(pause);
        }
        let joins = with_room > 0 && (self.policy.concurrency.is_none() || demand.trigger == Trigger::Api);
        if joins && any(|state| state == InstanceState::Ready) {
            return Some(DecisionReason::Ready);
        }
        if joins {
            return Some(DecisionReason::Starting);
        }
        let full = self.policy.places(self.policy.max_instances);
        (demand.trigger.is_early() && self.units(load) >= full).then_some(DecisionReason::Ceiling)
    }

    /// Whether the announced connection came before this report of it, or the report is so late that the client has
    /// given up.
    fn is_late(&mut self, demand: &Demand, now_ns: u64) -> bool {
        now_ns.saturating_sub(demand.at_ns) >= nanos(self.policy.unused_after)
            || self.waiting.claim_unexpected(demand.at_ns)
    }

    /// Whether an instance that does not count its connections is ready.
    fn is_uncounted(&self, load: &FunctionLoad) -> bool {
        self.instances.iter().any(|(id, one)| one.state == InstanceState::Ready && !load.of(*id).is_exact())
    }

    /// Whether the instances that are ready, starting or thawing have room for one more connection.
    fn fits(&self, load: &FunctionLoad) -> bool {
        self.units(load) < self.policy.places(self.count(InstanceState::has_room))
    }

    /// Demand: connections that are open, wait in the queue, or are expected.
    fn units(&self, load: &FunctionLoad) -> u64 {
        let serving = self.instances.iter().filter(|(_, instance)| instance.state.has_room());
        let open = serving.map(|(id, _)| u64::from(load.of(*id).open.unwrap_or(0)));
        open.sum::<u64>() + self.waiting.demand()
    }

    /// A connection has come that was expected.
    fn expected_came(&mut self, expected: &ExpectedConnection, now_ns: u64, node: &mut Admission) {
        if let Some(standing) = expected.paid {
            node.confirmed(standing, &mut self.starts, now_ns);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
