//! SYNs and knocks: duplicates, budgets and expected connections.

mod flood;

use super::*;
use crate::event::ClientIdentity;

/// A node of functions with one parked container each, numbered 1. Their instances count no connections: what is
/// known of those is the queue, and what the instances report.
struct Node {
    functions: Vec<FunctionState>,
    loads: Vec<FunctionLoad>,
    admission: Admission,
}

impl Node {
    fn new(functions: u32, own: Rates, global: Rates) -> Self {
        let mut admission = Admission::new(global, global, UNUSED_AFTER);
        let policy = Policy { starts: own, ..policy(1) };
        let cold = |number| {
            let mut function = FunctionState::new(number, policy);
            function.on(Event::Configured, &FunctionLoad::default(), 0, &mut admission);
            function.on(Event::Parked(1), &FunctionLoad::default(), 0, &mut admission);
            function
        };
        let functions: Vec<_> = (0..functions).map(cold).collect();
        Self { loads: vec![FunctionLoad::default(); functions.len()], functions, admission }
    }

    fn on(&mut self, function: usize, event: Event, now_ns: u64) -> Vec<Action> {
        let load = &mut self.loads[function];
        if let Event::Ready(_) = event {
            load.queued = 0;
        }
        let actions = self.functions[function].on(event, load, now_ns, &mut self.admission);
        for action in &actions {
            match action {
                Action::Release(id, _) => load.instances.push((*id, InstanceLoad::default())),
                Action::Answer(count, _) => load.queued -= count,
                _ => {}
            }
        }
        if let Event::Gone { instance, .. } = event {
            load.instances.retain(|(id, _)| *id != instance);
        }
        actions
    }

    fn ask(&mut self, function: usize, demand: Demand, now_ns: u64) -> Vec<Action> {
        self.loads[function].queued += u32::from(demand.trigger == Trigger::Accept);
        self.on(function, Event::Demand(demand), now_ns)
    }

    fn ends(&mut self, function: usize, instance: InstanceId, end: InstanceEnd, now_ns: u64) -> Vec<Action> {
        self.on(function, Event::Gone { instance, end }, now_ns)
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
    Demand { trigger, client: Some(ClientIdentity { address, isn }), ..demand(0) }
}

/// Told of at once.
fn syn(client: u16, now_ns: u64) -> Demand {
    Demand { at_ns: now_ns, ..from(client, Trigger::Syn) }
}

fn accept(now_ns: u64) -> Demand {
    Demand::local(Trigger::Accept, now_ns)
}

fn released(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Release(..)))
}

fn unused(actions: &[Action]) -> usize {
    actions.iter().filter(|action| **action == Action::Unused).count()
}

fn suppressed(actions: &[Action]) -> Option<DecisionReason> {
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
            assert!(released(&node.ask(1, syn(999, 0), 0)), "takes the only start of the node");
        }
        let first = node.ask(0, syn(7, 0), 0);
        assert_eq!(released(&first), budget == 4);
        let lookup = from(7, Trigger::Lookup);
        for (demand, seconds) in [(lookup, 0), (syn(7, 0), 1), (syn(7, 0), 3), (syn(7, 0), 7)] {
            let actions = node.ask(0, demand, seconds * SECOND);
            assert_eq!(orders(&actions), [Action::Suppress(demand, DecisionReason::Duplicate)]);
        }
    }
}

#[test]
fn without_a_start_in_the_budget_a_function_stays_cold_and_its_connection_starts_it() {
    for (own, global) in [(rates(1, 1), PLENTY), (PLENTY, rates(1, 1))] {
        let mut node = Node::new(1, own, global);
        assert!(released(&node.ask(0, syn(1, 0), 0)));
        node.ask(0, accept(1), 1);
        node.on(0, Event::Ready(1), 2);
        node.on(0, Event::Parked(2), 3);
        node.ends(0, 1, InstanceEnd::Exited, 4);
        assert_eq!(orders(&node.ask(0, syn(2, 5), 5)), [Action::Suppress(syn(2, 5), DecisionReason::Budget)]);
        assert_eq!((node.functions[0].summary(5), node.functions[0].parked()), (Summary::Cold, 1));
        assert!(released(&node.ask(0, accept(6), 6)));
    }
}

