mod early;

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;
use std::ops::Deref;

const MS: u64 = 1_000_000;
const UNUSED_AFTER: Duration = Duration::from_secs(10);

/// Budgets that are no matter.
const PLENTY: Rates = Rates { min: 1_000, max: 1_000 };

fn policy(prepared: u32) -> Policy {
    Policy {
        prepared,
        init_timeout: Duration::from_secs(30),
        retry_max: Duration::from_secs(5),
        unused_after: UNUSED_AFTER,
        starts: PLENTY,
    }
}

/// A SYN without a key, of a client of its own.
fn demand(at_ns: u64) -> Demand {
    Demand { trigger: Trigger::Syn, trusted: false, client: None, at_ns, seen_ns: at_ns }
}

/// The only function of its node.
struct Alone {
    function: Function,
    node: Admission,
}

impl Alone {
    fn new(policy: Policy) -> Self {
        Self { function: Function::new(0, policy), node: Admission::new(PLENTY, UNUSED_AFTER) }
    }

    fn on(&mut self, event: Event, now_ns: u64) -> Vec<Action> {
        self.function.on(event, now_ns, &mut self.node)
    }
}

impl Deref for Alone {
    type Target = Function;

    fn deref(&self) -> &Function {
        &self.function
    }
}

/// A function with one parked container, numbered 1.
fn cold() -> Alone {
    let mut function = Alone::new(policy(1));
    let actions = function.on(Event::Configured, 0);
    assert_eq!(actions, [Action::Watch, Action::Prepare(1, Reason::Refill)]);
    assert_eq!(function.on(Event::Parked(1), 1), []);
    function
}

fn ready() -> Alone {
    let mut function = cold();
    function.on(Event::Demand(demand(5)), 5);
    function.on(Event::Ready(1), 10);
    function
}

#[test]
fn a_syn_lets_the_parked_container_go_and_the_next_is_made_after_it_is_ready() {
    let mut function = cold();
    let syn = demand(5);
    let (init, unused) = (Action::Timer(5 + 30_000 * MS), Action::Timer(5 + 10_000 * MS));
    assert_eq!(function.on(Event::Demand(syn), 5), [Action::Release(1, syn), init, unused]);
    let joined = demand(6);
    assert_eq!(function.on(Event::Demand(joined), 6), [Action::Suppress(joined, Reason::Starting)]);
    let actions = function.on(Event::Ready(1), 10);
    assert_eq!(actions, [Action::Warm(true), Action::Unwatch, Action::Prepare(2, Reason::Refill)]);
    assert_eq!(function.phase().as_str(), "ready");
}

#[test]
fn demand_without_a_parked_container_waits_for_one() {
    let mut function = Alone::new(policy(0));
    assert_eq!(function.on(Event::Configured, 0), [Action::Watch]);
    let unused = Action::Timer(5 + 10_000 * MS);
    assert_eq!(function.on(Event::Demand(demand(5)), 5), [unused, Action::Prepare(1, Reason::Cold)]);
    assert_eq!(function.on(Event::Demand(demand(6)), 6), [Action::Suppress(demand(6), Reason::Starting)]);
    assert_eq!(function.on(Event::Parked(1), 7)[0], Action::Release(1, demand(5)));
}

#[test]
fn demand_during_a_prepare_takes_the_one_under_way() {
    let mut function = Alone::new(policy(1));
    function.on(Event::Configured, 0);
    assert_eq!(function.on(Event::Demand(demand(5)), 5), [Action::Timer(5 + 10_000 * MS)]);
    assert_eq!(function.on(Event::Parked(1), 7)[0], Action::Release(1, demand(5)));
}

#[test]
fn an_exit_makes_it_cold_again() {
    let mut function = ready();
    function.on(Event::Parked(2), 11);
    let actions = function.on(Event::Gone { instance: 1, clean: true }, 20);
    assert_eq!(actions, [Action::Warm(false), Action::Watch]);
    assert_eq!(function.phase(), Phase::Cold);
}

