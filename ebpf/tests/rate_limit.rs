//! A rate limit passes events at its rate, and a burst.

use headstart_ebpf::rate_limit::pass;

const SECOND_NS: u64 = 1_000_000_000;

/// The number of events at `times_ns` that pass a limit of one event per `interval_ns`.
fn passed(times_ns: impl IntoIterator<Item = u64>, interval_ns: u64, burst_ns: u64) -> usize {
    let mut due_ns = 0;
    let pass_one = |now_ns: &u64| match pass(due_ns, *now_ns, interval_ns, burst_ns) {
        Some(next_ns) => {
            due_ns = next_ns;
            true
        }
        None => false,
    };
    times_ns.into_iter().filter(pass_one).count()
}

#[test]
fn a_burst_passes_at_once_and_no_more() {
    let now_ns = 100 * SECOND_NS;
    for (burst, expected) in [(0, 1), (1, 2), (9, 10)] {
        assert_eq!(passed([now_ns; 50], SECOND_NS, burst * SECOND_NS), expected);
    }
}

#[test]
fn under_a_flood_the_rate_passes() {
    // 100,000 events a second for ten seconds, ten a second allowed and five at once.
    let flood = (0..1_000_000).map(|event| 100 * SECOND_NS + event * 10_000);
    let count = passed(flood, SECOND_NS / 10, SECOND_NS / 2 - SECOND_NS / 10);
    assert!((104..=105).contains(&count), "{count} events");
}

#[test]
fn below_the_rate_everything_passes() {
    let slow = (0..1_000).map(|event| 100 * SECOND_NS + event * SECOND_NS);
    assert_eq!(passed(slow, SECOND_NS, 0), 1_000);
}

#[test]
fn a_quiet_hour_is_not_saved_up() {
    let now_ns = 3_600 * SECOND_NS;
    assert_eq!(passed([now_ns; 50], SECOND_NS, 4 * SECOND_NS), 5);
}

#[test]
fn the_end_of_time_is_survived() {
    assert_eq!(pass(0, u64::MAX, SECOND_NS, u64::MAX), Some(u64::MAX));
    assert_eq!(pass(u64::MAX, 0, SECOND_NS, SECOND_NS), None);
    assert_eq!(pass(u64::MAX, 0, u64::MAX, u64::MAX), Some(u64::MAX));
}
