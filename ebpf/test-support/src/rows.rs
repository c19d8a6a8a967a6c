//! The table of packets that both parsers, host and kernel, must agree on.

use headstart_ebpf::packet::{Skip, Syn};

use crate::frames::*;

/// A frame and what the parser must make of it.
#[derive(Clone)]
pub struct Row {
    pub name: String,
    pub frame: Vec<u8>,
    pub expect: Result<Syn, Skip>,
}

fn row(name: &str, frame: Vec<u8>, expect: Result<Syn, Skip>) -> Row {
    Row { name: name.to_owned(), frame, expect }
}

fn starts_v4(name: &str, frame: Vec<u8>) -> Row {
    row(name, frame, Ok(asked_v4()))
}

fn starts_v6(name: &str, frame: Vec<u8>) -> Row {
    row(name, frame, Ok(asked_v6()))
}

fn skips(name: &str, frame: Vec<u8>, why: Skip) -> Row {
    row(name, frame, Err(why))
}

/// Every row.
pub fn all() -> Vec<Row> {
    [crafted(), truncated()].concat()
}

/// The rows that are about something else than a missing end.
pub fn crafted() -> Vec<Row> {
    [
        link(),
        ipv4_rows(),
        ipv6_rows(),
        flags(),
        tcp_lengths(),
        options(),
        addresses_v4(),
        addresses_v6(),
        tunnels(),
        large(),
    ]
    .concat()
}

fn link() -> Vec<Row> {
    let syn = ipv4(TCP, &[], &tcp(SYN, &[], &[]));
    let q = (0x8100, 100);
    let ad = (0x88a8, 200);
    vec![
        skips("runt of 0 bytes", vec![], Skip::Malformed),
        skips("runt of 13 bytes", cut(ethernet(IPV4, &syn), 13), Skip::Malformed),
        skips("runt of 14 bytes", cut(ethernet(IPV4, &syn), 14), Skip::Malformed),
        skips("runt of 33 bytes", cut(ethernet(IPV4, &syn), 33), Skip::Malformed),
        skips("runt of 53 bytes", cut(ethernet(IPV4, &syn), 53), Skip::Malformed),
        skips("runt of 14 zero bytes", vec![0; 14], Skip::NotTcp),
        starts_v4("padded to Ethernet's 60 bytes", joined(&[&ethernet(IPV4, &syn), &[0; 6]])),
        starts_v4("802.1Q", tagged(&[q], IPV4, &syn)),
        starts_v4("802.1Q, VID 0", tagged(&[(0x8100, 0xe000)], IPV4, &syn)),
        starts_v4("802.1ad", tagged(&[ad], IPV4, &syn)),
        starts_v4("802.1ad + 802.1Q", tagged(&[ad, q], IPV4, &syn)),
        starts_v4("802.1Q twice", tagged(&[q, q], IPV4, &syn)),
        starts_v6("802.1ad + 802.1Q, IPv6", tagged(&[ad, q], IPV6, &ipv6(TCP, &tcp(SYN, &[], &[])))),
        skips("triple tag", tagged(&[ad, q, q], IPV4, &syn), Skip::NotTcp),
        skips("tag cut off", cut(tagged(&[q], IPV4, &syn), 14), Skip::Malformed),
        skips("tag cut off within its type", cut(tagged(&[q], IPV4, &syn), 17), Skip::Malformed),
        skips("LLC length frame", ethernet(0x0028, &syn), Skip::NotTcp),
        skips(
            "PPPoE session",
            ethernet(0x8864, &joined(&[&[0x11, 0, 0, 1, 0, 42, 0, 0x21], &syn])),
            Skip::NotTcp,
        ),
        skips(
            "ARP",
            ethernet(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 0, 1]),
            Skip::NotTcp,
        ),
        skips("broadcast frame", with(ethernet(IPV4, &syn), 0, &[0xff; 6]), Skip::Refused),
        skips("multicast frame", with(ethernet(IPV4, &syn), 0, &[1, 0, 0x5e]), Skip::Refused),
    ]
}

