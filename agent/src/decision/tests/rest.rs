//! Idle instances: frozen, thawed, stopped; and those of an earlier agent.

use super::*;

fn resting() -> Policy {
    Policy {
        freeze_after: Some(Duration::from_secs(10)),
        stop_after: Some(Duration::from_mins(1)),
        ..policy(0)
    }
}

/// One instance, which has served its only client by 12.
fn served() -> Alone {
    let mut function = Alone::cold(resting());
    function.arrives(1, 5);
    function.on(Event::Parked(1), 5);
    function.on(Event::Ready(1), 10);
    function.serves(1, 1, 11);
    function.sees(1, 0, 12);
    function
}

fn frozen() -> Alone {
    let mut function = served();
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
    assert_eq!(orders(&actions), [Action::Suppress(another, DecisionReason::Starting)]);
    let actions = function.on(Event::Ready(1), 20 * SECOND + 1);
    assert!(moved(&actions).contains(&(1, "ready", "initialised")));
    // It counts as idle from then on, not from before it was frozen.
    assert_eq!(orders(&function.on(Event::Timer, 29 * SECOND)), []);
}

/// Frozen, and asked at 32 s to be hibernated.
fn hibernating() -> Alone {
    let mut function = frozen();
    function.on(
        Event::Changed {
            policy: Policy { hibernate_after: Some(Duration::from_secs(32)), ..resting() },
            replace: false,
        },
        12 * SECOND,
    );
    assert_eq!(orders(&function.on(Event::Timer, 12 + 32 * SECOND - 1)), []);
    let actions = function.on(Event::Timer, 12 + 32 * SECOND);
    assert_eq!(orders(&actions)[0], Action::Hibernate(1));
    assert_eq!(moved(&actions), [(1, "hibernating", "idle")]);
    assert_eq!(function.word(12 + 32 * SECOND), "frozen");
    function
}

#[test]
fn a_frozen_instance_is_hibernated_then_thawed_by_a_syn() {
    let mut function = hibernating();
    assert_eq!(moved(&function.on(Event::Hibernated(1), 33 * SECOND)), [(1, "hibernated", "idle")]);
    assert_eq!(function.word(33 * SECOND), "hibernated");
    let syn = demand(40 * SECOND);
    assert_eq!(orders(&function.on(Event::Demand(syn), 40 * SECOND))[0], Action::Thaw(1, syn));
    let actions = function.on(Event::Ready(1), 40 * SECOND + 1);
    assert!(moved(&actions).contains(&(1, "ready", "initialised")));
}

#[test]
fn a_syn_turns_a_hibernation_round() {
    let mut function = hibernating();
    let syn = demand(12 + 32 * SECOND + 1);
    assert_eq!(orders(&function.on(Event::Demand(syn), 12 + 32 * SECOND + 1))[0], Action::Thaw(1, syn));
    assert_eq!(moved(&function.on(Event::Hibernated(1), 33 * SECOND)), [], "the answer comes too late");
}

#[test]
fn what_cannot_be_hibernated_stays_frozen_until_it_was_woken() {
    let mut function = hibernating();
    let actions = function.on(Event::NotHibernated(1), 33 * SECOND);
    assert_eq!(moved(&actions), [(1, "frozen", "hibernate_failed")]);
    assert_eq!(orders(&function.on(Event::Timer, 40 * SECOND)), []);
    assert_eq!(orders(&function.on(Event::Timer, 12 + 60 * SECOND)), [Action::Stop(1)]);
}

