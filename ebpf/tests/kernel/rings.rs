//! Budgets, rings and times.

use aya::programs::TestRunOptions;
use headstart_ebpf::event::{Stat, SynEvent};
use headstart_ebpf::maps::{EVENTS_BYTES, PortKey, SourceRule};

use super::FUNCTION;
use headstart_ebpf_test_support::frames::*;
use headstart_ebpf_test_support::kernel::{Hook, Kernel, counted};
use headstart_ebpf_test_support::model::Model;
use headstart_ebpf_test_support::proofs::*;

/// A ring record takes a header of 8 bytes (`kernel/bpf/ringbuf.c`).
const RECORDS_MAX: usize = EVENTS_BYTES / (SynEvent::SIZE + 8);
const HOUR_NS: u64 = 3_600_000_000_000;

/// Fills a ring with `frame`, `full` counting what is lost.
fn fill(kernel: &mut Kernel, frame: &[u8], written: Stat, full: Stat) {
    let repeat = RECORDS_MAX as u32 + 1_000;
    let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
    let run = kernel.run_with(Hook::Xdp, options).unwrap();
    assert!(!run.dropped);
    let (written, lost) = (run.counted[written as usize], run.counted[full as usize]);
    assert_eq!(written, (run.open.len() + run.authenticated.len()) as u64);
    assert_eq!(written + lost, u64::from(repeat));
    assert!((RECORDS_MAX as u64 - 1..=RECORDS_MAX as u64).contains(&written), "{written} records fit");
}

#[test]
fn a_full_ring_is_counted_and_the_packet_passes() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT), FUNCTION, 0);
    let frame = tcp_v4(SYN, &[], &[]);
    fill(&mut kernel, &frame, Stat::Event, Stat::RingFull);
    // Emptied by the reader, it takes events again.
    assert_eq!(kernel.run(Hook::Xdp, &frame).counted, counted(&[Stat::Event]));
}

#[test]
fn a_full_ring_of_authenticated_events_is_counted_too() {
    let Some(mut kernel) = Kernel::open() else { return };
    Model::of_every_kind(&mut kernel);
    let frame = tagged_syn(WAKE, 1, KEY, 1, EPOCH, 0);
    fill(&mut kernel, &frame, Stat::Authenticated, Stat::AuthenticatedRingFull);
}

#[test]
fn a_source_over_its_budget_passes_without_an_event() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT), FUNCTION, 0);
    kernel.set(|settings| (settings.source_limit, settings.seed) = (3, 42));
    for hook in Hook::ALL {
        // Both hooks in one window of a second would share the budget: each has sources of its own.
        let octet = if hook == Hook::Xdp { 1 } else { 2 };
        let v4 = |last: u8| with(tcp_v4(SYN, &[], &[]), V4_AT + 14, &[octet, last]);
        let v6 = |net: u8, host: u8| {
            with(with(tcp_v6(SYN), V6_AT + 8 + 7, &[net]), V6_AT + 8 + 14, &[octet, host])
        };
        let outcomes: Vec<_> = (0..8).map(|_| kernel.run(hook, &v4(1))).collect();
        let passed = outcomes.iter().filter(|run| run.counted == counted(&[Stat::Event])).count();
        let over = outcomes.iter().filter(|run| run.counted == counted(&[Stat::SourceBudget])).count();
        // Where a window of the sketch ends in between, the source has two budgets.
        assert!((passed == 3 || passed == 6) && passed + over == 8, "{passed} of 8");
        assert_eq!(kernel.run(hook, &v4(2)).counted, counted(&[Stat::Event]), "another source");
        // The hosts of a /64 are one source.
        let nets: Vec<_> = (0..8).map(|host| kernel.run(hook, &v6(octet, host))).collect();
        let passed = nets.iter().filter(|run| run.counted == counted(&[Stat::Event])).count();
        assert!(passed == 3 || passed == 6, "{passed} of 8");
        assert_eq!(kernel.run(hook, &v6(octet + 2, 0)).counted, counted(&[Stat::Event]), "another /64");
    }
}

#[test]
fn a_function_over_its_budget_leaves_others_theirs() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT), 1, 0);
    kernel.own(PortKey::any(PORT + 1), 2, 0);
    kernel.set(|settings| {
        (settings.function_interval_ns, settings.function_burst_ns) = (HOUR_NS, 2 * HOUR_NS);
        (settings.global_interval_ns, settings.global_burst_ns) = (HOUR_NS, 3 * HOUR_NS);
    });
    let mut outcome = |hook, port: u16| {
        let run = kernel.run(hook, &with(tcp_v4(SYN, &[], &[]), V4_TCP_AT + 2, &port.to_be_bytes()));
        Stat::ALL.into_iter().skip(1).find(|stat| run.counted[*stat as usize] == 1).unwrap()
    };
    for stat in [Stat::Event, Stat::Event, Stat::Event, Stat::FunctionBudget] {
        assert_eq!(outcome(Hook::Xdp, PORT), stat);
    }
    // An event over the function's budget is not charged to the node's.
    assert_eq!(outcome(Hook::Tcx, PORT + 1), Stat::Event);
    assert_eq!(outcome(Hook::Tcx, PORT + 1), Stat::GlobalBudget);
    assert_eq!(outcome(Hook::Xdp, PORT), Stat::FunctionBudget);
}

#[test]
fn authenticated_clients_have_no_budget_and_allowed_ones_have_one_of_their_own() {
    let Some(mut kernel) = Kernel::open() else { return };
    Model::of_every_kind(&mut kernel);
    kernel.set(|settings| {
        (settings.function_interval_ns, settings.global_interval_ns, settings.source_limit) =
            (HOUR_NS, HOUR_NS, 1);
        settings.global_burst_ns = 4 * HOUR_NS;
    });
    let unannounced = syn_to(SHARED, 1, &[]);
    assert_eq!(kernel.run(Hook::Xdp, &unannounced).counted, counted(&[Stat::Event]));
    let over = kernel.run(Hook::Xdp, &with(unannounced.clone(), V4_AT + 15, &[99])).counted;
    assert_eq!(over, counted(&[Stat::FunctionBudget]));
    for isn in 0..5 {
        let tagged = tagged_syn(SHARED, isn, KEY, 1, EPOCH, 0);
        assert_eq!(kernel.run(Hook::Xdp, &tagged).counted, counted(&[Stat::Authenticated]));
    }
    kernel.say("192.0.2.0".parse().unwrap(), 24, SourceRule::Allow);
    // Neither a source nor a function has a limit of its own then.
    for _ in 0..5 {
        assert_eq!(kernel.run(Hook::Xdp, &unannounced).counted, counted(&[Stat::Event]));
    }
    assert_eq!(kernel.run(Hook::Xdp, &unannounced).counted, counted(&[Stat::GlobalBudget]));
}

#[test]
fn timestamps_are_monotonic_time() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT), FUNCTION, 0);
    let now_ns = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    };
    let start_ns = now_ns();
    let before_ns = kernel.run(Hook::Xdp, &tcp_v4(SYN, &[], &[])).open[0].timestamp_ns;
    let after_ns = kernel.run(Hook::Tcx, &tcp_v6(SYN)).open[0].timestamp_ns;
    assert!(start_ns < before_ns && before_ns < after_ns && after_ns < now_ns());
}
