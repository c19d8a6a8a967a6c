mod early;
mod random;
mod world;

use super::*;
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
        max_instances: 16,
        queue_timeout: Duration::from_secs(30),
        freeze_after: None,
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
    Demand { trigger: Trigger::Syn, trusted: false, client: None, at_ns, seen_ns: at_ns }
}

/// The only function of its node, with what is seen of its connections.
struct Alone {
    function: Function,
    node: Admission,
    load: Load,
}

impl Alone {
    fn new(policy: Policy) -> Self {
        let node = Admission::new(PLENTY, UNUSED_AFTER);
        Self { function: Function::new(0, policy), node, load: Load::default() }
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

    /// The first of them let go at 5 and ready at 10, with nobody connected.
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
                self.load.instances.push((*id, Use { open: Some(0), ..Use::default() }));
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

    fn use_of(&mut self, id: InstanceId) -> &mut Use {
        &mut self.load.instances.iter_mut().find(|(known, _)| *known == id).unwrap().1
    }

    fn word(&self, now_ns: u64) -> &'static str {
        self.function.summary(now_ns).as_str()
    }
}

impl Deref for Alone {
    type Target = Function;

    fn deref(&self) -> &Function {
        &self.function
    }
}

/// What is ordered, without what is only told and the timer.
fn orders(actions: &[Action]) -> Vec<Action> {
    let order = |action: &&Action| !matches!(action, Action::Moved(..) | Action::Timer(_));
    actions.iter().filter(order).copied().collect()
}

fn timer(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| if let Action::Timer(at_ns) = action { Some(*at_ns) } else { None })
}

fn moved(actions: &[Action]) -> Vec<(InstanceId, &'static str, &'static str)> {
    let told = |action: &Action| match action {
        Action::Moved(id, state, reason) => Some((*id, state.map_or("gone", State::as_str), reason.as_str())),
        _ => None,
    };
    actions.iter().filter_map(told).collect()
}

#[test]
fn a_syn_lets_the_parked_container_go_and_the_next_is_made_after_it_is_ready() {
    let mut function = Alone::new(policy(1));
    let actions = function.on(Event::Configured, 0);
    assert_eq!(orders(&actions), [Action::Prepare(1), Action::Watch(Watch::Close)]);
    assert_eq!(orders(&function.on(Event::Parked(1), 1)), []);
    let syn = demand(5);
    let actions = function.on(Event::Demand(syn), 5);
    assert_eq!(orders(&actions), [Action::Release(1, syn)]);
    assert_eq!(moved(&actions), [(1, "starting", "demand")]);
    assert_eq!(timer(&actions), Some(5 + 10 * SECOND), "until the client must have come");
    let joined = demand(6);
    assert_eq!(orders(&function.on(Event::Demand(joined), 6)), [Action::Suppress(joined, Reason::Starting)]);
    let actions = function.on(Event::Ready(1), 10);
    assert_eq!(orders(&actions), [Action::Prepare(2), Action::Warm(true), Action::Watch(Watch::Slow)]);
    assert_eq!(moved(&actions)[0], (1, "ready", "initialised"));
    assert_eq!(function.word(10), "ready");
}

