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
//! at a time (single flight): every further demand joins it. No I/O, no clock
//! and no randomness here, so that it can be tested with tables and random
//! schedules.

use std::collections::VecDeque;
use std::time::Duration;

use crate::event::{Demand, Event, InstanceId};

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
}

/// Where a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No instance; demand starts one.
    Cold,
    /// Demand came while nothing was parked: a container is being created for it.
    Waiting {
        /// The demand that is served first.
        demand: Demand,
    },
    /// A container was let go and has not said that it is ready.
    Starting {
        /// Which one.
        instance: InstanceId,
        /// When it is killed, in nanoseconds of `CLOCK_MONOTONIC`.
        deadline_ns: u64,
    },
    /// An instance accepts connections.
    Ready {
        /// Which one.
        instance: InstanceId,
        /// Since when, in nanoseconds of `CLOCK_MONOTONIC`.
        since_ns: u64,
    },
    /// An instance was asked to go.
    Stopping {
        /// Which one.
        instance: InstanceId,
        /// It never became ready: its end counts as a failed start.
        failed: bool,
    },
    /// Starts fail; the next is tried at this time, if anybody still waits.
    Failed {
        /// In nanoseconds of `CLOCK_MONOTONIC`.
        until_ns: u64,
    },
    /// The agent is leaving.
    Closed,
}

impl Phase {
    /// The name of this phase in API, log and metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Waiting { .. } | Self::Starting { .. } => "starting",
            Self::Ready { .. } => "ready",
            Self::Stopping { .. } => "stopping",
            Self::Failed { .. } => "failed",
            Self::Closed => "closed",
        }
    }

    /// The instance that was released and is not known to be gone.
    #[must_use]
    pub fn instance(self) -> Option<InstanceId> {
        match self {
            Self::Starting { instance, .. }
            | Self::Ready { instance, .. }
            | Self::Stopping { instance, .. } => Some(instance),
            Self::Cold | Self::Waiting { .. } | Self::Failed { .. } | Self::Closed => None,
        }
    }
}

/// Why a decision was what it was: the `reason` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The function was cold.
    Cold,
    /// An instance is on its way; the demand joins it.
    Starting,
    /// An instance accepts already.
    Ready,
    /// An instance is leaving; whoever still waits after that is seen in the accept queue.
    Stopping,
    /// Starts fail; the back-off is not over.
    Backoff,
    /// The agent is leaving.
    Closed,
    /// Fewer containers are parked than configured.
    Refill,
    /// The instance did not become ready in time.
    InitTimeout,
    /// An operator, or the agent's own end.
    Requested,
}

impl Reason {
    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Closed => "closed",
            Self::Refill => "refill",
            Self::InitTimeout => "init_timeout",
            Self::Requested => "requested",
        }
    }
}

/// What the agent is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Create a container and park it.
    Prepare(InstanceId, Reason),
    /// Let a parked container go, for this demand.
    Release(InstanceId, Demand),
    /// Ask an instance to stop; kill it when it does not. The end comes as [`Event::Gone`].
    Stop(InstanceId, Reason),
    /// Remove a parked container.
    Discard(InstanceId),
    /// The demand needs nothing new.
    Suppress(Demand, Reason),
    /// Watch the listener: a connection in its accept queue is demand.
    Watch,
    /// Stop watching: an instance accepts by itself.
    Unwatch,
    /// Tell the kernel half whether SYNs are news.
    Warm(bool),
    /// Send [`Event::Timer`] at this time, in nanoseconds of `CLOCK_MONOTONIC`.
    Timer(u64),
}

/// The state of one function.
#[derive(Debug)]
pub struct Function {
    policy: Policy,
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
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
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

    /// Takes one event at time `now_ns` (nanoseconds of `CLOCK_MONOTONIC`) and
    /// says what to do, in order. Events about instances that are long gone are ignored.
    pub fn on(&mut self, event: Event, now_ns: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Configured => actions.push(Action::Watch),
            Event::Demand(demand) => self.demand(demand, now_ns, &mut actions),
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

    fn demand(&mut self, demand: Demand, now_ns: u64, actions: &mut Vec<Action>) {
        let reason = match self.phase {
            Phase::Cold => {
                match self.parked.pop_front() {
                    Some(instance) => self.release(instance, demand, now_ns, actions),
                    None => self.phase = Phase::Waiting { demand },
                }
                return;
            }
            Phase::Waiting { .. } | Phase::Starting { .. } => Reason::Starting,
            Phase::Ready { .. } => Reason::Ready,
            Phase::Stopping { .. } => Reason::Stopping,
            Phase::Failed { .. } => Reason::Backoff,
            Phase::Closed => Reason::Closed,
        };
        actions.push(Action::Suppress(demand, reason));
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