fn ipv4_rows() -> Vec<Row> {
    let syn = || tcp_v4(SYN, &[], &[]);
    let with_options = |len: usize| ethernet(IPV4, &ipv4(TCP, &vec![1; len], &tcp(SYN, &[], &[])));
    let total_len = |len: u16| with(syn(), V4_AT + 2, &len.to_be_bytes());
    let fragment = |field: u16| with(syn(), V4_AT + 6, &field.to_be_bytes());
    let protocol = |number: u8| with(syn(), V4_AT + 9, &[number]);
    vec![
        starts_v4("IPv4 SYN", syn()),
        skips("IHL 0", with(syn(), V4_AT, &[0x40]), Skip::Malformed),
        skips("IHL 4", with(syn(), V4_AT, &[0x44]), Skip::Malformed),
        starts_v4("IHL 6", with_options(4)),
        starts_v4("IHL 15", with_options(40)),
        skips("IHL 15 past the end", with(syn(), V4_AT, &[0x4f]), Skip::Malformed),
        skips("IHL 15 cut off in the options", cut(with_options(40), V4_AT + 50), Skip::Malformed),
        skips("tot_len 0", total_len(0), Skip::Malformed),
        skips("tot_len 20, no room for TCP", total_len(20), Skip::Malformed),
        skips("tot_len one too short", total_len(39), Skip::Malformed),
        skips("tot_len one too long", total_len(41), Skip::Malformed),
        skips("tot_len 65535", total_len(65_535), Skip::Malformed),
        skips("version 6 under 0800", with(syn(), V4_AT, &[0x65]), Skip::Malformed),
        skips("version 4 under 86dd", with(tcp_v6(SYN), V6_AT, &[0x40]), Skip::Malformed),
        starts_v4("don't fragment", fragment(0x4000)),
        starts_v4("first fragment", fragment(0x2000)),
        skips("later fragment", fragment(0x2001), Skip::Fragment),
        skips("last fragment", fragment(0x1fff), Skip::Fragment),
        skips(
            "tiny first fragment",
            cut(with(fragment(0x2000), V4_AT + 2, &[0, 28]), V4_AT + 28),
            Skip::Malformed,
        ),
        skips("tiny first fragment, padded", with(fragment(0x2000), V4_AT + 2, &[0, 28]), Skip::Malformed),
        starts_v4("wrong IP checksum", with(syn(), V4_AT + 10, &[0xde, 0xad])),
        starts_v4("wrong TCP checksum", with(syn(), V4_TCP_AT + 16, &[0xde, 0xad])),
        skips("ICMP", protocol(1), Skip::NotTcp),
        skips("UDP", protocol(17), Skip::NotTcp),
        skips("SCTP", protocol(132), Skip::NotTcp),
    ]
}

fn ipv6_rows() -> Vec<Row> {
    let syn = || tcp_v6(SYN);
    let hop = (HOP_BY_HOP, extension(0, 0));
    let routing = (ROUTING, extension(0, 2));
    let left = (ROUTING, with(extension(0, 2), 3, &[1]));
    let options = (DESTINATION, extension(0, 1));
    let atomic = (FRAGMENT, fragment(0, 0, false));
    let five = [hop.clone(), options.clone(), routing.clone(), atomic.clone(), options.clone()];
    let next = |number: u8| with(syn(), V6_AT + 6, &[number]);
    let payload_len = |len: u16| with(syn(), V6_AT + 4, &len.to_be_bytes());
    let longest = (DESTINATION, extension(0, 255));
    vec![
        starts_v6("IPv6 SYN", syn()),
        starts_v6("hop-by-hop", chained_v6(std::slice::from_ref(&hop))),
        starts_v6("routing, no segments left", chained_v6(&[routing])),
        skips("routing, one segment left", chained_v6(&[left]), Skip::Refused),
        starts_v6("destination options", chained_v6(std::slice::from_ref(&options))),
        starts_v6("destination options of 2048 bytes", chained_v6(&[longest])),
        starts_v6("five headers", chained_v6(&five)),
        starts_v6("six headers", chained_v6(&[&five[..], std::slice::from_ref(&options)].concat())),
        skips(
            "seven headers",
            chained_v6(&[&five[..], &[options.clone(), options.clone()]].concat()),
            Skip::NotTcp,
        ),
        skips("hop-by-hop in second place", chained_v6(&[options.clone(), hop.clone()]), Skip::Malformed),
        skips("hop-by-hop twice", chained_v6(&[hop.clone(), hop]), Skip::Malformed),
        starts_v6("atomic fragment", chained_v6(&[atomic])),
        starts_v6("first fragment, IPv6", chained_v6(&[(FRAGMENT, fragment(0, 0, true))])),
        skips("later fragment, IPv6", chained_v6(&[(FRAGMENT, fragment(0, 1, true))]), Skip::Fragment),
        skips("last fragment, IPv6", chained_v6(&[(FRAGMENT, fragment(0, 8191, false))]), Skip::Fragment),
        skips(
            "extension header past the end",
            with(chained_v6(&[options]), V6_TCP_AT + 1, &[255]),
            Skip::Malformed,
        ),
        skips(
            "extension header cut off",
            cut(with(syn(), V6_AT + 6, &[DESTINATION]), V6_TCP_AT + 7),
            Skip::Malformed,
        ),
        skips("AH", next(51), Skip::NotTcp),
        skips("ESP", next(50), Skip::NotTcp),
        skips("no next header", next(59), Skip::NotTcp),
        skips("UDP, IPv6", next(17), Skip::NotTcp),
        skips("ICMPv6", next(58), Skip::NotTcp),
        skips("payload length 0", payload_len(0), Skip::Malformed),
        skips("payload length one too short", payload_len(19), Skip::Malformed),
        skips("payload length one too long", payload_len(21), Skip::Malformed),
    ]
}

