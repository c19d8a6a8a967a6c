use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const UNUSED_AFTER: Duration = Duration::from_secs(10);

fn budget(min: u32, max: u32) -> Budget {
    Budget::new(Rates { min, max }, UNUSED_AFTER)
}

/// Spends all that there is, and says how many starts that were.
fn drain(budget: &mut Budget, now_ns: u64) -> u32 {
    let mut starts = 0;
    while budget.has_start(now_ns) {
        budget.spend(now_ns);
        starts += 1;
    }
    starts
}

#[test]
fn it_begins_full_and_at_its_highest_rate() {
    let mut budget = budget(1, 16);
    assert_eq!(budget.rate(), 16);
    assert_eq!(drain(&mut budget, 0), 16);
    assert_eq!(drain(&mut budget, SECOND / 2), 8);
}

#[test]
fn it_never_holds_more_than_the_starts_of_a_second() {
    let mut budget = budget(1, 4);
    assert_eq!(drain(&mut budget, 3_600 * SECOND), 4);
    assert_eq!(drain(&mut budget, u64::MAX), 4);
}

#[test]
fn starts_come_at_the_rate_also_when_asked_often() {
    let mut budget = budget(3, 3);
    let starts: u32 = (0..=10_000).map(|ms| drain(&mut budget, ms * SECOND / 1_000)).sum();
    assert_eq!(starts, 3 + 30, "what it begins with, and ten seconds");
}

#[test]
fn an_unused_start_halves_the_rate_once_in_the_time_that_shows_it() {
    let mut budget = budget(1, 16);
    for (seconds, rate) in [(0, 8), (1, 8), (9, 8), (10, 4), (19, 4), (20, 2), (30, 1), (40, 1)] {
        budget.unused(seconds * SECOND);
        assert_eq!(budget.rate(), rate, "after {seconds} s");
    }
}

#[test]
fn a_halved_budget_forgets_what_it_had_saved() {
    let mut budget = budget(1, 16);
    budget.unused(0);
    assert_eq!(drain(&mut budget, 0), 8);
}

#[test]
fn a_confirmed_start_earns_one_per_second_up_to_the_maximum() {
    let mut budget = budget(1, 16);
    budget.unused(0);
    for rate in [9, 10, 11, 12, 13, 14, 15, 16, 16] {
        budget.confirmed(SECOND);
        assert_eq!(budget.rate(), rate);
    }
}

#[test]
fn what_became_due_before_a_change_is_due_at_the_old_rate() {
    let mut budget = budget(2, 8);
    drain(&mut budget, 0);
    budget.unused(SECOND / 2);
    assert_eq!(drain(&mut budget, SECOND / 2), 4);
    assert_eq!(drain(&mut budget, SECOND), 2);
}

#[test]
fn a_clock_that_stands_or_steps_back_gives_nothing() {
    let mut budget = budget(1, 4);
    assert_eq!(drain(&mut budget, 5 * SECOND), 4);
    assert_eq!(drain(&mut budget, 5 * SECOND), 0);
    assert_eq!(drain(&mut budget, SECOND), 0);
    assert_eq!(drain(&mut budget, 6 * SECOND), 4);
}

#[test]
fn senseless_bounds_leave_at_least_one_start() {
    assert_eq!(budget(0, 0).rate(), 1);
    assert_eq!(budget(9, 3).rate(), 9);
}

proptest! {
    #[test]
    fn no_window_of_any_schedule_sees_more_starts_than_the_budget(
        min in 1u32..5,
        more in 0u32..10,
        steps in prop::collection::vec((0u8..8, 0u64..2_000), 1..300),
    ) {
        let max = min + more;
        let mut budget = budget(min, max);
        let (mut now_ns, mut starts) = (0, Vec::new());
        for (what, later_ms) in steps {
            now_ns += later_ms * SECOND / 1_000;
            match what {
                0 => budget.confirmed(now_ns),
                1 => budget.unused(now_ns),
                _ => if budget.has_start(now_ns) {
                    budget.spend(now_ns);
                    starts.push(now_ns);
                },
            }
            prop_assert!((min..=max).contains(&budget.rate()));
        }
        for (first, from) in starts.iter().enumerate() {
            for (last, to) in starts.iter().enumerate().skip(first) {
                let allowed = u64::from(max) * (SECOND + (to - from)) / SECOND;
                let seen = u64::try_from(last - first + 1).unwrap();
                prop_assert!(seen <= allowed, "{seen} starts within {} ns", to - from);
            }
        }
    }

    #[test]
    fn a_flood_without_connections_keeps_the_minimum(max in 2u32..200) {
        let mut budget = budget(1, max);
        let mut last = 0;
        for second in 0..120 {
            last = drain(&mut budget, second * SECOND);
            budget.unused(second * SECOND);
        }
        prop_assert_eq!((last, budget.rate()), (1, 1));
    }
}
