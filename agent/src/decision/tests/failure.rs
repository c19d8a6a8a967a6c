//! Starts that fail, instances that crash or hang, and how their clients are answered.

use super::*;

#[test]
fn a_crash_soon_after_ready_is_slowed_down_and_a_late_one_is_not() {
    let mut function = Alone::ready(policy(1));
    function.on(Event::Gone { instance: 1, end: InstanceEnd::Crashed }, 20);
    assert_eq!((function.word(20), function.retry_at_ns()), ("failed", Some(20 + 100 * MS)));
    let mut function = Alone::ready(policy(1));
    function.on(Event::Gone { instance: 1, end: InstanceEnd::OutOfMemory }, 2 * SECOND);
    assert_eq!(function.word(2 * SECOND), "cold");
}

#[test]
fn failed_starts_back_off_then_cool_down_and_clients_are_answered() {
    // The client would wait for 30 s.
    let mut function = Alone::cold(policy(0));
    function.arrives(1, 0);
    let mut now = 0;
    for (instance, pause_ms) in [(1, 100), (2, 200), (3, 400)] {
        assert!(matches!(orders(&function.on(Event::Parked(instance), now))[..], [Action::Release(..)]));
        let actions = function.on(Event::Gone { instance, end: InstanceEnd::Crashed }, now);
        assert_eq!(orders(&actions), [], "it waits");
        assert_eq!(timer(&actions), Some(now + pause_ms * MS));
        let syn = demand(now);
        assert_eq!(
            orders(&function.on(Event::Demand(syn), now)),
            [Action::Suppress(syn, DecisionReason::Backoff)]
        );
        now += pause_ms * MS;
        assert_eq!(orders(&function.on(Event::Timer, now)), [Action::Prepare(instance + 1)]);
    }
    // It has been tried for long enough.
    function.on(Event::Parked(4), now);
    let actions = function.on(Event::Gone { instance: 4, end: InstanceEnd::Crashed }, now);
    assert_eq!(orders(&actions), [Action::Answer(1, DecisionReason::Cooldown)]);
    function.load.queued = 0;
    function.load.accepted += 1;
    assert_eq!(function.word(now), "failed");
    assert!(
        orders(&function.arrives(1, now + SECOND / 2)).contains(&Action::Answer(1, DecisionReason::Cooldown))
    );
    function.load.queued = 0;
    function.load.accepted += 1;
    now += SECOND;
    assert_eq!(orders(&function.on(Event::Timer, now)), []);
    assert_eq!(function.word(now), "cold");
    assert_eq!(orders(&function.arrives(1, now)), [Action::Prepare(5)]);
    // Its clients wait for `start_attempts` in a row, and the next cool-down is longer.
    for instance in 5..8 {
        function.on(Event::Parked(instance), now);
        assert_eq!(function.load.queued, 1);
        function.on(Event::Gone { instance, end: InstanceEnd::Crashed }, now);
        now = function.retry_at_ns().unwrap();
        function.on(Event::Timer, now);
    }
    assert_eq!(function.failure_cause(), Some(FailureCause::Function));
    assert_eq!((function.function.failed_starts(now - 1), function.word(now - 1)), ((0, true), "failed"));
    assert_eq!(function.function.failed_starts(now - 2 * SECOND), (0, true));
}

#[test]
fn while_a_backend_or_the_node_fails_clients_wait_and_the_first_success_serves_them() {
    for fails in [
        |instance| Event::Gone { instance, end: InstanceEnd::NoBackend },
        |instance| Event::Gone { instance, end: InstanceEnd::NotStarted(FailureCause::Node) },
        |instance| Event::PrepareFailed { instance, cause: FailureCause::Node },
    ] {
        let settings = Policy { queue_timeout: Duration::from_secs(8), ..policy(0) };
        let mut function = Alone::cold(settings);
        let (mut now, mut attempts) = (0, 0);
        function.arrives(1, now);
        while now < 7 * SECOND {
            attempts += 1;
            if let event @ Event::Gone { .. } = fails(attempts) {
                function.on(Event::Parked(attempts), now);
                assert_eq!(orders(&function.on(event, now)), [], "{now}");
            } else {
                assert_eq!(orders(&function.on(fails(attempts), now)), [], "{now}");
            }
            let at_ns = function.retry_at_ns().unwrap();
            assert!(
                at_ns - now <= 2 * SECOND,
                "no client waits for longer than a part of its time: {}",
                at_ns - now
            );
            assert_eq!(function.word(now), "failed");
            now = at_ns;
            assert_eq!(orders(&function.on(Event::Timer, now)), [Action::Prepare(attempts + 1)]);
        }
        assert!(attempts < 10, "{attempts}");
        let instance = attempts + 1;
        function.on(Event::Parked(instance), now);
        function.on(Event::Ready(instance), now);
        assert_eq!((function.word(now), function.load.queued), ("ready", 1));
    }
}

#[test]
fn starts_that_fail_together_are_one_failure() {
    let mut function = Alone::cold(Policy { queue_timeout: Duration::from_millis(100), ..one_each(3) });
    let started = orders(&function.arrives(3, 0));
    assert_eq!(started.iter().filter(|action| matches!(action, Action::Release(..))).count(), 3);
    for instance in 1..=3 {
        function.on(Event::Gone { instance, end: InstanceEnd::Crashed }, 5);
    }
    assert_eq!(function.failed_starts(5), (1, false));
}