fn flags() -> Vec<Row> {
    let not_syn = |name: &str, flags: u8| skips(name, tcp_v4(flags, &[], &[]), Skip::NotSyn);
    let syn = |name: &str, flags: u8| starts_v4(name, tcp_v4(flags, &[], &[]));
    vec![
        not_syn("null", 0),
        not_syn("ACK", ACK),
        not_syn("PSH+ACK", PSH | ACK),
        not_syn("FIN", FIN),
        not_syn("RST", RST),
        not_syn("SYN+ACK", SYN | ACK),
        not_syn("SYN+FIN", SYN | FIN),
        not_syn("SYN+RST", SYN | RST),
        not_syn("Xmas", FIN | PSH | URG),
        not_syn("every flag", 0xff),
        skips("ACK, IPv6", tcp_v6(ACK), Skip::NotSyn),
        skips("SYN+ACK, IPv6", tcp_v6(SYN | ACK), Skip::NotSyn),
        syn("SYN+ECE+CWR", SYN | ECE | CWR),
        syn("SYN+URG", SYN | URG),
        syn("SYN+PSH", SYN | PSH),
        starts_v4(
            "SYN with accurate ECN and reserved bits",
            with(tcp_v4(SYN, &[], &[]), V4_TCP_AT + 12, &[0x5f]),
        ),
        starts_v4("SYN+data", tcp_v4(SYN, &[], b"hello")),
    ]
}

fn tcp_lengths() -> Vec<Row> {
    let words = |words: u8| with(tcp_v4(SYN, &[], &[]), V4_TCP_AT + 12, &[words << 4]);
    vec![
        skips("doff 0", words(0), Skip::Malformed),
        skips("doff 4", words(4), Skip::Malformed),
        skips("doff 6 past the end", words(6), Skip::Malformed),
        skips("doff 15 past the end", words(15), Skip::Malformed),
        starts_v4("doff 15", tcp_v4(SYN, &[1; 40], &[])),
        skips("doff 15 past tot_len, into the padding", joined(&[&words(15), &[0; 40]]), Skip::Malformed),
        skips("doff 15 past the end, IPv6", with(tcp_v6(SYN), V6_TCP_AT + 12, &[0xf0]), Skip::Malformed),
    ]
}

