//! A function whose configuration changes, which is removed, or whose agent is leaving.

use super::*;

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
    assert!(super::orders(&function.on(Event::Parked(1), 2)).contains(&Action::Discard(1)));
    // Where only numbers changed everything stays.
    let mut function = Alone::ready(policy(1));
    let changed = Event::Changed { policy: Policy { max_instances: 3, ..policy(1) }, replace: false };
    assert!(!super::orders(&function.on(changed, 20)).contains(&Action::Stop(1)));
}

#[test]
fn a_function_that_is_removed_stops_everything_and_turns_clients_away() {
    let mut function = Alone::ready(policy(1));
    function.on(Event::Parked(2), 13);
    function.arrives(2, 14);
    let actions = function.on(Event::Removed, 20);
    let expected = [
        Action::Stop(1),
        Action::Discard(2),
        Action::Answer(2, DecisionReason::Closed),
        Action::WatchQueue(QueueWatchRate::Immediate),
    ];
    assert_eq!(orders(&actions), expected);
    function.load.queued -= 2;
    function.load.accepted += 2;
    assert_eq!(orders(&function.arrives(1, 21)).last(), Some(&Action::Answer(1, DecisionReason::Closed)));
    function.load.queued -= 1;
    function.load.accepted += 1;
    function.on(Event::Gone { instance: 1, end: InstanceEnd::Asked }, 22);
    assert_eq!(orders(&function.on(Event::Shutdown, 23)), []);
    assert_eq!(function.word(23), "closed");
}

#[test]
fn shutdown_stops_everything_and_nothing_starts_afterwards() {
    let mut function = Alone::ready(policy(1));
    function.on(Event::Parked(2), 13);
    let actions = function.on(Event::Shutdown, 20);
    let expected = [Action::Stop(1), Action::Discard(2), Action::WatchQueue(QueueWatchRate::Off)];
    assert_eq!(orders(&actions), expected);
    assert_eq!(orders(&function.on(Event::Parked(3), 21)), []);
    let syn = demand(22);
    assert_eq!(orders(&function.on(Event::Demand(syn), 22)), [Action::Suppress(syn, DecisionReason::Closed)]);
    assert_eq!(function.word(22), "closed");
}
