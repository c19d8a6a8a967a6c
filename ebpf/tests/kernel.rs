//! The same table, and more of the same noise, through the program in the running kernel.

mod common {
    pub(crate) mod frames;
    pub(crate) mod kernel;
    pub(crate) mod mutate;
    pub(crate) mod rows;
}

use aya::programs::TestRunOptions;
use common::frames::*;
use common::kernel::{FRAME_MIN, Kernel, Run, XDP_PASS, counted};
use common::{mutate, rows};
use headstart_ebpf::event::{EVENTS_BYTES, EventKind, FUNCTION_WARM, PortKey, Stat, SynEvent};
use headstart_ebpf::packet::{Skip, Syn, parse};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, TestRunner};

const FUNCTION: u32 = 7;
/// A ring record takes a header of 8 bytes (`kernel/bpf/ringbuf.c`).
const RECORDS_MAX: usize = EVENTS_BYTES / (SynEvent::SIZE + 8);

/// What the program must do with a frame, by the host parser's verdict, when `port` belongs to `FUNCTION`.
fn expected(verdict: Result<Syn, Skip>, port_owned: impl Fn(u16) -> bool) -> (Stat, Option<SynEvent>) {
    match verdict {
        Ok(syn) if port_owned(syn.dst_port) => {
            (Stat::Event, Some(SynEvent::new(&syn, FUNCTION, EventKind::Syn, 0)))
        }
        Ok(_) => (Stat::Unowned, None),
        Err(Skip::Malformed) => (Stat::Malformed, None),
        Err(_) => (Stat::NotSyn, None),
    }
}

/// `run` without its times; its events must have had one.
fn untimed(mut run: Run) -> Run {
    run.mean_ns = 0;
    for event in &mut run.events {
        assert!(event.timestamp_ns > 0, "an event without a timestamp");
        event.timestamp_ns = 0;
    }
    run
}

fn passed(stat: Stat, event: Option<SynEvent>) -> Run {
    Run { action: XDP_PASS, mean_ns: 0, counted: counted(stat, 1), events: event.into_iter().collect() }
}

#[test]
fn every_row_passes_and_does_what_the_table_says() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT), FUNCTION, 0);
    kernel.own(PortKey::any(65_535), FUNCTION, 0);
    let rows = rows::all();
    let (runnable, short): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.frame.len() >= FRAME_MIN);
    println!(
        "{} rows in the kernel, {} of less than {FRAME_MIN} bytes on the host only",
        runnable.len(),
        short.len()
    );
    for row in runnable {
        let (stat, event) = expected(row.expect, |_| true);
        assert_eq!(untimed(kernel.run(&row.frame)), passed(stat, event), "{}", row.name);
    }
}

#[test]
fn host_and_kernel_agree_on_twenty_thousand_mutants() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT), FUNCTION, 0);
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRunner::deterministic().rng().clone());
    let strategy = mutate::frames();
    let (mut compared, mut started) = (0, 0);
    while compared < 20_000 {
        let frame = strategy.new_tree(&mut runner).unwrap().current();
        if frame.len() < FRAME_MIN {
            continue;
        }
        let (stat, event) = expected(parse(frame.as_slice()), |port| port == PORT);
        started += u32::from(event.is_some());
        assert_eq!(untimed(kernel.run(&frame)), passed(stat, event), "{frame:02x?}");
        compared += 1;
    }
    println!("{compared} frames, {started} of them a start");
    assert!((1_000..19_000).contains(&started), "{started} starts say little about the rest");
}

#[test]
fn an_exact_address_beats_any_address() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::listener("0.0.0.0:8081".parse().unwrap()), 1, 0);
    kernel.own(PortKey::listener("198.51.100.20:8081".parse().unwrap()), 2, 0);
    kernel.own(PortKey::listener("[2001:db8:1::20]:8081".parse().unwrap()), 3, 0);
    let mut function = |frame: &[u8]| kernel.run(frame).events[0].function;
    assert_eq!(function(&tcp_v4(SYN, &[], &[])), 2);
    assert_eq!(function(&with(tcp_v4(SYN, &[], &[]), V4_AT + 19, &[21])), 1);
    assert_eq!(function(&tcp_v6(SYN)), 3);
    assert_eq!(function(&with(tcp_v6(SYN), V6_AT + 39, &[0x21])), 1);
}

#[test]
fn a_warm_function_is_counted_and_not_announced() {
    let Some(mut kernel) = Kernel::open() else { return };
    let any = PortKey::any(PORT);
    kernel.own(any, FUNCTION, FUNCTION_WARM);
    let frame = tcp_v4(SYN, &[], &[]);
    assert_eq!(untimed(kernel.run(&frame)), passed(Stat::Warm, None));
    kernel.own(any, FUNCTION, 0);
    assert_eq!(kernel.run(&frame).counted, counted(Stat::Event, 1));
    // Warm at the exact address hides the cold one at any address.
    kernel.own(PortKey::exact(asked_v4().dst, PORT), FUNCTION + 1, FUNCTION_WARM);
    assert_eq!(untimed(kernel.run(&frame)), passed(Stat::Warm, None));
}

#[test]
fn a_syn_to_nobody_is_counted_as_unowned() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT + 1), FUNCTION, 0);
    kernel.own(PortKey::exact(asked_v4().src, PORT), FUNCTION, 0);
    assert_eq!(untimed(kernel.run(&tcp_v4(SYN, &[], &[]))), passed(Stat::Unowned, None));
}

#[test]
fn a_full_ring_is_counted_and_the_packet_passes() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT), FUNCTION, 0);
    let frame = tcp_v4(SYN, &[], &[]);
    let repeat = RECORDS_MAX as u32 + 1_000;
    let run = kernel
        .run_with(TestRunOptions { data_in: Some(&frame), repeat, ..TestRunOptions::default() })
        .unwrap();
    assert_eq!(run.action, XDP_PASS);
    let (written, lost) = (run.counted[Stat::Event as usize], run.counted[Stat::RingFull as usize]);
    assert_eq!(written, run.events.len() as u64);
    assert_eq!(written + lost, u64::from(repeat));
    assert!((RECORDS_MAX as u64 - 1..=RECORDS_MAX as u64).contains(&written), "{written} records fit");
    // Emptied by the reader, it takes events again.
    assert_eq!(kernel.run(&frame).counted, counted(Stat::Event, 1));
}

#[test]
fn timestamps_are_monotonic_time() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT), FUNCTION, 0);
    let uptime_ns = || {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
        (seconds * 1e9) as u64
    };
    let before_ns = kernel.run(&tcp_v4(SYN, &[], &[])).events[0].timestamp_ns;
    let after_ns = kernel.run(&tcp_v6(SYN)).events[0].timestamp_ns;
    assert!(before_ns < after_ns);
    assert!(after_ns <= uptime_ns() + 20_000_000, "later than the time since boot");
}

/// Headers split over two buffers are not read: the packet passes, and counts as cut off.
#[test]
fn split_headers_pass() {
    const FIRST_BUFFER: u32 = 40;
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT), FUNCTION, 0);
    let frame = tcp_v4(SYN, &[], &[b'x'; 1_000]);
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context: Vec<u8> =
        [0, FIRST_BUFFER, 0, 0, 0, 0].iter().flat_map(|field| field.to_ne_bytes()).collect();
    let options =
        TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::default() };
    match kernel.run_with(options) {
        Ok(run) => assert_eq!(untimed(run), passed(Stat::Malformed, None)),
        Err(error) => println!("SKIPPED: this kernel (before 6.18) cannot split test frames ({error})"),
    }
}
