mod changes;
mod early;
mod failure;
mod random;
mod rest;
mod world;

use super::*;
use crate::event::{FailureCause, InstanceEnd, Rates};
use std::ops::Deref;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const UNUSED_AFTER: Duration = Duration::from_secs(10);

/// Nanoseconds between two looks at a queue.
const LOOK: usize = 10_000_000;

/// Budgets that are no matter.
const PLENTY: Rates = Rates { min: 1_000, max: 1_000 };

fn policy(prepared: u32) -> Policy {
    Policy {
        prepared,
        concurrency: None,
        min_ready: 0,
        standby: 0,
        max_instances: 16,
        queue_timeout: Duration::from_secs(30),
        freeze_after: None,
        hibernate_after: None,
        stop_after: None,
        init_timeout: Duration::from_secs(30),
        start_attempts: 3,
        cooldown: Duration::from_secs(30),
        retry_max: Duration::from_secs(5),
        unused_after: UNUSED_AFTER,
        starts: PLENTY,
    }
}

/// Each instance serves one connection at a time.
fn one_each(prepared: u32) -> Policy {
    Policy { concurrency: Some(1), ..policy(prepared) }
}

/// A SYN without a key, of a client of its own.
fn demand(at_ns: u64) -> Demand {
    Demand {
        trigger: Trigger::Syn,
        standing: Standing::Open,
        client: None,
        alias: None,
        at_ns,
        seen_ns: at_ns,
    }
}

/// The only function of its node, with what is seen of its connections.
struct Alone {
    function: FunctionState,
    node: Admission,
    load: FunctionLoad,
}

impl Alone {
    fn new(policy: Policy) -> Self {
        let node = Admission::new(PLENTY, PLENTY, UNUSED_AFTER);
        Self { function: FunctionState::new(0, policy), node, load: FunctionLoad::default() }
    }

    /// With containers parked, numbered from 1.
    fn cold(policy: Policy) -> Self {
        let mut function = Self::new(policy);
        function.on(Event::Configured, 0);
        for id in 1..=u64::from(policy.prepared) {
            function.on(Event::Parked(id), 0);
        }
        assert_eq!(function.parked(), policy.prepared as usize);
        function
    }

    /// The first of them is released at 5 and ready at 10, and has no connection.
    fn ready(policy: Policy) -> Self {
        let mut function = Self::cold(policy);
        function.on(Event::Demand(demand(5)), 5);
        function.arrives(1, 6);
        function.on(Event::Ready(1), 10);
        function.serves(1, 1, 11);
        function.sees(1, 0, 12);
        function
    }

    fn on(&mut self, event: Event, now_ns: u64) -> Vec<Action> {
        let actions = self.function.on(event, &self.load, now_ns, &mut self.node);
        for action in &actions {
            if let Action::Release(id, _) = action {
                self.load.instances.push((*id, InstanceLoad { open: Some(0), ..InstanceLoad::default() }));
            }
        }
        if let Event::Gone { instance, .. } = event {
            self.load.instances.retain(|(id, _)| *id != instance);
        }
        actions
    }

    /// So many connections have come into the queue.
    fn arrives(&mut self, count: u32, now_ns: u64) -> Vec<Action> {
        self.load.queued += count;
        self.on(Event::Demand(Demand::local(Trigger::Accept, now_ns)), now_ns)
    }

    /// An instance has taken so many out of the queue.
    fn serves(&mut self, id: InstanceId, count: u32, now_ns: u64) {
        self.load.queued -= count;
        self.load.accepted += u64::from(count);
        self.change(id, i64::from(count), now_ns);
        self.use_of(id).accepted += u64::from(count);
    }

    /// So many connections of an instance are open now.
    fn sees(&mut self, id: InstanceId, open: u32, now_ns: u64) {
        let before = i64::from(self.use_of(id).open.unwrap());
        self.change(id, i64::from(open) - before, now_ns);
    }

    fn change(&mut self, id: InstanceId, by: i64, now_ns: u64) {
        let seen = self.use_of(id);
        seen.open = Some(u32::try_from(i64::from(seen.open.unwrap()) + by).unwrap());
        seen.changed_ns = now_ns;
    }