#[test]
fn a_node_that_works_again_is_noticed_before_the_pause_is_over() {
    let mut function = Alone::cold(Policy { max_instances: 2, ..one_each(0) });
    assert_eq!(orders(&function.arrives(2, 0)), [Action::Prepare(1), Action::Prepare(2)]);
    function.on(Event::PrepareFailed { instance: 1, cause: FailureCause::Node }, 5);
    assert_eq!(function.word(5), "failed");
    let actions = orders(&function.on(Event::Parked(2), 10));
    assert!(matches!(actions[..], [Action::Release(2, _), Action::Prepare(3)]), "{actions:?}");
}

#[test]
fn an_instance_that_does_well_makes_earlier_failures_history() {
    let mut function = Alone::cold(policy(0));
    function.arrives(1, 0);
    function.on(Event::Parked(1), 0);
    function.on(Event::Gone { instance: 1, end: InstanceEnd::Crashed }, 0);
    function.on(Event::Timer, 100 * MS);
    function.on(Event::Parked(2), 100 * MS);
    function.on(Event::Ready(2), 101 * MS);
    function.serves(2, 1, 102 * MS);
    let actions = function.on(Event::Timer, 150 * MS);
    assert_eq!(timer(&actions), Some(1101 * MS), "then it has outlived them");
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
        "no client came in 10 s either"
    );
    let actions = function.on(Event::Timer, deadline);
    assert_eq!(orders(&actions)[0], Action::Stop(1));
    assert_eq!(moved(&actions)[0], (1, "stopping", "init_timeout"));
    function.on(Event::Ready(1), deadline + 1);
    assert_eq!(function.word(deadline + 1), "stopping", "too late is too late");
    function.on(Event::Gone { instance: 1, end: InstanceEnd::Asked }, deadline + 2);
    assert_eq!(function.word(deadline + 2), "failed");
}

#[test]
fn an_instance_that_accepts_nothing_for_a_whole_queue_timeout_is_replaced() {
    let mut function = Alone::ready(Policy { queue_timeout: Duration::from_secs(2), ..policy(1) });
    function.on(Event::Parked(2), 13);
    function.arrives(1, SECOND);
    let due = 3 * SECOND;
    for now in (SECOND..due).step_by(LOOK) {
        assert_eq!(orders(&function.on(Event::Timer, now)), []);
    }
    let actions = function.on(Event::Timer, due);
    assert!(moved(&actions).contains(&(1, "stopping", "hung")), "{actions:?}");
    assert!(orders(&actions).contains(&Action::Answer(1, DecisionReason::QueueTimeout)), "{actions:?}");
    // Where the whole machine stood still it had no time either.
    let mut function = Alone::ready(Policy { queue_timeout: Duration::from_secs(2), ..policy(1) });
    function.arrives(1, SECOND);
    assert_eq!(
        orders(&function.on(Event::Timer, 60 * SECOND)),
        [Action::Answer(1, DecisionReason::QueueTimeout)]
    );
    // One that is merely full does not hang.
    let settings = Policy { queue_timeout: Duration::from_secs(2), max_instances: 1, ..one_each(1) };
    let mut function = Alone::ready(settings);
    function.load.queued = 1;
    function.serves(1, 1, SECOND);
    function.arrives(1, SECOND);
    for now in (SECOND..due).step_by(LOOK) {
        assert_eq!(orders(&function.on(Event::Timer, now)), []);
    }
    assert_eq!(orders(&function.on(Event::Timer, due)), [Action::Answer(1, DecisionReason::QueueTimeout)]);
}

#[test]
fn one_that_always_crashes_is_released_no_more_often_than_allowed_and_every_client_is_answered() {
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
                    (CRASH_NS, Event::Gone { instance, end: InstanceEnd::Crashed })
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
    assert_eq!(settings.start_attempts, 3);
    // It is tried for a second, and then three times, with two back-offs, between two cool-downs: of 1 s, 2 s ... 30 s.
    let mut pauses = released.windows(2).map(|two| (two[1] - two[0]) / SECOND);
    assert!(pauses.by_ref().take(3).all(|pause| pause == 0), "{released:?}");
    for cooldown in [1, 2, 4, 8, 16, 30, 30] {
        assert_eq!(pauses.next(), Some(cooldown), "{released:?}");
        assert!(pauses.by_ref().take(2).all(|pause| pause == 0), "{released:?}");
    }
    let round_ns = nanos(settings.cooldown) + (100 + 200) * MS;
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
    assert_eq!(
        timer(&function.on(Event::PrepareFailed { instance: 1, cause: FailureCause::Node }, 5)),
        Some(5 + 100 * MS)
    );
    assert_eq!(function.retry_at_ns(), Some(5 + 100 * MS));
    assert_eq!(orders(&function.on(Event::Timer, 5 + 100 * MS)), [Action::Prepare(2)]);
    function.on(Event::Demand(demand(200 * MS)), 200 * MS);
    function.on(Event::PrepareFailed { instance: 2, cause: FailureCause::Function }, 201 * MS);
    assert_eq!(function.word(201 * MS), "failed");
}

#[test]
fn a_container_that_dies_while_parked_is_replaced_after_a_pause() {
    let mut function = Alone::cold(policy(1));
    let actions = function.on(Event::Gone { instance: 1, end: InstanceEnd::Crashed }, 5);
    assert_eq!((orders(&actions), timer(&actions)), (Vec::new(), Some(5 + 100 * MS)));
    assert_eq!(orders(&function.on(Event::Timer, 5 + 100 * MS)), [Action::Prepare(2)]);
}