#[test]
fn a_budget_is_not_spent_when_the_other_refuses() {
    let mut node = Node::new(2, rates(2, 2), rates(1, 1));
    assert!(released(&node.ask(1, syn(1, 0), 0)));
    for client in 2..50 {
        assert_eq!(suppressed(&node.ask(0, syn(client, 0), 0)), Some(DecisionReason::Budget));
    }
    assert!(released(&node.ask(0, syn(50, SECOND), SECOND)), "the function's own budget was left alone");
}

#[test]
fn what_joins_an_instance_needs_no_start() {
    let mut node = Node::new(1, rates(1, 1), rates(1, 1));
    assert!(released(&node.ask(0, syn(1, 0), 0)));
    assert_eq!(suppressed(&node.ask(0, syn(2, 1), 1)), Some(DecisionReason::Starting));
    node.on(0, Event::Ready(1), 2);
    assert_eq!(suppressed(&node.ask(0, syn(3, 3), 3)), Some(DecisionReason::Ready));
}

#[test]
fn what_needs_an_instance_more_needs_a_start() {
    let mut function = Alone::cold(one_each(3));
    function.node = Admission::new(rates(1, 2), rates(1, 2), UNUSED_AFTER);
    for (client, refused) in [(1, None), (2, None), (3, Some(DecisionReason::Budget))] {
        let actions = function.on(Event::Demand(syn(client, 5)), 5);
        assert_eq!((released(&actions), suppressed(&actions)), (refused.is_none(), refused));
    }
    let actions = function.arrives(3, 6);
    assert!(released(&actions), "the connection itself is demand: {actions:?}");
}

#[test]
fn keys_connections_and_operators_need_no_start() {
    let key = |trigger| Demand { standing: Standing::Key, ..from(60_000, trigger) };
    for demand in [
        key(Trigger::Syn),
        key(Trigger::Lookup),
        key(Trigger::Knock),
        accept(0),
        Demand::local(Trigger::Api, 0),
    ] {
        let mut node = Node::new(2, rates(1, 1), rates(1, 1));
        node.ask(1, syn(1, 0), 0);
        assert_eq!(suppressed(&node.ask(0, syn(2, 0), 0)), Some(DecisionReason::Budget));
        assert!(released(&node.ask(0, demand, 0)), "{demand:?}");
    }
}

#[test]
fn a_key_starts_what_the_same_syn_without_it_could_not() {
    let mut node = Node::new(2, rates(1, 1), rates(1, 1));
    node.ask(1, syn(1, 0), 0);
    assert_eq!(suppressed(&node.ask(0, syn(2, 0), 0)), Some(DecisionReason::Budget));
    let with_key = Demand { standing: Standing::Key, ..syn(2, 0) };
    assert!(released(&node.ask(0, with_key, 1)));
    assert_eq!(suppressed(&node.ask(0, with_key, 2)), Some(DecisionReason::Duplicate));
}

#[test]
fn a_start_without_a_connection_is_unused_at_its_deadline_once() {
    for trigger in [Trigger::Syn, Trigger::Lookup, Trigger::Knock] {
        let mut node = Node::new(1, rates(1, 8), rates(1, 32));
        let actions = node.ask(0, from(1, trigger), 0);
        assert_eq!(timer(&actions), Some(10 * SECOND));
        node.on(0, Event::Ready(1), SECOND);
        assert_eq!(unused(&node.on(0, Event::Timer, 10 * SECOND - 1)), 0);
        assert_eq!(unused(&node.on(0, Event::Timer, 10 * SECOND)), 1, "{trigger}");
        assert_eq!(node.rates(0), (4, 16));
        for event in [Event::Timer, Event::Served(1), Event::Gone { instance: 1, end: InstanceEnd::Exited }] {
            assert_eq!(unused(&node.on(0, event, 30 * SECOND)), 0);
        }
        assert_eq!(node.rates(0), (4, 16));
    }
}

#[test]
fn a_connection_in_the_queue_or_a_first_answer_confirms_a_start_once() {
    let waits = |at| Event::Demand(accept(at));
    for (event, when) in [(waits(1), 1), (waits(3), 3), (Event::Served(1), 5)] {
        let mut node = Node::new(1, rates(1, 8), rates(1, 32));
        node.functions[0].starts.unused(0);
        node.admission.starts.unused(0);
        assert_eq!(node.rates(0), (4, 16));
        node.ask(0, syn(1, 0), 0);
        if when > 2 {
            node.on(0, Event::Ready(1), 2);
        }
        node.loads[0].queued = u32::from(matches!(event, Event::Demand(_)));
        node.on(0, event, when);
        node.on(0, Event::Served(1), 6);
        assert_eq!(node.rates(0), (5, 17), "{event:?}");
        assert_eq!(unused(&node.on(0, Event::Timer, 20 * SECOND)), 0);
        assert_eq!(node.rates(0), (5, 17));
    }
}