/// Options are not read here: whatever they hold, the packet is a plain SYN.
fn options() -> Vec<Row> {
    const LINUX: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    const OURS: [u8; 16] = [253, 16, 0x48, 0x53, 1, 7, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6];
    let syn = |name: &str, options: &[&[u8]]| {
        let mut options = options.concat();
        options.resize(options.len().next_multiple_of(4), 0);
        starts_v4(name, tcp_v4(SYN, &options, &[]))
    };
    let md5 = [&[19_u8, 18][..], &[0xaa; 16]].concat();
    let mptcp = [30, 12, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8];
    vec![
        syn("options of Linux", &[&LINUX]),
        syn("NOP x 40", &[&[1; 40]]),
        syn("EOL first", &[&[0], &LINUX[..19]]),
        syn("EOL midway", &[&LINUX[..4], &[0, 0], &OURS]),
        syn("option length 0", &[&[8, 0, 0, 0]]),
        syn("option length 1", &[&[8, 1, 0, 0]]),
        syn("option length 2", &[&[8, 2, 0, 0]]),
        syn("option length 255", &[&[8, 255, 0, 0]]),
        syn("function ID option first", &[&OURS, &LINUX]),
        syn("function ID option last", &[&LINUX, &OURS]),
        syn("function ID option unaligned", &[&LINUX, &[1], &OURS]),
        syn("function ID option twice", &[&OURS, &OURS]),
        syn("253 with a truncated ExID", &[&[253, 3, 0x48]]),
        syn("253 without ExID", &[&[253, 2]]),
        syn("254", &[&[254, 4, 0x48, 0x53]]),
        syn("MD5", &[&md5]),
        syn("MPTCP", &[&LINUX, &mptcp]),
        starts_v4("TFO cookie request", tcp_v4(SYN, &[34, 2, 1, 1], &[])),
        starts_v4(
            "TFO with data",
            tcp_v4(SYN, &[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1], b"GET / HTTP/1.1\r\n\r\n"),
        ),
    ]
}

fn addresses_v4() -> Vec<Row> {
    let syn = || tcp_v4(SYN, &[], &[]);
    let (src, dst) = (V4_AT + 12, V4_AT + 16);
    let refuses = |name: &str, at: usize, bytes: &[u8]| skips(name, with(syn(), at, bytes), Skip::Refused);
    let one_host = with(syn(), src, &SERVER_V4);
    let both_ports_max = with(syn(), V4_TCP_AT, &[0xff; 4]);
    vec![
        skips("land", with(one_host.clone(), V4_TCP_AT, &PORT.to_be_bytes()), Skip::Refused),
        row("same address, other port", one_host, Ok(Syn { src: mapped(SERVER_V4).into(), ..asked_v4() })),
        refuses("multicast source", src, &[224, 0, 0, 1]),
        refuses("multicast destination", dst, &[239, 255, 255, 255]),
        refuses("broadcast source", src, &[255; 4]),
        refuses("broadcast destination", dst, &[255; 4]),
        refuses("loopback source", src, &[127, 0, 0, 1]),
        refuses("loopback destination", dst, &[127, 255, 255, 254]),
        refuses("unspecified source", src, &[0; 4]),
        refuses("unspecified destination", dst, &[0; 4]),
        row(
            "source in 240/4",
            with(syn(), src, &[240, 0, 0, 1]),
            Ok(Syn { src: mapped([240, 0, 0, 1]).into(), ..asked_v4() }),
        ),
        row(
            "source in 0/8",
            with(syn(), src, &[0, 0, 0, 1]),
            Ok(Syn { src: mapped([0, 0, 0, 1]).into(), ..asked_v4() }),
        ),
        refuses("source port 0", V4_TCP_AT, &[0, 0]),
        refuses("destination port 0", V4_TCP_AT + 2, &[0, 0]),
        row("ports 65535", both_ports_max, Ok(Syn { src_port: 65_535, dst_port: 65_535, ..asked_v4() })),
        row(
            "ISN 0xffffffff",
            with(syn(), V4_TCP_AT + 4, &[0xff; 4]),
            Ok(Syn { isn: u32::MAX, ..asked_v4() }),
        ),
    ]
}

