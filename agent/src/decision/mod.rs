//! `decision`: a pure function from (state, event, now) to actions.
//!
//! ```text
//!             demand                  parked                 ready
//!   ┌──────┐ ───────> ┌─────────┐ ─────────> ┌──────────┐ ─────────> ┌───────┐
//!   │ cold │          │ waiting │  release   │ starting │            │ ready │
//!   └──────┘ <─────┐  └─────────┘            └──────────┘            └───────┘
//!      ^  ^        │       │ cannot prepare       │ gone, or init deadline │   │ stop
//!      │  │ timer  │       v                      v                        │   v
//!      │  │      ┌────────────┐ <─────────────────┘                  gone  │ ┌──────────┐
//!      │  └───── │   failed   │                                            │ │ stopping │
//!      │         └────────────┘                                            │ └──────────┘
//!      └───────────────────────────────────────────────────────────────────┴──────┘ gone
//! ```
//!
//! `waiting` has demand and no parked container yet; with one parked, demand
//! goes to `starting` at once. At most one instance of a function is released
//! at a time (single flight): every further demand joins it.
//!
//! A SYN or a knock is only a promise of a connection. A function that it takes out of `cold` is on trial
//! until somebody connects. SYNs that no key vouches for also need a start of two budgets, the function's
//! and the node's, which the outcome of their trials raises and lowers; without one the function stays
//! cold, and the connection itself starts it.
//!
//! No I/O, no clock and no randomness here, so that it can be tested with tables and random schedules.

mod action;
mod admission;
mod budget;
mod phase;
mod recent;

pub use action::{Action, Reason};
pub use admission::Admission;
pub use budget::{Budget, Rates};
pub use phase::Phase;

use std::collections::VecDeque;
use std::time::Duration;

use crate::event::{Demand, Event, FunctionId, InstanceId, Trigger};

/// First delay after a failed start or prepare; doubles with each one that follows.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// An instance that crashes sooner than this after it was ready counts as a
/// failed start, so that a crash loop is slowed down like any other failure.
const LIFE_MIN: Duration = Duration::from_secs(1);

/// The settings of one function that decisions depend on.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Containers kept parked while there is no demand.
    pub prepared: u32,
    /// From release to ready; an instance that takes longer is killed.
    pub init_timeout: Duration,
    /// Longest delay after repeated failures.
    pub retry_max: Duration,
    /// How long after a SYN or a knock its connection may come; without one the start was unused.
    pub unused_after: Duration,
    /// Starts that SYNs without a key may cause.
    pub starts: Rates,
}

/// An early start whose connection has not come yet. It shows in the accept queue, or, when the function is
/// ready before that, by the first answer: one that takes longer than `unused_after` comes too late.
#[derive(Debug)]
struct Trial {
    /// Until when it may come, in nanoseconds of `CLOCK_MONOTONIC`.
    deadline_ns: u64,
    /// It was paid from the budgets, which learn from it. What owners of a key do says nothing about
    /// SYNs without one: their connections must not pay for a flood.
    paid: bool,
}

/// The state of one function.
#[derive(Debug)]
pub struct Function {
    number: FunctionId,
    policy: Policy,
    starts: Budget,
    trial: Option<Trial>,
    phase: Phase,
    parked: VecDeque<InstanceId>,
    preparing: u32,
    /// Failed starts since the last good one.
    start_failures: u32,
    /// Failed prepares since the last good one, and when the next is allowed.
    prepare_failures: u32,
    prepare_after_ns: u64,
    next_instance: InstanceId,
}

impl Function {
    /// A function that nobody has asked for yet.
    #[must_use]
    pub fn new(number: FunctionId, policy: Policy) -> Self {
        Self {
            number,
            policy,
            starts: Budget::new(policy.starts, policy.unused_after),
            trial: None,
            phase: Phase::Cold,
            parked: VecDeque::new(),
            preparing: 0,
            start_failures: 0,
            prepare_failures: 0,
            prepare_after_ns: 0,
            next_instance: 1,
        }
    }

    /// Where the function is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many containers are parked.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// How many containers are being created.
    #[must_use]
    pub fn preparing(&self) -> u32 {
        self.preparing
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
        match self.phase {
            Phase::Failed { until_ns } => Some(until_ns),
            Phase::Closed => None,
            _ => (self.prepare_failures > 0).then_some(self.prepare_after_ns),
        }
    }