    fn use_of(&mut self, id: InstanceId) -> &mut InstanceLoad {
        &mut self.load.instances.iter_mut().find(|(known, _)| *known == id).unwrap().1
    }

    fn word(&self, now_ns: u64) -> &'static str {
        self.function.summary(now_ns).as_str()
    }
}

impl Deref for Alone {
    type Target = FunctionState;

    fn deref(&self) -> &FunctionState {
        &self.function
    }
}

/// The orders among the actions, without news and the timer.
fn orders(actions: &[Action]) -> Vec<Action> {
    let order = |action: &&Action| !matches!(action, Action::Moved(..) | Action::Spent | Action::Timer(_));
    actions.iter().filter(order).copied().collect()
}

fn timer(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| if let Action::Timer(at_ns) = action { Some(*at_ns) } else { None })
}

fn moved(actions: &[Action]) -> Vec<(InstanceId, &'static str, &'static str)> {
    let news = |action: &Action| match action {
        Action::Moved(id, state, reason) => {
            Some((*id, state.map_or("gone", InstanceState::as_str), reason.as_str()))
        }
        _ => None,
    };
    actions.iter().filter_map(news).collect()
}

#[test]
fn a_syn_releases_the_parked_container_and_the_next_is_made_after_it_is_ready() {
    let mut function = Alone::new(policy(1));
    let actions = function.on(Event::Configured, 0);
    assert_eq!(orders(&actions), [Action::Prepare(1), Action::WatchQueue(QueueWatchRate::Immediate)]);
    assert_eq!(orders(&function.on(Event::Parked(1), 1)), []);
    let syn = demand(5);
    let actions = function.on(Event::Demand(syn), 5);
    assert_eq!(orders(&actions), [Action::Release(1, syn)]);
    assert_eq!(moved(&actions), [(1, "starting", "demand")]);
    assert_eq!(timer(&actions), Some(5 + 10 * SECOND), "until the client must have come");
    let joined = demand(6);
    assert_eq!(
        orders(&function.on(Event::Demand(joined), 6)),
        [Action::Suppress(joined, DecisionReason::Starting)]
    );
    let actions = function.on(Event::Ready(1), 10);
    assert_eq!(
        orders(&actions),
        [Action::Prepare(2), Action::Warm(true), Action::WatchQueue(QueueWatchRate::Slow)]
    );
    assert_eq!(moved(&actions)[0], (1, "ready", "initialised"));
    assert_eq!(function.word(10), "ready");
}

#[test]
fn demand_without_a_parked_container_waits_for_one() {
    let mut function = Alone::new(policy(0));
    assert_eq!(orders(&function.on(Event::Configured, 0)), [Action::WatchQueue(QueueWatchRate::Immediate)]);
    assert_eq!(orders(&function.on(Event::Demand(demand(5)), 5)), [Action::Prepare(1)]);
    assert_eq!(function.word(5), "starting");
    assert_eq!(orders(&function.on(Event::Demand(demand(6)), 6)), [], "one is enough for both");
    assert_eq!(orders(&function.on(Event::Parked(1), 7)), [Action::Release(1, demand(5))]);
}

#[test]
fn a_start_is_for_the_syn_also_when_its_connection_comes_before_a_container_is_made() {
    for policy in [policy(0), one_each(0)] {
        let mut function = Alone::new(policy);
        function.on(Event::Configured, 0);
        assert_eq!(orders(&function.on(Event::Demand(demand(5)), 5)), [Action::Prepare(1)]);
        assert_eq!(orders(&function.arrives(1, 6)), []);
        assert_eq!(orders(&function.on(Event::Parked(1), 7)), [Action::Release(1, demand(5))]);
    }
}