#[test]
fn the_one_with_its_memory_is_thawed_first() {
    let mut function = Alone::new(Policy { hibernate_after: Some(Duration::from_secs(20)), ..resting_one() });
    for id in [1, 2] {
        function.load.instances.push((id, InstanceLoad { open: Some(0), ..InstanceLoad::default() }));
        function.on(Event::Adopted(id), id);
    }
    function.on(Event::Freeze, SECOND);
    function.on(Event::Frozen(1), SECOND);
    function.on(Event::Frozen(2), 15 * SECOND);
    function.on(Event::NotHibernated(1), 22 * SECOND);
    function.on(Event::Hibernated(2), 22 * SECOND);
    assert_eq!(
        orders(&function.on(Event::Demand(demand(23 * SECOND)), 23 * SECOND))[0],
        Action::Thaw(1, demand(23 * SECOND))
    );
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
fn one_that_an_operator_froze_counts_as_idle_from_then_on() {
    let mut function = served();
    let minute = 60 * SECOND;
    function.on(Event::Freeze, 9 * SECOND);
    function.on(Event::Frozen(1), 9 * SECOND);
    assert_eq!(orders(&function.on(Event::Timer, 12 + minute)), []);
    assert_eq!(orders(&function.on(Event::Timer, 9 * SECOND + minute)), [Action::Stop(1)]);
}

#[test]
fn nothing_is_frozen_or_stopped_while_a_client_is_connected() {
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
fn one_that_was_frozen_with_a_connection_is_thawed_at_once() {
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
        let mut function = served();
        function.on(Event::Timer, 12 + 10 * SECOND);
        let actions = function.on(Event::NotFrozen { instance: 1, busy }, 11 * SECOND);
        assert_eq!(moved(&actions), [(1, "ready", reason)]);
        assert_eq!(orders(&function.on(Event::Timer, 21 * SECOND - 1)), []);
        assert_eq!(orders(&function.on(Event::Timer, 21 * SECOND))[0], Action::Freeze(1));
    }
}

#[test]
fn a_client_that_comes_while_it_is_being_frozen_thaws_it() {
    let mut function = Alone::ready(resting_one());
    assert_eq!(orders(&function.on(Event::Freeze, 20))[0], Action::Freeze(1));
    assert_eq!(orders(&function.on(Event::Demand(demand(21)), 21)), [], "it may yet refuse to be frozen");
    let actions = function.on(Event::Frozen(1), 22);
    assert_eq!(orders(&actions), [Action::Thaw(1, demand(21))]);
}

#[test]
fn an_instance_of_an_earlier_agent_is_as_good_as_one_of_its_own() {
    let mut function = Alone::new(resting_one());
    function.load.instances.push((7, InstanceLoad { open: Some(0), ..InstanceLoad::default() }));
    let actions = function.on(Event::Adopted(7), 1);
    assert_eq!(moved(&actions)[0], (7, "ready", "adopted"));
    assert_eq!(function.word(1), "ready");
    let actions = function.on(Event::Configured, 2);
    assert!(orders(&actions).iter().all(|order| !matches!(order, Action::Prepare(id) if *id <= 7)));
    let actions = function.on(Event::Demand(demand(3)), 3);
    assert!(!actions.iter().any(|action| matches!(action, Action::Release(..))), "{actions:?}");
}

/// One instance is to be initialised ahead.
fn standby() -> Policy {
    Policy { standby: 1, hibernate_after: Some(Duration::from_secs(30)), ..resting() }
}

/// It is asleep at 9.
fn slept() -> Alone {
    let mut function = Alone::new(standby());
    let actions = function.on(Event::Configured, 0);
    assert_eq!(orders(&actions)[0], Action::Prepare(1));
    let actions = function.on(Event::Parked(1), 5);
    assert_eq!(orders(&actions), [Action::Release(1, Demand::local(Trigger::Provision, 5))]);
    assert_eq!(orders(&function.on(Event::Ready(1), 7))[0], Action::Freeze(1));
    assert_eq!(orders(&function.on(Event::Frozen(1), 8))[0], Action::Hibernate(1));
    function.on(Event::Hibernated(1), 9);
    assert_eq!(function.word(9), "hibernated");
    function
}

#[test]
fn one_that_is_initialised_ahead_sleeps_at_once_and_is_kept() {
    let mut function = slept();
    assert_eq!(orders(&function.on(Event::Timer, 3_600 * SECOND)), []);
    let syn = demand(3_600 * SECOND + 1);
    assert_eq!(orders(&function.on(Event::Demand(syn), 3_600 * SECOND + 1))[0], Action::Thaw(1, syn));
    function.arrives(1, 3_600 * SECOND + 2);
    function.on(Event::Ready(1), 3_600 * SECOND + 3);
    function.serves(1, 1, 3_600 * SECOND + 4);
    function.sees(1, 0, 3_600 * SECOND + 5);
    assert_eq!(orders(&function.on(Event::Timer, 3_609 * SECOND)), [], "it rests as any other does now");
    assert_eq!(orders(&function.on(Event::Timer, 3_611 * SECOND))[0], Action::Freeze(1));
    function.on(Event::Frozen(1), 3_611 * SECOND);
    let actions = function.on(Event::Gone { instance: 1, end: InstanceEnd::Crashed }, 3_700 * SECOND);
    assert_eq!(orders(&actions)[0], Action::Prepare(2), "another takes its place");
}

#[test]
fn one_that_cannot_be_frozen_is_not_asked_again_at_once() {
    let mut function = Alone::new(standby());
    function.on(Event::Configured, 0);
    function.on(Event::Parked(1), 5);
    function.on(Event::Ready(1), 7);
    let actions = function.on(Event::NotFrozen { instance: 1, busy: false }, 8);
    assert_eq!(timer(&actions), Some(8 + 10 * SECOND));
    assert!(!orders(&actions).contains(&Action::Freeze(1)));
    assert_eq!(orders(&function.on(Event::Timer, 8 + 10 * SECOND))[0], Action::Freeze(1));
}

#[test]
fn a_new_version_is_initialised_before_the_old_one_stops() {
    let mut function = slept();
    let actions = function.on(Event::Changed { policy: standby(), replace: true }, 20);
    assert_eq!(orders(&actions), [Action::Prepare(2)]);
    function.on(Event::Parked(2), 21);
    let syn = demand(22);
    assert_eq!(
        orders(&function.on(Event::Demand(syn), 22)),
        [Action::Suppress(syn, DecisionReason::Starting)]
    );
    assert!(orders(&function.on(Event::Ready(2), 23)).contains(&Action::Stop(1)));
    assert!(function.instances().all(|(id, one)| id == 2 || one.reason == DecisionReason::Replaced));
    // Where there is no place for both, the old one goes first.
    let mut function = slept();
    let single = Policy { max_instances: 1, ..standby() };
    let actions = function.on(Event::Changed { policy: single, replace: true }, 20);
    assert_eq!(orders(&actions), [Action::Stop(1)]);
    let actions = function.on(Event::Gone { instance: 1, end: InstanceEnd::Asked }, 21);
    assert_eq!(orders(&actions), [Action::Prepare(2)]);
}

#[test]
fn clients_go_before_what_is_started_ahead() {
    let mut function = Alone::new(Policy { standby: 2, ..one_each(0) });
    function.on(Event::Configured, 0);
    function.arrives(2, 1);
    let actions = function.on(Event::Parked(1), 2);
    assert!(matches!(
        orders(&actions)[..],
        [Action::Release(1, Demand { trigger: Trigger::Accept, .. }), ..]
    ));
}

#[test]
fn without_memory_on_the_node_the_sleeping_give_up_theirs_and_then_stop() {
    let mut function = frozen();
    assert_eq!(function.relief(Relief::Hibernate).count(), 0, "it never hibernates");
    assert_eq!(function.relief(Relief::Stop).collect::<Vec<_>>(), [(12, 1)]);
    let hibernates = Policy { hibernate_after: Some(Duration::from_secs(32)), ..resting() };
    function.on(Event::Changed { policy: hibernates, replace: false }, 24 * SECOND);
    assert_eq!(function.relief(Relief::Hibernate).collect::<Vec<_>>(), [(12, 1)]);
    assert!(orders(&function.on(Event::Relieve(1), 25 * SECOND)).contains(&Action::Hibernate(1)));
    assert_eq!(orders(&function.on(Event::Relieve(1), 25 * SECOND)), [], "it does already");
    let actions = function.on(Event::Hibernated(1), 26 * SECOND);
    assert_eq!(moved(&actions), [(1, "hibernated", "pressure")]);
    assert!(orders(&function.on(Event::Relieve(1), 27 * SECOND)).contains(&Action::Stop(1)));
    let mut awake = served();
    assert_eq!(orders(&awake.on(Event::Relieve(1), 20)), [], "one that is awake gives up nothing");
}
