//! A flood of SYNs, in random schedules.

use super::*;
use proptest::prelude::*;

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
fn park(node: &mut Node, function: usize, actions: Vec<Action>, now_ns: u64) -> Vec<Action> {
    let mut all = Vec::new();
    let mut orders = actions;
    while !orders.is_empty() {
        let made: Vec<_> = orders
            .iter()
            .filter_map(|action| if let Action::Prepare(id) = action { Some(*id) } else { None })
            .collect();
        all.append(&mut orders);
        for instance in made {
            orders.extend(node.on(function, Event::Parked(instance), now_ns));
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn in_any_schedule_open_starts_stay_within_both_budgets_and_each_is_unused_at_most_once(
        steps in prop::collection::vec(step(), 0..400),
        own in 1u32..4,
        global in 1u32..8,
    ) {
        let mut node = Node::new(4, rates(1, own), rates(1, global));
        let mut now_ns = 0;
        // Times of open starts by function: each for a client of its own; and of those that were paid.
        let mut starts: Vec<(usize, u64)> = Vec::new();
        let mut spent = Vec::new();
        let mut clients = std::collections::HashSet::new();
        let (mut early, mut wasted) = (0, 0);
        for (function, step, later_ms) in steps {
            now_ns += later_ms * MS;
            let running = node.loads[function].instances.first().map(|(id, _)| *id);
            let ends = |end| running.map(|instance| Event::Gone { instance, end });
            let event = match step {
                Step::Syn(client) => Some(Event::Demand(syn(client, now_ns))),
                Step::Lookup(client) => Some(Event::Demand(Demand { at_ns: now_ns, ..from(client, Trigger::Lookup) })),
                Step::WithKey(client) => Some(Event::Demand(Demand { standing: Standing::Key, ..syn(client, now_ns) })),
                Step::Accept => {
                    node.loads[function].queued += 1;
                    Some(Event::Demand(accept(now_ns)))
                }
                Step::Served => running.map(Event::Served),
                Step::Timer => Some(Event::Timer),
                Step::Ready => running.map(Event::Ready),
                Step::Gone => ends(InstanceEnd::Exited),
                Step::Crash => ends(InstanceEnd::Crashed),
                Step::Stop => Some(Event::Stop),
            };
            let Some(event) = event else { continue };
            let actions = node.on(function, event, now_ns);
            let actions = park(&mut node, function, actions, now_ns);
            for action in actions {
                match action {
                    Action::Spent => spent.push((function, now_ns)),
                    Action::Unused => wasted += 1,
                    Action::Release(_, demand) if demand.trigger.is_early() => {
                        early += 1;
                        // The next instance for the same client is no other start of the budget.
                        if demand.needs_budget() && clients.insert((function, demand.client, demand.at_ns)) {
                            starts.push((function, now_ns));
                        }
                    }
                    _ => {}
                }
            }
        }
        for function in 0..4 {
            wasted += unused(&node.on(function, Event::Timer, now_ns + 10 * SECOND));
            let over = node.on(function, Event::Timer, now_ns + 30 * SECOND);
            prop_assert_eq!(unused(&over), 0, "each ends at its deadline at the latest");
        }
        prop_assert!(wasted <= early, "{} of {} starts were unused", wasted, early);
        for function in [None, Some(0), Some(1), Some(2), Some(3)] {
            let rate = if function.is_some() { own } else { global };
            for times in [&starts, &spent] {
                let times = times.iter().filter(|(f, _)| function.is_none_or(|own| own == *f));
                let times: Vec<_> = times.map(|(_, at)| *at).collect();
                for (first, from) in times.iter().enumerate() {
                    for (last, to) in times.iter().enumerate().skip(first) {
                        let allowed = u64::from(rate) * (SECOND + (to - from)) / SECOND;
                        prop_assert!(u64::try_from(last - first + 1).unwrap() <= allowed, "{function:?}");
                    }
                }
            }
        }
    }
}