    /// Takes one event at time `now_ns` (nanoseconds of `CLOCK_MONOTONIC`) and says what to do, in order.
    /// `node` is what all functions of the node share. Events about instances that are long gone are ignored.
    pub fn on(&mut self, event: Event, now_ns: u64, node: &mut Admission) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.trial.as_ref().is_some_and(|trial| now_ns >= trial.deadline_ns) {
            self.unused(now_ns, node, &mut actions);
        }
        match event {
            Event::Configured => actions.push(Action::Watch),
            Event::Demand(demand) => self.demand(demand, now_ns, node, &mut actions),
            // The only word for it that we have is the instance's own: one that lies keeps the
            // budgets at their maximum, and gains no more than that.
            Event::Served(instance) if self.phase.instance() == Some(instance) => self.used(now_ns, node),
            Event::Served(_) => {}
            Event::Parked(instance) => self.on_parked(instance, now_ns, &mut actions),
            Event::PrepareFailed(_) => self.prepare_failed(now_ns, &mut actions),
            Event::Ready(instance) => self.ready(instance, now_ns, &mut actions),
            Event::Gone { instance, clean } => self.gone(instance, clean, now_ns, &mut actions),
            Event::Timer => self.timer(now_ns, &mut actions),
            Event::Stop => self.stop(&mut actions),
            Event::Shutdown => self.shutdown(&mut actions),
        }
        self.refill(now_ns, &mut actions);
        actions
    }

    fn demand(&mut self, demand: Demand, now_ns: u64, node: &mut Admission, actions: &mut Vec<Action>) {
        if node.recent.is_duplicate(self.number, &demand, now_ns) {
            actions.push(Action::Suppress(demand, Reason::Duplicate));
            return;
        }
        if demand.trigger == Trigger::Accept {
            self.used(now_ns, node);
        }
        let reason = match self.phase {
            Phase::Cold if demand.is_open() && !node.spend(&mut self.starts, now_ns) => Some(Reason::Budget),
            Phase::Cold => None,
            Phase::Waiting { .. } | Phase::Starting { .. } => Some(Reason::Starting),
            Phase::Ready { .. } => Some(Reason::Ready),
            Phase::Stopping { .. } => Some(Reason::Stopping),
            Phase::Failed { .. } => Some(Reason::Backoff),
            Phase::Closed => Some(Reason::Closed),
        };
        node.recent.remember(self.number, &demand, reason == Some(Reason::Budget), now_ns);
        match reason {
            Some(reason) => actions.push(Action::Suppress(demand, reason)),
            None => self.start(demand, now_ns, node, actions),
        }
    }

    fn start(&mut self, demand: Demand, now_ns: u64, node: &mut Admission, actions: &mut Vec<Action>) {
        match self.parked.pop_front() {
            Some(instance) => self.release(instance, demand, now_ns, actions),
            None => self.phase = Phase::Waiting { demand },
        }
        if demand.trigger.is_early() {
            // An earlier start is over before another begins, and nobody came to it.
            self.unused(now_ns, node, actions);
            let deadline_ns = now_ns.saturating_add(nanos(self.policy.unused_after));
            self.trial = Some(Trial { deadline_ns, paid: demand.is_open() });
            actions.push(Action::Timer(deadline_ns));
        }
    }

    /// Somebody has connected.
    fn used(&mut self, now_ns: u64, node: &mut Admission) {
        if self.trial.take().is_some_and(|trial| trial.paid) {
            self.starts.confirmed(now_ns);
            node.starts.confirmed(now_ns);
        }
    }

    /// Nobody has connected to the start on trial, if there is one.
    fn unused(&mut self, now_ns: u64, node: &mut Admission, actions: &mut Vec<Action>) {
        let Some(trial) = self.trial.take() else { return };
        actions.push(Action::Unused);
        if trial.paid {
            self.starts.unused(now_ns);
            node.starts.unused(now_ns);
        }
    }

    fn release(&mut self, instance: InstanceId, demand: Demand, now_ns: u64, actions: &mut Vec<Action>) {
        let deadline_ns = now_ns.saturating_add(nanos(self.policy.init_timeout));
        self.phase = Phase::Starting { instance, deadline_ns };
        actions.push(Action::Release(instance, demand));
        actions.push(Action::Timer(deadline_ns));
    }

    fn on_parked(&mut self, instance: InstanceId, now_ns: u64, actions: &mut Vec<Action>) {
        self.preparing = self.preparing.saturating_sub(1);
        self.prepare_failures = 0;
        match self.phase {
            Phase::Closed => actions.push(Action::Discard(instance)),
            Phase::Waiting { demand } => self.release(instance, demand, now_ns, actions),
            _ => self.parked.push_back(instance),
        }
    }

    fn prepare_failed(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.preparing = self.preparing.saturating_sub(1);
        self.prepare_failures = self.prepare_failures.saturating_add(1);
        self.prepare_after_ns = now_ns.saturating_add(self.backoff_ns(self.prepare_failures));
        if let Phase::Waiting { .. } = self.phase {
            self.fail(now_ns, actions);
        } else if self.phase != Phase::Closed {
            actions.push(Action::Timer(self.prepare_after_ns));
        }
    }

    fn ready(&mut self, instance: InstanceId, now_ns: u64, actions: &mut Vec<Action>) {
        if let Phase::Starting { instance: starting, .. } = self.phase
            && starting == instance
        {
            self.phase = Phase::Ready { instance, since_ns: now_ns };
            actions.extend([Action::Warm(true), Action::Unwatch]);
        }
    }

    fn gone(&mut self, instance: InstanceId, clean: bool, now_ns: u64, actions: &mut Vec<Action>) {
        if let Some(place) = self.parked.iter().position(|parked| *parked == instance) {
            // It died while parked: replace it, but never in a tight loop.
            self.parked.remove(place);
            self.preparing = self.preparing.saturating_add(1);
            self.prepare_failed(now_ns, actions);
            return;
        }
        if self.phase.instance() != Some(instance) {
            return;
        }
        let short = |since_ns: u64| now_ns.saturating_sub(since_ns) < nanos(LIFE_MIN);
        match self.phase {
            Phase::Starting { .. } | Phase::Stopping { failed: true, .. } => self.fail(now_ns, actions),
            Phase::Ready { since_ns, .. } if !clean && short(since_ns) => {
                actions.push(Action::Warm(false));
                self.fail(now_ns, actions);
            }
            _ => {
                self.phase = Phase::Cold;
                self.start_failures = 0;
                actions.extend([Action::Warm(false), Action::Watch]);
            }
        }
    }

    fn fail(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        // What failed was not the client, and until the back-off is over nobody looks for one.
        self.trial = None;
        self.start_failures = self.start_failures.saturating_add(1);
        let until_ns = now_ns.saturating_add(self.backoff_ns(self.start_failures));
        self.phase = Phase::Failed { until_ns };
        actions.extend([Action::Unwatch, Action::Timer(until_ns)]);
    }

    fn timer(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Starting { instance, deadline_ns } if now_ns >= deadline_ns => {
                self.phase = Phase::Stopping { instance, failed: true };
                actions.push(Action::Stop(instance, Reason::InitTimeout));
            }
            Phase::Failed { until_ns } if now_ns >= until_ns => {
                // Whoever still waits sits in the accept queue: watching finds them.
                self.phase = Phase::Cold;
                actions.push(Action::Watch);
            }
            _ => {}
        }
    }

    fn stop(&mut self, actions: &mut Vec<Action>) {
        if let Phase::Starting { instance, .. } | Phase::Ready { instance, .. } = self.phase {
            self.phase = Phase::Stopping { instance, failed: false };
            actions.push(Action::Stop(instance, Reason::Requested));
        }
    }

    fn shutdown(&mut self, actions: &mut Vec<Action>) {
        if let Some(instance) = self.phase.instance() {
            actions.push(Action::Stop(instance, Reason::Closed));
        }
        self.trial = None;
        actions.push(Action::Unwatch);
        actions.extend(self.parked.drain(..).map(Action::Discard));
        self.phase = Phase::Closed;
    }

    /// Orders what is missing. While a start is under way the machine's cores
    /// belong to it, so the next container is only created after that.
    fn refill(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let wanted = match self.phase {
            Phase::Closed | Phase::Starting { .. } | Phase::Failed { .. } => return,
            // The demand itself is not delayed by an earlier failure: it has its own back-off.
            Phase::Waiting { .. } => 1,
            Phase::Cold | Phase::Ready { .. } | Phase::Stopping { .. } => {
                if now_ns < self.prepare_after_ns {
                    return;
                }
                self.policy.prepared
            }
        };
        let parked = u32::try_from(self.parked.len()).unwrap_or(u32::MAX);
        for _ in parked.saturating_add(self.preparing)..wanted {
            let instance = self.next_instance;
            self.next_instance += 1;
            self.preparing += 1;
            let reason = if wanted == 1 && matches!(self.phase, Phase::Waiting { .. }) {
                Reason::Cold
            } else {
                Reason::Refill
            };
            actions.push(Action::Prepare(instance, reason));
        }
    }

    fn backoff_ns(&self, failures: u32) -> u64 {
        let doubled = nanos(BACKOFF_MIN).saturating_mul(1u64 << failures.saturating_sub(1).min(20));
        doubled.min(nanos(self.policy.retry_max)).max(1)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