#[test]
fn a_burst_of_syns_starts_as_many_instances_as_it_needs_at_once() {
    for (concurrency, syns, prepared, released, made) in [
        (Some(1), 50, 50, 50, 0),
        (Some(1), 50, 1, 1, 49),
        (Some(10), 50, 8, 5, 0),
        (Some(50), 50, 3, 1, 0),
        (None, 50, 3, 1, 0),
    ] {
        let mut function = Alone::cold(Policy { concurrency, max_instances: 64, ..policy(prepared) });
        let mut all = Vec::new();
        for _ in 0..syns {
            all.extend(function.on(Event::Demand(demand(5)), 5));
        }
        let count = |wanted: fn(&Action) -> bool| all.iter().filter(|action| wanted(action)).count();
        assert_eq!(count(|action| matches!(action, Action::Release(..))), released, "{concurrency:?}");
        assert_eq!(count(|action| matches!(action, Action::Prepare(_))), made, "{concurrency:?}");
        // Their connections are no more demand than they were.
        let actions = function.arrives(syns, 6);
        let quiet = |action: &Action| matches!(action, Action::Suppress(..));
        assert!(orders(&actions).iter().all(quiet), "{concurrency:?}: {actions:?}");
    }
}

#[test]
fn a_syn_that_is_reported_after_its_connection_is_the_same_unit_of_demand() {
    let mut function = Alone::cold(one_each(2));
    // The first news of both at once: the start is for the SYN, as it was first.
    function.load.queued = 1;
    assert_eq!(orders(&function.on(Event::Demand(demand(8)), 10)), [Action::Release(1, demand(8))]);
    function.load.queued = 0;
    function.load.accepted = 1;
    function.use_of(1).open = Some(1);
    let mut function = Alone::cold(one_each(2));
    assert_eq!(orders(&function.arrives(1, 10)).len(), 1);
    let late = demand(9);
    assert_eq!(orders(&function.on(Event::Demand(late), 11)), [Action::Suppress(late, DecisionReason::Late)]);
    assert_eq!(orders(&function.on(Event::Demand(demand(12)), 12)), [Action::Release(2, demand(12))]);
}

#[test]
fn no_more_instances_than_allowed_and_the_rest_is_answered_in_time() {
    let timeout = Duration::from_secs(2);
    let mut function = Alone::cold(Policy { max_instances: 2, queue_timeout: timeout, ..one_each(3) });
    assert_eq!(orders(&function.arrives(5, 10)).len(), 2);
    function.on(Event::Ready(1), 20);
    function.on(Event::Ready(2), 20);
    function.serves(1, 1, 21);
    function.serves(2, 1, 21);
    let full = demand(30);
    assert_eq!(
        orders(&function.on(Event::Demand(full), 30)),
        [Action::Suppress(full, DecisionReason::Ceiling)]
    );
    // One is served in between: it was the one that had waited longest.
    function.sees(1, 0, 40);
    function.serves(1, 1, 40);
    let due = 10 + 2 * SECOND;
    assert_eq!(orders(&function.on(Event::Timer, due - 1)), []);
    assert_eq!(orders(&function.on(Event::Timer, due)), [Action::Answer(2, DecisionReason::QueueTimeout)]);
    function.load.queued = 0;
    function.load.accepted += 2;
    assert_eq!(orders(&function.on(Event::Timer, due + 1)), []);
}

#[test]
fn a_function_that_is_off_answers_at_once() {
    let mut function = Alone::new(Policy { max_instances: 0, ..policy(1) });
    assert_eq!(
        orders(&function.on(Event::Configured, 0)),
        [Action::WatchQueue(QueueWatchRate::Immediate)],
        "nothing is made"
    );
    assert_eq!(function.word(0), "off");
    let syn = demand(5);
    assert_eq!(orders(&function.on(Event::Demand(syn), 5)), [Action::Suppress(syn, DecisionReason::Off)]);
    assert!(orders(&function.arrives(1, 6)).contains(&Action::Answer(1, DecisionReason::Off)));
}