#[test]
fn a_crash_soon_after_ready_is_slowed_down_and_a_late_one_is_not() {
    let mut function = ready();
    function.on(Event::Gone { instance: 1, clean: false }, 20);
    assert_eq!(function.phase(), Phase::Failed { until_ns: 20 + 100 * MS });
    let mut function = ready();
    function.on(Event::Gone { instance: 1, clean: false }, 2_000 * MS);
    assert_eq!(function.phase(), Phase::Cold);
}

#[test]
fn failed_starts_back_off_exponentially_and_look_for_waiting_clients_afterwards() {
    let mut function = Alone::new(policy(0));
    function.on(Event::Configured, 0);
    let mut now = 0;
    for (instance, delay_ms) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1600), (6, 3200), (7, 5000)] {
        function.on(Event::Demand(demand(now)), now);
        function.on(Event::Parked(instance), now);
        let actions = function.on(Event::Gone { instance, clean: false }, now);
        let until = now + delay_ms * MS;
        assert_eq!(actions, [Action::Unwatch, Action::Timer(until)]);
        assert_eq!(function.retry_at_ns(), Some(until));
        assert_eq!(
            function.on(Event::Demand(demand(now)), now),
            [Action::Suppress(demand(now), Reason::Backoff)]
        );
        assert_eq!(function.on(Event::Timer, until - 1), []);
        assert_eq!(function.on(Event::Timer, until), [Action::Watch]);
        now = until;
    }
}

#[test]
fn an_instance_that_never_gets_ready_is_stopped_at_its_deadline_and_counts_as_failed() {
    let mut function = cold();
    function.on(Event::Demand(demand(0)), 0);
    let deadline = 30_000 * MS;
    assert_eq!(function.on(Event::Timer, deadline - 1), [Action::Unused], "nobody came in 10 s either");
    assert_eq!(function.on(Event::Timer, deadline)[0], Action::Stop(1, Reason::InitTimeout));
    function.on(Event::Ready(1), deadline + 1);
    assert_eq!(function.phase().as_str(), "stopping", "too late is too late");
    function.on(Event::Gone { instance: 1, clean: true }, deadline + 2);
    assert_eq!(function.phase().as_str(), "failed");
}

#[test]
fn a_prepare_that_fails_is_retried_later_and_fails_the_demand_that_waits_for_it() {
    let mut function = Alone::new(policy(1));
    function.on(Event::Configured, 0);
    assert_eq!(function.retry_at_ns(), None);
    assert_eq!(function.on(Event::PrepareFailed(1), 5), [Action::Timer(5 + 100 * MS)]);
    assert_eq!(function.retry_at_ns(), Some(5 + 100 * MS));
    assert_eq!(function.on(Event::Timer, 5 + 100 * MS), [Action::Prepare(2, Reason::Refill)]);
    function.on(Event::Demand(demand(200 * MS)), 200 * MS);
    function.on(Event::PrepareFailed(2), 201 * MS);
    assert_eq!(function.phase().as_str(), "failed");
}

#[test]
fn a_container_that_dies_while_parked_is_replaced_after_a_pause() {
    let mut function = cold();
    let actions = function.on(Event::Gone { instance: 1, clean: false }, 5);
    assert_eq!(actions, [Action::Timer(5 + 100 * MS)]);
    assert_eq!(function.on(Event::Timer, 5 + 100 * MS), [Action::Prepare(2, Reason::Refill)]);
}

#[test]
fn a_stop_is_asked_once_and_ends_cold() {
    let mut function = ready();
    assert_eq!(function.on(Event::Stop, 20)[0], Action::Stop(1, Reason::Requested));
    assert_eq!(function.on(Event::Stop, 21), []);
    let late = demand(22);
    assert_eq!(function.on(Event::Demand(late), 22), [Action::Suppress(late, Reason::Stopping)]);
    function.on(Event::Parked(2), 23);
    assert_eq!(
        function.on(Event::Gone { instance: 1, clean: true }, 24),
        [Action::Warm(false), Action::Watch]
    );
}

