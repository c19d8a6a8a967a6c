//! SYNs and knocks: duplicates, budgets and trials.

use super::*;
use crate::event::Client;

const SECOND: u64 = 1_000 * MS;

/// A node of functions with one parked container each, numbered 1.
struct Node {
    functions: Vec<Function>,
    admission: Admission,
}

impl Node {
    fn new(functions: u32, own: Rates, global: Rates) -> Self {
        let mut admission = Admission::new(global, UNUSED_AFTER);
        let policy = Policy { starts: own, ..policy(1) };
        let functions = (0..functions).map(|number| {
            let mut function = Function::new(number, policy);
            function.on(Event::Configured, 0, &mut admission);
            function.on(Event::Parked(1), 0, &mut admission);
            function
        });
        Self { functions: functions.collect(), admission }
    }

    fn on(&mut self, function: usize, event: Event, now_ns: u64) -> Vec<Action> {
        self.functions[function].on(event, now_ns, &mut self.admission)
    }

    fn ask(&mut self, function: usize, demand: Demand, now_ns: u64) -> Vec<Action> {
        self.on(function, Event::Demand(demand), now_ns)
    }

    fn rates(&self, function: usize) -> (u32, u32) {
        (self.functions[function].rate(), self.admission.rate())
    }
}

fn rates(min: u32, max: u32) -> Rates {
    Rates { min, max }
}

fn from(client: u16, trigger: Trigger) -> Demand {
    let address = format!("198.51.100.7:{client}").parse().unwrap();
    let isn = if trigger == Trigger::Syn { u32::from(client) + 1 } else { 0 };
    Demand { trigger, client: Some(Client { address, isn }), ..demand(0) }
}

fn syn(client: u16) -> Demand {
    from(client, Trigger::Syn)
}

fn accept(now_ns: u64) -> Demand {
    Demand::local(Trigger::Accept, now_ns)
}

fn released(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Release(..)))
}

fn suppressed(actions: &[Action]) -> Option<Reason> {
    actions.iter().find_map(|action| match action {
        Action::Suppress(_, reason) => Some(*reason),
        _ => None,
    })
}

#[test]
fn the_second_sensor_and_retransmissions_are_duplicates_also_of_a_refused_syn() {
    for budget in [4, 1] {
        let mut node = Node::new(2, rates(1, 4), rates(1, budget));
        if budget == 1 {
            assert!(released(&node.ask(1, syn(999), 0)), "takes the only start of the node");
        }
        let first = node.ask(0, syn(7), 0);
        assert_eq!(released(&first), budget == 4);
        let lookup = from(7, Trigger::Lookup);
        for (demand, seconds) in [(lookup, 0), (syn(7), 1), (syn(7), 3), (syn(7), 7)] {
            let actions = node.ask(0, demand, seconds * SECOND);
            assert_eq!(actions, [Action::Suppress(demand, Reason::Duplicate)]);
        }
    }
}

#[test]
fn without_a_start_in_the_budget_a_function_stays_cold_and_its_connection_starts_it() {
    for (own, global) in [(rates(1, 1), PLENTY), (PLENTY, rates(1, 1))] {
        let mut node = Node::new(1, own, global);
        assert!(released(&node.ask(0, syn(1), 0)));
        node.ask(0, accept(1), 1);
        node.on(0, Event::Ready(1), 2);
        node.on(0, Event::Parked(2), 3);
        node.on(0, Event::Gone { instance: 1, clean: true }, 4);
        assert_eq!(node.ask(0, syn(2), 5), [Action::Suppress(syn(2), Reason::Budget)]);
        assert_eq!(node.functions[0].phase(), Phase::Cold);
        assert_eq!(node.functions[0].parked(), 1);
        assert!(released(&node.ask(0, accept(6), 6)));
    }
}

#[test]
fn a_budget_is_not_spent_when_the_other_refuses() {
    let mut node = Node::new(2, rates(2, 2), rates(1, 1));
    assert!(released(&node.ask(1, syn(1), 0)));
    for client in 2..50 {
        assert_eq!(suppressed(&node.ask(0, syn(client), 0)), Some(Reason::Budget));
    }
    assert!(released(&node.ask(0, syn(50), SECOND)), "the function's own budget was left alone");
}

#[test]
fn what_joins_an_instance_needs_no_start() {
    let mut node = Node::new(1, rates(1, 1), rates(1, 1));
    assert!(released(&node.ask(0, syn(1), 0)));
    assert_eq!(suppressed(&node.ask(0, syn(2), 1)), Some(Reason::Starting));
    node.on(0, Event::Ready(1), 2);
    assert_eq!(suppressed(&node.ask(0, syn(3), 3)), Some(Reason::Ready));
}

#[test]
fn keys_connections_and_operators_need_no_start() {
    let key = |trigger| Demand { trusted: true, ..from(60_000, trigger) };
    for demand in [
        key(Trigger::Syn),
        key(Trigger::Lookup),
        key(Trigger::Knock),
        accept(0),
        Demand::local(Trigger::Api, 0),
    ] {
        let mut node = Node::new(2, rates(1, 1), rates(1, 1));
        node.ask(1, syn(1), 0);
        assert_eq!(suppressed(&node.ask(0, syn(2), 0)), Some(Reason::Budget));
        assert!(released(&node.ask(0, demand, 0)), "{demand:?}");
    }
}

