//! Builds frames byte by byte, header by header, with lengths filled in; rows then break what they test.

use headstart_ebpf::packet::{IpWords, Syn};

pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

pub const HOP_BY_HOP: u8 = 0;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION: u8 = 60;

pub const CLIENT_PORT: u16 = 40_000;
pub const PORT: u16 = 8081;
pub const ISN: u32 = 0x1234_5678;
pub const CLIENT_V4: [u8; 4] = [192, 0, 2, 10];
pub const SERVER_V4: [u8; 4] = [198, 51, 100, 20];
pub const CLIENT_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
pub const SERVER_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20];

/// Offsets in a frame without tags or IP options.
pub const V4_AT: usize = 14;
pub const V4_TCP_AT: usize = V4_AT + 20;
pub const V6_AT: usize = 14;
pub const V6_TCP_AT: usize = V6_AT + 40;

/// `frame` with `bytes` written over it at `at`.
pub fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The first `len` bytes.
pub fn cut(mut frame: Vec<u8>, len: usize) -> Vec<u8> {
    frame.truncate(len);
    frame
}

pub fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// From one unicast MAC to another.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    joined(&[&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &ethertype.to_be_bytes(), payload])
}

/// `ethernet` with tags of (TPID, TCI) before the payload's type.
pub fn tagged(tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut types: Vec<u8> =
        tags.iter().flat_map(|(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat()).collect();
    types.extend(ethertype.to_be_bytes());
    let first = u16::from_be_bytes([types[0], types[1]]);
    ethernet(first, &joined(&[&types[2..], payload]))
}

/// An IPv4 header with `options` (a multiple of 4 bytes) and its payload. Without a checksum, which no program verifies.
pub fn ipv4(protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4), "IPv4 options come in words");
    let words = 5 + options.len() as u8 / 4;
    let total_len = ((usize::from(words) * 4 + payload.len()) as u16).to_be_bytes();
    let fixed = [0x40 | words, 0, total_len[0], total_len[1], 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
    joined(&[&fixed, &CLIENT_V4, &SERVER_V4, options, payload])
}

pub fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    joined(&[&[0x60, 0, 0, 0, len[0], len[1], next, 64], &CLIENT_V6, &SERVER_V6, payload])
}

/// An extension header of `8 * (units + 1)` bytes, PadN inside; as a routing header, no segments left.
pub fn extension(next: u8, units: u8) -> Vec<u8> {
    let mut header = vec![0; (usize::from(units) + 1) * 8];
    header[..3].copy_from_slice(&[next, units, 1]);
    header
}

/// A fragment header with its offset in units of 8 bytes.
pub fn fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let field = (offset << 3 | u16::from(more)).to_be_bytes();
    vec![next, 0, field[0], field[1], 0, 0, 0, 1]
}

/// A TCP segment; `options` are a multiple of 4 bytes.
pub fn tcp(flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4), "TCP options come in words");
    let words = 5 + options.len() as u8 / 4;
    let tail = [words << 4, flags, 0xff, 0xff, 0, 0, 0, 0];
    joined(&[
        &CLIENT_PORT.to_be_bytes(),
        &PORT.to_be_bytes(),
        &ISN.to_be_bytes(),
        &0_u32.to_be_bytes(),
        &tail,
        options,
        data,
    ])
}

/// A UDP packet without a checksum, which no program verifies.
pub fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len() as u16).to_be_bytes();
    joined(&[&CLIENT_PORT.to_be_bytes(), &port.to_be_bytes(), &len, &[0, 0], payload])
}

pub fn tcp_v4(flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    ethernet(IPV4, &ipv4(TCP, &[], &tcp(flags, options, data)))
}

pub fn tcp_v6(flags: u8) -> Vec<u8> {
    ethernet(IPV6, &ipv6(TCP, &tcp(flags, &[], &[])))
}

/// `headers` as (type, bytes) before a SYN, each naming the next.
pub fn chained_v6(headers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut next = TCP;
    let mut payload = tcp(SYN, &[], &[]);
    for (kind, header) in headers.iter().rev() {
        payload = joined(&[&with(header.clone(), 0, &[next]), &payload]);
        next = *kind;
    }
    ethernet(IPV6, &ipv6(next, &payload))
}

pub fn mapped(v4: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets()
}

/// What `tcp_v4(SYN, ..)` asks for.
pub fn asked_v4() -> Syn {
    Syn {
        src: IpWords::from(mapped(CLIENT_V4)),
        dst: IpWords::from(mapped(SERVER_V4)),
        src_port: CLIENT_PORT,
        dst_port: PORT,
        isn: ISN,
        ip_version: 4,
    }
}

/// What `tcp_v6(SYN)` asks for.
pub fn asked_v6() -> Syn {
    Syn { src: CLIENT_V6.into(), dst: SERVER_V6.into(), ip_version: 6, ..asked_v4() }
}