#[test]
fn shutdown_stops_everything_and_nothing_starts_afterwards() {
    let mut function = ready();
    function.on(Event::Parked(2), 11);
    let actions = function.on(Event::Shutdown, 20);
    assert_eq!(actions, [Action::Stop(1, Reason::Closed), Action::Unwatch, Action::Discard(2)]);
    assert_eq!(function.on(Event::Parked(3), 21), [Action::Discard(3)]);
    assert_eq!(function.on(Event::Demand(demand(22)), 22), [Action::Suppress(demand(22), Reason::Closed)]);
}

/// A node that carries actions out in random order, late, twice or not at all.
#[derive(Default)]
struct World {
    preparing: HashSet<InstanceId>,
    parked: HashSet<InstanceId>,
    running: HashSet<InstanceId>,
    watching: bool,
    timers: Vec<u64>,
}

impl World {
    fn apply(&mut self, actions: Vec<Action>, prepared: u32) {
        for action in actions {
            match action {
                Action::Prepare(instance, _) => assert!(self.preparing.insert(instance), "prepared twice"),
                Action::Release(instance, _) => {
                    assert!(self.parked.remove(&instance), "released what was not parked");
                    assert!(self.running.is_empty(), "two instances at once");
                    self.running.insert(instance);
                }
                Action::Stop(instance, _) => assert!(self.running.contains(&instance)),
                Action::Discard(instance) => assert!(self.parked.remove(&instance)),
                Action::Watch => self.watching = true,
                Action::Unwatch => self.watching = false,
                Action::Timer(at) => self.timers.push(at),
                Action::Suppress(..) | Action::Unused | Action::Warm(_) => {}
            }
        }
        let most = usize::try_from(prepared.max(1)).unwrap();
        assert!(self.parked.len() + self.preparing.len() <= most, "more parked than configured");
    }
}

/// One random step: what happens, and how much later in milliseconds.
fn step() -> impl Strategy<Value = (u8, u64)> {
    (0u8..10, prop_oneof![Just(0), 1u64..50, 1_000u64..100_000])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn any_schedule_keeps_single_flight_and_comes_back_to_rest(
        prepared in 0u32..4,
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut function = Alone::new(policy(prepared));
        let mut world = World::default();
        let mut now = 0;
        world.apply(function.on(Event::Configured, now), prepared);
        for (kind, later_ms) in steps {
            now += later_ms * MS;
            let some = |set: &HashSet<InstanceId>| set.iter().min().copied();
            let event = match kind {
                0..=2 => Some(Event::Demand(demand(now))),
                3 => some(&world.preparing).inspect(|i| { world.preparing.remove(i); world.parked.insert(*i); }).map(Event::Parked),
                4 => some(&world.preparing).inspect(|i| { world.preparing.remove(i); }).map(Event::PrepareFailed),
                5 => some(&world.running).map(Event::Ready),
                6 => some(&world.running).inspect(|i| { world.running.remove(i); }).map(|instance| Event::Gone { instance, clean: later_ms % 2 == 0 }),
                7 => some(&world.parked).inspect(|i| { world.parked.remove(i); }).map(|instance| Event::Gone { instance, clean: false }),
                8 => Some(Event::Stop),
                _ => Some(Event::Timer),
            };
            if let Some(event) = event {
                world.apply(function.on(event, now), prepared);
            }
        }
        // Everything that was asked for now happens; a client still waits.
        for _ in 0..64 {
            now += 60_000 * MS;
            world.apply(function.on(Event::Timer, now), prepared);
            if let Some(instance) = world.preparing.iter().min().copied() {
                world.preparing.remove(&instance);
                world.parked.insert(instance);
                world.apply(function.on(Event::Parked(instance), now), prepared);
            }
            if let Phase::Stopping { instance, .. } = function.phase() {
                world.running.remove(&instance);
                world.apply(function.on(Event::Gone { instance, clean: true }, now), prepared);
            }
            if world.watching {
                world.apply(function.on(Event::Demand(demand(now)), now), prepared);
            }
            if let Phase::Starting { instance, .. } = function.phase() {
                world.apply(function.on(Event::Ready(instance), now), prepared);
            }
        }
        let at_rest = matches!(function.phase(), Phase::Ready { .. });
        prop_assert!(at_rest, "the waiting client is served: {:?}", function.phase());
        prop_assert_eq!(function.parked(), usize::try_from(prepared).unwrap());
    }
}
