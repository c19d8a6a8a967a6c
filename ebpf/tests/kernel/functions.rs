//! The function of a plain SYN, and SYNs that raise no event.

use headstart_ebpf::event::Stat;
use headstart_ebpf::maps::{FUNCTION_AUTH_WAKE, FUNCTION_WARM, PortKey, SourceRule};

use super::FUNCTION;
use headstart_ebpf_test_support::frames::*;
use headstart_ebpf_test_support::kernel::{Hook, Kernel, counted, untimed};
use headstart_ebpf_test_support::model::passed;

#[test]
fn an_exact_address_beats_any_address() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::listener("0.0.0.0:8081".parse().unwrap()), 1, 0);
    kernel.own(PortKey::listener("198.51.100.20:8081".parse().unwrap()), 2, 0);
    kernel.own(PortKey::listener("[2001:db8:1::20]:8081".parse().unwrap()), 3, 0);
    for hook in Hook::ALL {
        let mut function = |frame: &[u8]| kernel.run(hook, frame).open[0].function;
        assert_eq!(function(&tcp_v4(SYN, &[], &[])), 2);
        assert_eq!(function(&with(tcp_v4(SYN, &[], &[]), V4_AT + 19, &[21])), 1);
        assert_eq!(function(&tcp_v6(SYN)), 3);
        assert_eq!(function(&with(tcp_v6(SYN), V6_AT + 39, &[0x21])), 1);
    }
}

#[test]
fn a_warm_function_is_counted_and_not_announced() {
    let Some(mut kernel) = Kernel::open() else { return };
    let any = PortKey::any(PORT);
    kernel.own(any, FUNCTION, FUNCTION_WARM);
    let frame = tcp_v4(SYN, &[], &[]);
    assert_eq!(untimed(kernel.run(Hook::Xdp, &frame)), passed(&[Stat::Warm]));
    kernel.own(any, FUNCTION, 0);
    assert_eq!(kernel.run(Hook::Xdp, &frame).counted, counted(&[Stat::Event]));
    // Warm at the exact address hides the cold one at any address.
    kernel.own(PortKey::exact(asked_v4().dst, PORT), FUNCTION + 1, FUNCTION_WARM);
    assert_eq!(untimed(kernel.run(Hook::Xdp, &frame)), passed(&[Stat::Warm]));
}

#[test]
fn a_syn_to_an_unowned_port_is_counted() {
    let Some(mut kernel) = Kernel::open() else { return };
    // In the same word of the port bitmap, and at another address of the same port.
    kernel.own(PortKey::any(PORT + 1), FUNCTION, 0);
    let frame = tcp_v4(SYN, &[], &[]);
    assert_eq!(untimed(kernel.run(Hook::Xdp, &frame)), passed(&[Stat::Unowned]));
    kernel.own(PortKey::exact(asked_v4().src, PORT), FUNCTION, 0);
    assert_eq!(untimed(kernel.run(Hook::Xdp, &frame)), passed(&[Stat::Unowned]));
}

#[test]
fn ignored_sources_wake_no_function_and_the_longest_prefix_decides() {
    let Some(mut kernel) = Kernel::open() else { return };
    kernel.own(PortKey::any(PORT), FUNCTION, 0);
    kernel.own(PortKey::any(PORT + 1), FUNCTION, FUNCTION_WARM);
    kernel.own(PortKey::any(PORT + 2), FUNCTION, FUNCTION_AUTH_WAKE);
    let frame = |last: u8| with(tcp_v4(SYN, &[], &[]), V4_AT + 15, &[last]);
    let to = |port: u16| with(frame(10), V4_TCP_AT + 2, &port.to_be_bytes());
    kernel.say("192.0.2.0".parse().unwrap(), 24, SourceRule::Ignore);
    kernel.say("192.0.2.128".parse().unwrap(), 25, SourceRule::Allow);
    kernel.say("2001:db8::".parse().unwrap(), 48, SourceRule::Ignore);
    for hook in Hook::ALL {
        let mut counts = |frame: &[u8], stat| assert_eq!(kernel.run(hook, frame).counted, counted(&[stat]));
        counts(&frame(10), Stat::Ignored);
        counts(&frame(127), Stat::Ignored);
        counts(&frame(128), Stat::Event);
        counts(&with(frame(10), V4_AT + 14, &[3]), Stat::Event);
        counts(&tcp_v6(SYN), Stat::Ignored);
        counts(&with(tcp_v6(SYN), V6_AT + 8 + 5, &[1]), Stat::Event);
        // A warm function raises no event, and the rule to ignore a source comes before its missing key.
        counts(&to(PORT + 1), Stat::Warm);
        counts(&to(PORT + 2), Stat::Ignored);
    }
}