#[test]
fn provisioned_instances_are_there_without_any_demand_and_never_rest() {
    let settings = Policy { min_ready: 2, freeze_after: Some(Duration::from_secs(1)), ..one_each(0) };
    let mut function = Alone::new(settings);
    let actions = function.on(Event::Configured, 0);
    assert_eq!(orders(&actions)[..2], [Action::Prepare(1), Action::Prepare(2)]);
    for id in [1, 2] {
        let actions = function.on(Event::Parked(id), 1);
        assert_eq!(orders(&actions), [Action::Release(id, Demand::local(Trigger::Provision, 1))]);
        function.on(Event::Ready(id), 2);
    }
    for seconds in 1..20 {
        assert_eq!(orders(&function.on(Event::Timer, seconds * SECOND)), []);
    }
    // One more than provisioned is only there as long as it is needed.
    function.load.queued = 2;
    function.serves(1, 1, 20 * SECOND);
    function.serves(2, 1, 20 * SECOND);
    assert_eq!(orders(&function.arrives(1, 20 * SECOND)), [Action::Prepare(3)]);
}

#[test]
fn an_exit_makes_it_cold_again() {
    let mut function = Alone::ready(policy(1));
    function.on(Event::Parked(2), 13);
    let actions = function.on(Event::Gone { instance: 1, end: InstanceEnd::Exited }, 20);
    assert_eq!(orders(&actions), [Action::Warm(false), Action::WatchQueue(QueueWatchRate::Immediate)]);
    assert_eq!(moved(&actions), [(1, "gone", "exited")]);
    assert_eq!(function.word(20), "cold");
}

#[test]
fn an_instance_that_is_gone_is_replaced_for_those_who_wait() {
    let mut function = Alone::ready(policy(1));
    function.on(Event::Parked(2), 13);
    function.load.queued = 1;
    let actions = function.on(Event::Gone { instance: 1, end: InstanceEnd::Exited }, 5 * SECOND);
    assert!(matches!(orders(&actions)[0], Action::Release(2, Demand { trigger: Trigger::Accept, .. })));
}

#[test]
fn one_that_was_full_does_not_hang_when_its_first_place_becomes_free_in_the_last_moment() {
    let settings =
        Policy { queue_timeout: Duration::from_secs(2), max_instances: 1, concurrency: Some(2), ..policy(1) };
    let mut function = Alone::ready(settings);
    function.load.queued = 2;
    function.serves(1, 2, SECOND);
    let actions = function.arrives(1, SECOND);
    assert_eq!(timer(&actions), Some(3 * SECOND), "while it is full there is nothing to see");
    for now in (SECOND..3 * SECOND).step_by(LOOK) {
        assert_eq!(orders(&function.on(Event::Timer, now)), []);
    }
    function.sees(1, 1, 3 * SECOND - 1);
    assert_eq!(
        orders(&function.on(Event::Timer, 3 * SECOND)),
        [Action::Answer(1, DecisionReason::QueueTimeout)]
    );
    // The next waits while there is room, but not for a whole queue timeout of it.
    function.load.queued = 0;
    function.load.accepted += 1;
    function.arrives(1, 4 * SECOND);
    for now in (4 * SECOND..6 * SECOND).step_by(LOOK) {
        if now == 5 * SECOND {
            function.sees(1, 0, now);
        }
        assert_eq!(orders(&function.on(Event::Timer, now)), []);
    }
    assert_eq!(
        orders(&function.on(Event::Timer, 6 * SECOND)),
        [Action::Answer(1, DecisionReason::QueueTimeout)]
    );
}

#[test]
fn a_stop_is_asked_once_and_the_next_client_starts_another() {
    let mut function = Alone::ready(policy(1));
    assert!(orders(&function.on(Event::Stop, 20)).contains(&Action::Stop(1)));
    assert_eq!(orders(&function.on(Event::Stop, 21)), []);
    assert_eq!(function.word(21), "stopping");
    function.on(Event::Parked(2), 22);
    assert_eq!(orders(&function.on(Event::Demand(demand(23)), 23)), [Action::Release(2, demand(23))]);
    let mut single = Alone::ready(Policy { max_instances: 1, ..policy(1) });
    single.on(Event::Stop, 20);
    single.on(Event::Parked(2), 22);
    assert_eq!(orders(&single.on(Event::Demand(demand(23)), 23)), [], "not two at a time");
    let actions = single.on(Event::Gone { instance: 1, end: InstanceEnd::Asked }, 24);
    assert_eq!(orders(&actions)[0], Action::Release(2, demand(23)));
}