#[test]
fn demand_without_a_parked_container_waits_for_one() {
    let mut function = Alone::new(policy(0));
    assert_eq!(orders(&function.on(Event::Configured, 0)), [Action::Watch(Watch::Close)]);
    assert_eq!(orders(&function.on(Event::Demand(demand(5)), 5)), [Action::Prepare(1)]);
    assert_eq!(function.word(5), "starting");
    assert_eq!(orders(&function.on(Event::Demand(demand(6)), 6)), [], "one is enough for both");
    assert_eq!(orders(&function.on(Event::Parked(1), 7)), [Action::Release(1, demand(5))]);
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
fn a_syn_that_is_told_of_after_its_connection_is_the_same_unit_of_demand() {
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
    assert_eq!(orders(&function.on(Event::Demand(late), 11)), [Action::Suppress(late, Reason::Late)]);
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
    assert_eq!(orders(&function.on(Event::Demand(full), 30)), [Action::Suppress(full, Reason::Ceiling)]);
    // One is served in between: it was the one that had waited longest.
    function.sees(1, 0, 40);
    function.serves(1, 1, 40);
    let due = 10 + 2 * SECOND;
    assert_eq!(orders(&function.on(Event::Timer, due - 1)), []);
    assert_eq!(orders(&function.on(Event::Timer, due)), [Action::Answer(2, Reason::QueueTimeout)]);
    function.load.queued = 0;
    function.load.accepted += 2;
    assert_eq!(orders(&function.on(Event::Timer, due + 1)), []);
}

#[test]
fn a_function_that_is_off_answers_at_once() {
    let mut function = Alone::new(Policy { max_instances: 0, ..policy(1) });
    assert_eq!(orders(&function.on(Event::Configured, 0)), [Action::Watch(Watch::Close)], "nothing is made");
    assert_eq!(function.word(0), "off");
    let syn = demand(5);
    assert_eq!(orders(&function.on(Event::Demand(syn), 5)), [Action::Suppress(syn, Reason::Off)]);
    assert!(orders(&function.arrives(1, 6)).contains(&Action::Answer(1, Reason::Off)));
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
    let actions = function.on(Event::Gone { instance: 1, end: End::Exited }, 20);
    assert_eq!(orders(&actions), [Action::Warm(false), Action::Watch(Watch::Close)]);
    assert_eq!(moved(&actions), [(1, "gone", "exited")]);
    assert_eq!(function.word(20), "cold");
}

#[test]
fn an_instance_that_is_gone_is_replaced_for_those_who_wait() {
    let mut function = Alone::ready(policy(1));
    function.on(Event::Parked(2), 13);
    function.load.queued = 1;
    let actions = function.on(Event::Gone { instance: 1, end: End::Exited }, 5 * SECOND);
    assert!(matches!(orders(&actions)[0], Action::Release(2, Demand { trigger: Trigger::Accept, .. })));
}

#[test]
fn a_crash_soon_after_ready_is_slowed_down_and_a_late_one_is_not() {
    let mut function = Alone::ready(policy(1));
    function.on(Event::Gone { instance: 1, end: End::Crashed }, 20);
    assert_eq!((function.word(20), function.retry_at_ns()), ("failed", Some(20 + 100 * MS)));
    let mut function = Alone::ready(policy(1));
    function.on(Event::Gone { instance: 1, end: End::OutOfMemory }, 2 * SECOND);
    assert_eq!(function.word(2 * SECOND), "cold");
}

#[test]
fn failed_starts_back_off_then_cool_down_and_clients_are_told() {
    let mut function = Alone::cold(policy(0));
    function.arrives(1, 0);
    let mut now = 0;
    for (instance, pause_ms) in [(1, 100), (2, 200)] {
        assert!(matches!(orders(&function.on(Event::Parked(instance), now))[..], [Action::Release(..)]));
        let actions = function.on(Event::Gone { instance, end: End::Crashed }, now);
        assert_eq!(orders(&actions), [], "it waits");
        assert_eq!(timer(&actions), Some(now + pause_ms * MS));
        let syn = demand(now);
        assert_eq!(orders(&function.on(Event::Demand(syn), now)), [Action::Suppress(syn, Reason::Backoff)]);
        now += pause_ms * MS;
        assert_eq!(orders(&function.on(Event::Timer, now)), [Action::Prepare(instance + 1)]);
    }
    function.on(Event::Parked(3), now);
    let actions = function.on(Event::Gone { instance: 3, end: End::Crashed }, now);
    assert_eq!(orders(&actions), [Action::Answer(1, Reason::Cooldown)]);
    function.load.queued = 0;
    function.load.accepted += 1;
    assert_eq!(function.word(now), "failed");
    assert!(orders(&function.arrives(1, now + SECOND)).contains(&Action::Answer(1, Reason::Cooldown)));
    function.load.queued = 0;
    function.load.accepted += 1;
    // Afterwards it is as new.
    now += 30 * SECOND;
    assert_eq!(orders(&function.on(Event::Timer, now)), []);
    assert_eq!(function.word(now), "cold");
    assert_eq!(orders(&function.arrives(1, now)), [Action::Prepare(4)]);
}

#[test]
fn an_instance_that_does_well_makes_earlier_failures_history() {
    let mut function = Alone::cold(policy(0));
    function.arrives(1, 0);
    function.on(Event::Parked(1), 0);
    function.on(Event::Gone { instance: 1, end: End::Crashed }, 0);
    function.on(Event::Timer, 100 * MS);
    function.on(Event::Parked(2), 100 * MS);
    function.on(Event::Ready(2), 101 * MS);
    assert_eq!(function.failed_starts(101 * MS), (1, false), "it may crash yet");
    function.on(Event::Timer, 2 * SECOND);
    assert_eq!((function.failed_starts(2 * SECOND), function.retry_at_ns()), ((0, false), None));
}

#[test]
fn an_instance_that_never_gets_ready_is_stopped_at_its_deadline_and_counts_as_failed() {
    let mut function = Alone::cold(policy(1));
    function.on(Event::Demand(demand(0)), 0);
    let deadline = 30 * SECOND;
    assert_eq!(
        orders(&function.on(Event::Timer, deadline - 1)),
        [Action::Unused],
        "nobody came in 10 s either"
    );
    let actions = function.on(Event::Timer, deadline);
    assert_eq!(orders(&actions)[0], Action::Stop(1));
    assert_eq!(moved(&actions)[0], (1, "stopping", "init_timeout"));
    function.on(Event::Ready(1), deadline + 1);
    assert_eq!(function.word(deadline + 1), "stopping", "too late is too late");
    function.on(Event::Gone { instance: 1, end: End::Asked }, deadline + 2);
    assert_eq!(function.word(deadline + 2), "failed");
}

#[test]
fn an_instance_that_takes_nobody_for_a_whole_queue_timeout_is_replaced() {
    let mut function = Alone::ready(Policy { queue_timeout: Duration::from_secs(2), ..policy(1) });
    function.on(Event::Parked(2), 13);
    function.arrives(1, SECOND);
    let due = 3 * SECOND;
    for now in (SECOND..due).step_by(LOOK) {
        assert_eq!(orders(&function.on(Event::Timer, now)), []);
    }
    let actions = function.on(Event::Timer, due);
    assert!(moved(&actions).contains(&(1, "stopping", "hung")), "{actions:?}");
    assert!(orders(&actions).contains(&Action::Answer(1, Reason::QueueTimeout)), "{actions:?}");
    // Where the whole machine stood still it had no time either.
    let mut function = Alone::ready(Policy { queue_timeout: Duration::from_secs(2), ..policy(1) });
    function.arrives(1, SECOND);
    assert_eq!(orders(&function.on(Event::Timer, 60 * SECOND)), [Action::Answer(1, Reason::QueueTimeout)]);
    // One that is merely full does not hang.
    let settings = Policy { queue_timeout: Duration::from_secs(2), max_instances: 1, ..one_each(1) };
    let mut function = Alone::ready(settings);
    function.load.queued = 1;
    function.serves(1, 1, SECOND);
    function.arrives(1, SECOND);
    for now in (SECOND..due).step_by(LOOK) {
        assert_eq!(orders(&function.on(Event::Timer, now)), []);
    }
    assert_eq!(orders(&function.on(Event::Timer, due)), [Action::Answer(1, Reason::QueueTimeout)]);
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
    assert_eq!(orders(&function.on(Event::Timer, 3 * SECOND)), [Action::Answer(1, Reason::QueueTimeout)]);
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
    assert_eq!(orders(&function.on(Event::Timer, 6 * SECOND)), [Action::Answer(1, Reason::QueueTimeout)]);
}

#[test]
fn one_that_always_crashes_is_let_go_no_more_often_than_allowed_and_every_client_is_answered() {
    const CLIENT_NS: u64 = 100 * MS;
    const CRASH_NS: u64 = 20 * MS;
    const END_NS: u64 = 600 * SECOND;
    let settings = Policy { queue_timeout: Duration::from_secs(2), ..policy(1) };
    let mut function = Alone::new(settings);
    // What is under way, in the order of time: clients, deaths, containers and timers.
    let mut things: std::collections::BTreeMap<(u64, u64), Option<Event>> =
        [((0, 0), Some(Event::Configured))].into();
    let clients = END_NS / CLIENT_NS;
    things.extend((1..=clients).map(|number| ((number * CLIENT_NS, number), None)));
    let mut number = clients;
    let (mut released, mut answered, mut came) = (Vec::new(), 0, VecDeque::new());
    while let Some(((now, _), event)) = things.pop_first()
        && now <= END_NS + 5 * SECOND
    {
        let actions = if let Some(event) = event {
            function.on(event, now)
        } else {
            came.push_back(now);
            function.on(Event::Demand(demand(now)), now).into_iter().chain(function.arrives(1, now)).collect()
        };
        for action in actions {
            let (later_ns, event) = match action {
                Action::Prepare(id) => (5 * MS, Event::Parked(id)),
                Action::Release(instance, _) => {
                    released.push(now);
                    (CRASH_NS, Event::Gone { instance, end: End::Crashed })
                }
                Action::Timer(at_ns) => (at_ns - now, Event::Timer),
                Action::Answer(count, _) => {
                    function.load.queued -= count;
                    function.load.accepted += u64::from(count);
                    answered += u64::from(count);
                    for came_ns in came.drain(..count as usize) {
                        assert!(now - came_ns <= nanos(settings.queue_timeout), "{came_ns} {now}");
                    }
                    continue;
                }
                _ => continue,
            };
            number += 1;
            things.insert((now + later_ns, number), Some(event));
        }
    }
    assert_eq!((answered, came.len()), (clients, 0));
    // Two back-offs and a cool-down for three attempts.
    let round_ns = nanos(settings.cooldown) + (100 + 200) * MS;
    assert_eq!(settings.start_attempts, 3);
    for attempts in released.windows(4) {
        assert!(attempts[3] - attempts[0] >= round_ns, "{attempts:?}");
    }
    assert!(
        released.len() as u64 >= 3 * (END_NS / (round_ns + SECOND)),
        "nor is it given up: {}",
        released.len()
    );
}

#[test]
fn a_prepare_that_fails_is_retried_later_and_fails_the_demand_that_waits_for_it() {
    let mut function = Alone::new(policy(1));
    function.on(Event::Configured, 0);
    assert_eq!(function.retry_at_ns(), None);
    assert_eq!(timer(&function.on(Event::PrepareFailed(1), 5)), Some(5 + 100 * MS));
    assert_eq!(function.retry_at_ns(), Some(5 + 100 * MS));
    assert_eq!(orders(&function.on(Event::Timer, 5 + 100 * MS)), [Action::Prepare(2)]);
    function.on(Event::Demand(demand(200 * MS)), 200 * MS);
    function.on(Event::PrepareFailed(2), 201 * MS);
    assert_eq!(function.word(201 * MS), "failed");
}

#[test]
fn a_container_that_dies_while_parked_is_replaced_after_a_pause() {
    let mut function = Alone::cold(policy(1));
    let actions = function.on(Event::Gone { instance: 1, end: End::Crashed }, 5);
    assert_eq!((orders(&actions), timer(&actions)), (Vec::new(), Some(5 + 100 * MS)));
    assert_eq!(orders(&function.on(Event::Timer, 5 + 100 * MS)), [Action::Prepare(2)]);
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
    let actions = single.on(Event::Gone { instance: 1, end: End::Asked }, 24);
    assert_eq!(orders(&actions)[0], Action::Release(2, demand(23)));
}

fn resting() -> Policy {
    Policy {
        freeze_after: Some(Duration::from_secs(10)),
        stop_after: Some(Duration::from_mins(1)),
        ..policy(0)
    }
}

fn frozen() -> Alone {
    let mut function = Alone::cold(resting());
    function.arrives(1, 5);
    function.on(Event::Parked(1), 5);
    function.on(Event::Ready(1), 10);
    function.serves(1, 1, 11);
    function.sees(1, 0, 12);
    let actions = function.on(Event::Timer, 12 + 10 * SECOND);
    assert_eq!(orders(&actions)[0], Action::Freeze(1));
    assert_eq!(moved(&actions), [(1, "freezing", "idle")]);
    let actions = function.on(Event::Frozen(1), 12 + 11 * SECOND);
    assert_eq!(moved(&actions), [(1, "frozen", "idle")]);
    assert_eq!(function.word(12 + 11 * SECOND), "frozen");
    function
}

#[test]
fn an_idle_instance_is_frozen_and_a_syn_thaws_it() {
    let mut function = frozen();
    let syn = demand(20 * SECOND);
    let actions = function.on(Event::Demand(syn), 20 * SECOND);
    assert_eq!(orders(&actions)[0], Action::Thaw(1, syn));
    assert_eq!(moved(&actions), [(1, "thawing", "demand")]);
    let another = demand(20 * SECOND);
    let actions = function.on(Event::Demand(another), 20 * SECOND);
    assert_eq!(orders(&actions), [Action::Suppress(another, Reason::Starting)]);
    let actions = function.on(Event::Ready(1), 20 * SECOND + 1);
    assert!(moved(&actions).contains(&(1, "ready", "initialised")));
    // It counts as idle from then on, not from before it was frozen.
    assert_eq!(orders(&function.on(Event::Timer, 29 * SECOND)), []);
}

#[test]
fn a_frozen_instance_is_stopped_when_it_was_idle_for_long_enough() {
    let mut function = frozen();
    assert_eq!(orders(&function.on(Event::Timer, 12 + 60 * SECOND - 1)), []);
    let actions = function.on(Event::Timer, 12 + 60 * SECOND);
    assert_eq!(orders(&actions), [Action::Stop(1)]);
    assert_eq!(moved(&actions), [(1, "stopping", "idle")]);
}

#[test]
fn nobody_is_frozen_or_stopped_while_somebody_is_connected() {
    let mut function = Alone::ready(resting_one());
    function.load.queued = 1;
    function.serves(1, 1, 20);
    for seconds in 1..200 {
        assert_eq!(orders(&function.on(Event::Timer, seconds * SECOND)), []);
    }
    // One that does not count is never known to be idle.
    let mut silent = Alone::ready(resting_one());
    silent.use_of(1).open = None;
    for seconds in 1..200 {
        assert_eq!(orders(&silent.on(Event::Timer, seconds * SECOND)), []);
    }
}

fn resting_one() -> Policy {
    Policy { prepared: 1, ..resting() }
}

#[test]
fn an_idle_instance_does_not_rest_while_a_client_is_expected() {
    let settings =
        Policy { freeze_after: Some(Duration::from_secs(1)), concurrency: Some(1), ..resting_one() };
    let mut function = Alone::ready(settings);
    function.on(Event::Demand(demand(SECOND)), SECOND);
    assert_eq!(orders(&function.on(Event::Timer, 5 * SECOND)), []);
    let actions = function.on(Event::Timer, 11 * SECOND);
    assert!(moved(&actions).contains(&(1, "freezing", "idle")), "he did not come: {actions:?}");
}

#[test]
fn one_that_was_frozen_with_somebody_connected_is_thawed_at_once() {
    let mut function = Alone::ready(resting_one());
    function.on(Event::Freeze, 20);
    function.load.queued = 1;
    function.serves(1, 1, 21);
    let actions = function.on(Event::Frozen(1), 22);
    assert_eq!(moved(&actions), [(1, "frozen", "idle"), (1, "thawing", "busy")]);
    assert!(matches!(orders(&actions)[..], [Action::Thaw(1, _)]), "{actions:?}");
}

#[test]
fn a_freeze_that_fails_leaves_it_up_and_is_tried_again_later() {
    for (busy, reason) in [(true, "busy"), (false, "freeze_failed")] {
        let mut function = Alone::cold(resting());
        function.arrives(1, 5);
        function.on(Event::Parked(1), 5);
        function.on(Event::Ready(1), 10);
        function.serves(1, 1, 11);
        function.sees(1, 0, 12);
        function.on(Event::Timer, 12 + 10 * SECOND);
        let actions = function.on(Event::NotFrozen { instance: 1, busy }, 11 * SECOND);
        assert_eq!(moved(&actions), [(1, "ready", reason)]);
        assert_eq!(orders(&function.on(Event::Timer, 21 * SECOND - 1)), []);
        assert_eq!(orders(&function.on(Event::Timer, 21 * SECOND))[0], Action::Freeze(1));
    }
}

#[test]
fn somebody_who_comes_while_it_is_being_frozen_thaws_it() {
    let mut function = Alone::ready(resting_one());
    assert_eq!(orders(&function.on(Event::Freeze, 20))[0], Action::Freeze(1));
    assert_eq!(orders(&function.on(Event::Demand(demand(21)), 21)), [], "it may yet refuse to be frozen");
    let actions = function.on(Event::Frozen(1), 22);
    assert_eq!(orders(&actions), [Action::Thaw(1, demand(21))]);
}

#[test]
fn an_instance_of_an_earlier_agent_is_as_good_as_one_of_its_own() {
    for (is_frozen, word) in [(false, "ready"), (true, "frozen")] {
        let mut function = Alone::new(resting_one());
        function.load.instances.push((7, Use { open: Some(0), ..Use::default() }));
        let actions = function.on(Event::Adopted { instance: 7, frozen: is_frozen }, 1);
        assert_eq!(moved(&actions)[0], (7, word, "adopted"));
        assert_eq!(function.word(1), word);
        let actions = function.on(Event::Configured, 2);
        assert!(orders(&actions).iter().all(|order| !matches!(order, Action::Prepare(id) if *id <= 7)));
        let actions = function.on(Event::Demand(demand(3)), 3);
        assert!(!actions.iter().any(|action| matches!(action, Action::Release(..))), "{actions:?}");
    }
}

#[test]
fn a_changed_function_drains_its_instances_and_starts_new_ones() {
    let mut function = Alone::ready(policy(2));
    for id in [3, 4] {
        function.on(Event::Parked(id), 13);
    }
    assert_eq!(function.parked(), 2);
    let actions = function.on(Event::Changed { policy: policy(2), replace: true }, 20);
    let orders = orders(&actions);
    assert!(orders.contains(&Action::Stop(1)) && orders.contains(&Action::Discard(3)), "{orders:?}");
    assert!(moved(&actions).contains(&(1, "stopping", "replaced")));
    let made: Vec<_> = orders.iter().filter(|order| matches!(order, Action::Prepare(_))).collect();
    assert_eq!(made.len(), 2);
    // One that was being made then is of no use.
    let mut function = Alone::new(policy(1));
    function.on(Event::Configured, 0);
    function.on(Event::Changed { policy: policy(1), replace: true }, 1);
    assert!(super::tests::orders(&function.on(Event::Parked(1), 2)).contains(&Action::Discard(1)));
    // Where only numbers changed everything stays.
    let mut function = Alone::ready(policy(1));
    let changed = Event::Changed { policy: Policy { max_instances: 3, ..policy(1) }, replace: false };
    assert!(!super::tests::orders(&function.on(changed, 20)).contains(&Action::Stop(1)));
}

#[test]
fn shutdown_stops_everything_and_nothing_starts_afterwards() {
    let mut function = Alone::ready(policy(1));
    function.on(Event::Parked(2), 13);
    let actions = function.on(Event::Shutdown, 20);
    let expected = [Action::Stop(1), Action::Discard(2), Action::Watch(Watch::Off)];
    assert_eq!(orders(&actions), expected);
    assert_eq!(orders(&function.on(Event::Parked(3), 21)), []);
    let syn = demand(22);
    assert_eq!(orders(&function.on(Event::Demand(syn), 22)), [Action::Suppress(syn, Reason::Closed)]);
    assert_eq!(function.word(22), "closed");
}