fn addresses_v6() -> Vec<Row> {
    let (src, dst) = (V6_AT + 8, V6_AT + 24);
    let refuses =
        |name: &str, at: usize, bytes: &[u8]| skips(name, with(tcp_v6(SYN), at, bytes), Skip::Refused);
    let last = |octet: u8| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, octet];
    let land = with(with(tcp_v6(SYN), src, &SERVER_V6), V6_TCP_AT, &PORT.to_be_bytes());
    let low = with(tcp_v6(SYN), src, &last(2));
    vec![
        skips("land, IPv6", land, Skip::Refused),
        refuses("v4-mapped source", src, &mapped(CLIENT_V4)),
        refuses("v4-mapped destination", dst, &mapped(SERVER_V4)),
        refuses("multicast source, IPv6", src, &[0xff, 2]),
        refuses("multicast destination, IPv6", dst, &[0xff, 0x0e]),
        refuses("loopback source, IPv6", src, &last(1)),
        refuses("loopback destination, IPv6", dst, &last(1)),
        refuses("unspecified source, IPv6", src, &[0; 16]),
        refuses("unspecified destination, IPv6", dst, &[0; 16]),
        row("source ::2", low, Ok(Syn { src: last(2).into(), ..asked_v6() })),
        refuses("source port 0, IPv6", V6_TCP_AT, &[0, 0]),
        refuses("destination port 0, IPv6", V6_TCP_AT + 2, &[0, 0]),
    ]
}

/// A SYN inside a tunnel has another destination.
fn tunnels() -> Vec<Row> {
    let inner_v4 = ipv4(TCP, &[], &tcp(SYN, &[], &[]));
    let inner_v6 = ipv6(TCP, &tcp(SYN, &[], &[]));
    let gre = joined(&[&[0, 0, 0x08, 0], &inner_v4]);
    let udp = [0x12, 0xb5, 0x12, 0xb5, 0, 0, 0, 0];
    let vxlan = joined(&[&udp, &[8, 0, 0, 0, 0, 0, 1, 0], &ethernet(IPV4, &inner_v4)]);
    vec![
        skips("IPIP", ethernet(IPV4, &ipv4(4, &[], &inner_v4)), Skip::NotTcp),
        skips("6in4", ethernet(IPV4, &ipv4(41, &[], &inner_v6)), Skip::NotTcp),
        skips("4in6", ethernet(IPV6, &ipv6(4, &inner_v4)), Skip::NotTcp),
        skips("GRE", ethernet(IPV4, &ipv4(47, &[], &gre)), Skip::NotTcp),
        skips("VXLAN", ethernet(IPV4, &ipv4(17, &[], &vxlan)), Skip::NotTcp),
        skips("VXLAN, IPv6", ethernet(IPV6, &ipv6(17, &vxlan)), Skip::NotTcp),
        skips("SYN as the data of an ACK", tcp_v4(ACK, &[], &inner_v4), Skip::NotSyn),
    ]
}

/// Larger than one page, so more than one buffer to a multi-buffer XDP program.
fn large() -> Vec<Row> {
    vec![
        starts_v4("jumbo SYN with 8,900 bytes of data", tcp_v4(SYN, &[], &[b'x'; 8_900])),
        skips(
            "jumbo SYN, tot_len one too long",
            cut(tcp_v4(SYN, &[], &[b'x'; 8_900]), 8_953),
            Skip::Malformed,
        ),
        skips("64 KB GSO segment", tcp_v4(ACK, &[], &vec![b'x'; 65_000]), Skip::NotSyn),
    ]
}

/// Valid SYNs, cut at every byte: never a start, whatever is missing.
fn truncated() -> Vec<Row> {
    let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    let whole = [
        ("IPv4", ethernet(IPV4, &ipv4(TCP, &[1; 8], &tcp(SYN, &options, b"data")))),
        ("tagged IPv4", tagged(&[(0x88a8, 2), (0x8100, 1)], IPV4, &ipv4(TCP, &[], &tcp(SYN, &options, &[])))),
        (
            "IPv6",
            chained_v6(&[
                (HOP_BY_HOP, extension(0, 0)),
                (DESTINATION, extension(0, 1)),
                (FRAGMENT, fragment(0, 0, false)),
            ]),
        ),
    ];
    let mut rows = Vec::new();
    for (name, frame) in whole {
        for len in 0..frame.len() {
            rows.push(skips(
                &format!("{name} SYN cut to {len} bytes"),
                cut(frame.clone(), len),
                Skip::Malformed,
            ));
        }
    }
    rows
}
