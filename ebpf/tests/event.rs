//! What the kernel writes is what user space reads, and keys mean what the configuration says.

use headstart_ebpf::event::{AUTHENTICATED, EventKind, Stat, SynEvent, total};
use headstart_ebpf::maps::PortKey;
use headstart_ebpf::packet::{IpWords, Syn};

fn event(src: &str, dst: &str) -> SynEvent {
    let words = |address: &str| match address.parse().expect("an IP address") {
        std::net::IpAddr::V4(v4) => IpWords::from(v4.to_ipv6_mapped().octets()),
        std::net::IpAddr::V6(v6) => IpWords::from(v6.octets()),
    };
    let syn = Syn {
        src: words(src),
        dst: words(dst),
        src_port: 40_000,
        dst_port: 8081,
        isn: 0xdead_beef,
        ip_version: if src.contains(':') { 6 } else { 4 },
    };
    SynEvent::new(&syn, 42, EventKind::Syn, AUTHENTICATED, 1_234_567_890_123)
}

/// The record as the kernel lays it out, field after field.
fn bytes(event: &SynEvent) -> Vec<u8> {
    [
        &event.timestamp_ns.to_ne_bytes()[..],
        &event.function.to_ne_bytes(),
        &event.isn.to_ne_bytes(),
        &event.src,
        &event.dst,
        &event.src_port.to_ne_bytes(),
        &event.dst_port.to_ne_bytes(),
        &[event.kind, event.ip_version, event.flags, event.pad],
    ]
    .concat()
}

#[test]
fn a_record_is_read_back_at_any_alignment() {
    for event in [event("192.0.2.1", "198.51.100.2"), event("2001:db8::1", "2001:db8::2")] {
        for shift in 0..8 {
            let shifted = [vec![0xee; shift], bytes(&event)].concat();
            assert_eq!(SynEvent::from_bytes(&shifted[shift..]), Some(event));
        }
    }
}

#[test]
fn a_record_of_another_length_is_refused() {
    let record = [bytes(&event("192.0.2.1", "198.51.100.2")), vec![0; 8]].concat();
    for len in (0..record.len()).filter(|len| *len != SynEvent::SIZE) {
        assert_eq!(SynEvent::from_bytes(&record[..len]), None, "{len} bytes");
    }
}

#[test]
fn addresses_come_out_as_they_were_on_the_wire() {
    let v4 = event("192.0.2.1", "198.51.100.2");
    assert_eq!(v4.source(), "192.0.2.1:40000".parse().unwrap());
    assert_eq!(v4.destination(), "198.51.100.2:8081".parse().unwrap());
    let v6 = event("2001:db8::1", "2001:db8::2");
    assert_eq!(v6.source(), "[2001:db8::1]:40000".parse().unwrap());
    assert_eq!(v6.destination(), "[2001:db8::2]:8081".parse().unwrap());
}

#[test]
fn only_known_kinds_have_a_name() {
    let mut event = event("192.0.2.1", "198.51.100.2");
    for kind in [EventKind::Syn, EventKind::Lookup, EventKind::Knock] {
        event.kind = kind as u8;
        assert_eq!(event.kind(), Some(kind));
    }
    for unknown in [0, 4, 255] {
        event.kind = unknown;
        assert_eq!(event.kind(), None);
    }
}

#[test]
fn listeners_become_keys() {
    let key = |listen: &str| PortKey::listener(listen.parse().unwrap());
    assert_eq!(key("0.0.0.0:80"), PortKey::any(80));
    assert_eq!(key("[::]:80"), PortKey::any(80));
    assert_eq!(key("192.0.2.1:80"), key("[::ffff:192.0.2.1]:80"));
    assert_ne!(key("192.0.2.1:80"), key("192.0.2.1:81"));
    assert_ne!(key("192.0.2.1:80"), PortKey::any(80));
}

#[test]
fn counters_of_all_cpus_are_summed() {
    let (mut one, mut two) = ([1; Stat::ALL.len()], [10; Stat::ALL.len()]);
    one[Stat::Packets as usize] = 100;
    two[Stat::RingFull as usize] = u64::MAX;
    let sum = total([&one, &two]);
    assert_eq!(sum[Stat::Packets as usize], 110);
    assert_eq!(sum[Stat::Warm as usize], 11);
    assert_eq!(sum[Stat::RingFull as usize], 0, "wraps");
    for (index, stat) in Stat::ALL.iter().enumerate() {
        assert_eq!(*stat as usize, index);
    }
}