#[test]
fn a_place_that_is_taken_confirms_a_start_also_when_the_queue_was_never_seen_full() {
    let mut function = Alone::cold(Policy { starts: rates(1, 8), ..policy(1) });
    function.function.starts.unused(0);
    function.on(Event::Demand(syn(1, 5)), 5);
    function.on(Event::Ready(1), 6);
    function.load.queued = 1;
    function.serves(1, 1, 7);
    assert_eq!(unused(&function.on(Event::Timer, 20 * SECOND)), 0);
    assert_eq!(function.rate(), 5);
}

#[test]
fn a_report_that_comes_too_late_or_from_another_instance_is_ignored() {
    let mut node = Node::new(1, rates(1, 8), rates(1, 32));
    node.ask(0, syn(1, 0), 0);
    node.on(0, Event::Ready(1), 1);
    assert_eq!(unused(&node.on(0, Event::Served(9), 2)), 0);
    assert_eq!(unused(&node.on(0, Event::Served(1), 10 * SECOND)), 1, "before the timer came");
}

#[test]
fn starts_with_a_key_are_counted_and_teach_the_budgets_nothing() {
    let mut node = Node::new(1, rates(1, 8), rates(1, 32));
    node.ask(0, Demand { standing: Standing::Key, ..syn(1, 0) }, 0);
    assert_eq!(unused(&node.on(0, Event::Timer, 10 * SECOND)), 1);
    assert_eq!(node.rates(0), (8, 32));
}

#[test]
fn starts_for_connections_and_operators_are_not_on_trial() {
    for demand in [accept(0), Demand::local(Trigger::Api, 0)] {
        let mut node = Node::new(1, rates(1, 8), rates(1, 32));
        assert!(released(&node.ask(0, demand, 0)));
        assert_eq!(unused(&node.on(0, Event::Timer, 20 * SECOND)), 0);
    }
}

#[test]
fn what_joined_or_was_refused_is_not_unused() {
    let mut node = Node::new(2, rates(1, 8), rates(1, 1));
    node.ask(1, syn(1, 0), 0);
    node.ask(1, syn(2, 0), 0);
    node.ask(0, syn(3, 0), 0);
    assert_eq!(unused(&node.on(1, Event::Timer, 20 * SECOND)), 1);
    assert_eq!(unused(&node.on(0, Event::Timer, 20 * SECOND)), 0);
}

#[test]
fn a_start_that_fails_says_nothing_about_its_client() {
    let mut node = Node::new(1, rates(1, 8), rates(1, 32));
    node.ask(0, syn(1, 0), 0);
    node.ends(0, 1, InstanceEnd::Crashed, 1);
    assert_eq!(unused(&node.on(0, Event::Timer, 20 * SECOND)), 0);
    assert_eq!(node.rates(0), (8, 32));
}

#[test]
fn a_client_that_is_expected_is_expected_by_the_next_instance_too_unless_it_may_have_come_unseen() {
    let mut function = Alone::cold(policy(1));
    function.on(Event::Demand(syn(1, 5)), 5);
    function.on(Event::Ready(1), 6);
    function.on(Event::Parked(2), 7);
    let actions = function.on(Event::Gone { instance: 1, end: InstanceEnd::Exited }, SECOND);
    assert!(released(&actions), "its connection is still expected: {actions:?}");
    assert_eq!(unused(&function.on(Event::Timer, 11 * SECOND)), 1, "one client, who did not come, once");
    let mut node = Node::new(1, rates(1, 8), rates(1, 32));
    node.ask(0, syn(1, 0), 0);
    node.on(0, Event::Ready(1), 1);
    node.on(0, Event::Parked(2), 2);
    assert!(!released(&node.on(0, Event::Stop, 3)), "the instance does not say whether it has come");
    assert!(!released(&node.ends(0, 1, InstanceEnd::Asked, SECOND)));
    assert_eq!(unused(&node.on(0, Event::Timer, 10 * SECOND)), 1);
}