#[test]
fn a_key_starts_what_the_same_syn_without_it_could_not() {
    let mut node = Node::new(2, rates(1, 1), rates(1, 1));
    node.ask(1, syn(1), 0);
    assert_eq!(suppressed(&node.ask(0, syn(2), 0)), Some(Reason::Budget));
    let with_key = Demand { trusted: true, ..syn(2) };
    assert!(released(&node.ask(0, with_key, 1)));
    assert_eq!(suppressed(&node.ask(0, with_key, 2)), Some(Reason::Duplicate));
}

#[test]
fn a_start_without_a_connection_is_unused_at_its_deadline_once() {
    for trigger in [Trigger::Syn, Trigger::Lookup, Trigger::Knock] {
        let mut node = Node::new(1, rates(1, 8), rates(1, 32));
        let actions = node.ask(0, from(1, trigger), 0);
        assert!(actions.contains(&Action::Timer(10 * SECOND)));
        node.on(0, Event::Ready(1), SECOND);
        assert!(!node.on(0, Event::Timer, 10 * SECOND - 1).contains(&Action::Unused));
        assert!(node.on(0, Event::Timer, 10 * SECOND).contains(&Action::Unused), "{trigger}");
        assert_eq!(node.rates(0), (4, 16));
        for event in [Event::Timer, Event::Served(1), Event::Gone { instance: 1, clean: true }] {
            assert!(!node.on(0, event, 30 * SECOND).contains(&Action::Unused));
        }
        assert_eq!(node.rates(0), (4, 16));
    }
}

#[test]
fn a_connection_in_the_queue_or_a_first_answer_confirms_a_start_once() {
    let waits = |at| Event::Demand(accept(at));
    for (event, when) in [(waits(1), 1), (waits(2), 3), (Event::Served(1), 5)] {
        let mut node = Node::new(1, rates(1, 8), rates(1, 32));
        node.functions[0].starts.unused(0);
        node.admission.starts.unused(0);
        assert_eq!(node.rates(0), (4, 16));
        node.ask(0, syn(1), 0);
        if when > 2 {
            node.on(0, Event::Ready(1), 2);
        }
        node.on(0, event, when);
        node.on(0, Event::Served(1), 6);
        assert_eq!(node.rates(0), (5, 17), "{event:?}");
        assert!(!node.on(0, Event::Timer, 20 * SECOND).contains(&Action::Unused));
        assert_eq!(node.rates(0), (5, 17));
    }
}

#[test]
fn a_word_that_comes_too_late_or_from_another_instance_is_not_believed() {
    let mut node = Node::new(1, rates(1, 8), rates(1, 32));
    node.ask(0, syn(1), 0);
    node.on(0, Event::Ready(1), 1);
    assert!(!node.on(0, Event::Served(9), 2).contains(&Action::Unused));
    assert!(node.on(0, Event::Served(1), 10 * SECOND).contains(&Action::Unused), "before the timer came");
}

#[test]
fn starts_with_a_key_are_counted_and_teach_the_budgets_nothing() {
    let mut node = Node::new(1, rates(1, 8), rates(1, 32));
    let with_key = Demand { trusted: true, ..syn(1) };
    node.ask(0, with_key, 0);
    assert!(node.on(0, Event::Timer, 10 * SECOND).contains(&Action::Unused));
    assert_eq!(node.rates(0), (8, 32));
}

#[test]
fn starts_for_connections_and_operators_are_not_on_trial() {
    for demand in [accept(0), Demand::local(Trigger::Api, 0)] {
        let mut node = Node::new(1, rates(1, 8), rates(1, 32));
        assert!(released(&node.ask(0, demand, 0)));
        assert!(!node.on(0, Event::Timer, 20 * SECOND).contains(&Action::Unused));
    }
}

#[test]
fn what_joined_or_was_refused_is_not_unused() {
    let mut node = Node::new(2, rates(1, 8), rates(1, 1));
    node.ask(1, syn(1), 0);
    node.ask(1, syn(2), 0);
    node.ask(0, syn(3), 0);
    let unused = |actions: &[Action]| actions.iter().filter(|action| **action == Action::Unused).count();
    assert_eq!(unused(&node.on(1, Event::Timer, 20 * SECOND)), 1);
    assert_eq!(unused(&node.on(0, Event::Timer, 20 * SECOND)), 0);
}

#[test]
fn a_start_that_fails_says_nothing_about_its_client() {
    let mut node = Node::new(1, rates(1, 8), rates(1, 32));
    node.ask(0, syn(1), 0);
    node.on(0, Event::Gone { instance: 1, clean: false }, 1);
    assert!(!node.on(0, Event::Timer, 20 * SECOND).contains(&Action::Unused));
    assert_eq!(node.rates(0), (8, 32));
}

#[test]
fn an_instance_that_leaves_early_keeps_its_deadline_until_the_next_start() {
    let mut node = Node::new(1, rates(1, 8), rates(1, 32));
    node.ask(0, syn(1), 0);
    node.on(0, Event::Ready(1), 1);
    node.on(0, Event::Parked(2), 2);
    assert!(!node.on(0, Event::Gone { instance: 1, clean: true }, SECOND).contains(&Action::Unused));
    assert!(node.ask(0, syn(2), 2 * SECOND).contains(&Action::Unused), "two starts, one of them unused");
    assert!(!node.on(0, Event::Timer, 10 * SECOND).contains(&Action::Unused), "the second has its own time");
    assert!(node.on(0, Event::Timer, 12 * SECOND).contains(&Action::Unused));
}

/// A flood: SYNs from anywhere, to any function, with containers that come and go as they like.
#[derive(Debug, Clone, Copy)]
enum Step {
    Syn(u16),
    Lookup(u16),
    WithKey(u16),
    Accept,
    Served,
    Timer,
    Ready,
    Gone,
    Crash,
    Stop,
}

fn step() -> impl Strategy<Value = (usize, Step, u64)> {
    let kind = prop_oneof![
        6 => (0u16..300).prop_map(Step::Syn),
        3 => (0u16..300).prop_map(Step::Lookup),
        1 => (0u16..300).prop_map(Step::WithKey),
        1 => Just(Step::Accept),
        1 => Just(Step::Served),
        1 => Just(Step::Timer),
        3 => Just(Step::Ready),
        3 => Just(Step::Gone),
        1 => Just(Step::Crash),
        1 => Just(Step::Stop),
    ];
    (0usize..4, kind, prop_oneof![4 => Just(0u64), 4 => 1u64..100, 1 => 1_000u64..5_000])
}

/// Puts what a function ordered in its place: containers are parked as soon as they are wanted.
fn settle(node: &mut Node, function: usize, actions: Vec<Action>, now_ns: u64) -> Vec<Action> {
    let mut all = Vec::new();
    let mut orders = actions;
    while !orders.is_empty() {
        let prepared: Vec<_> = orders
            .iter()
            .filter_map(|action| match action {
                Action::Prepare(instance, _) => Some(*instance),
                _ => None,
            })
            .collect();
        all.append(&mut orders);
        for instance in prepared {
            orders.extend(node.on(function, Event::Parked(instance), now_ns));
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn in_any_schedule_open_starts_stay_within_both_budgets_and_every_trial_ends_once(
        steps in prop::collection::vec(step(), 0..400),
        own in 1u32..4,
        global in 1u32..8,
    ) {
        let mut node = Node::new(4, rates(1, own), rates(1, global));
        let mut now_ns = 0;
        // Times of open starts by function; and for each function whether a trial is under way.
        let mut starts: Vec<(usize, u64)> = Vec::new();
        let mut on_trial = [false; 4];
        for (function, step, later_ms) in steps {
            now_ns += later_ms * MS;
            let phase = node.functions[function].phase();
            let event = match step {
                Step::Syn(client) => Some(Event::Demand(syn(client))),
                Step::Lookup(client) => Some(Event::Demand(from(client, Trigger::Lookup))),
                Step::WithKey(client) => Some(Event::Demand(Demand { trusted: true, ..syn(client) })),
                Step::Accept => Some(Event::Demand(accept(now_ns))),
                Step::Served => phase.instance().map(Event::Served),
                Step::Timer => Some(Event::Timer),
                Step::Ready => phase.instance().map(Event::Ready),
                Step::Gone => phase.instance().map(|instance| Event::Gone { instance, clean: true }),
                Step::Crash => phase.instance().map(|instance| Event::Gone { instance, clean: false }),
                Step::Stop => Some(Event::Stop),
            };
            let Some(event) = event else { continue };
            let actions = node.on(function, event, now_ns);
            let actions = settle(&mut node, function, actions, now_ns);
            for action in actions {
                match action {
                    Action::Unused => {
                        prop_assert!(on_trial[function], "unused without a trial");
                        on_trial[function] = false;
                    }
                    Action::Release(_, demand) if demand.is_open() => starts.push((function, now_ns)),
                    _ => {}
                }
            }
            on_trial[function] = node.functions[function].trial.is_some();
        }
        for (function, on_trial) in on_trial.into_iter().enumerate() {
            let actions = node.on(function, Event::Timer, now_ns + 10 * SECOND);
            let unused = actions.iter().filter(|action| **action == Action::Unused).count();
            prop_assert_eq!(unused, usize::from(on_trial), "each ends at its deadline at the latest");
        }
        for function in [None, Some(0), Some(1), Some(2), Some(3)] {
            let rate = if function.is_some() { own } else { global };
            let times: Vec<_> =
                starts.iter().filter(|(f, _)| function.is_none_or(|own| own == *f)).map(|(_, at)| *at).collect();
            for (first, from) in times.iter().enumerate() {
                for (last, to) in times.iter().enumerate().skip(first) {
                    let allowed = u64::from(rate) * (SECOND + (to - from)) / SECOND;
                    prop_assert!(u64::try_from(last - first + 1).unwrap() <= allowed, "{function:?}");
                }
            }
        }
    }
}
