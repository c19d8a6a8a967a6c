//! A node with every kind of function, and packets with tags and knocks for it, right and wrong.

use headstart_ebpf::auth::Key;
use headstart_ebpf::event::Stat;
use headstart_ebpf::knock::Knock;
use headstart_ebpf::option::FunctionOption;

use crate::frames::*;

pub const KEY: Key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
pub const WRONG_KEY: Key = [1, 2];
pub const EPOCH: u64 = 0x1_0000_00ff;
pub const KNOCK_PORT: u16 = 9_999;

/// Ports: shared by several functions, early for clients with a key, closed to others, without a default
/// function, closed and warm.
pub const SHARED: u16 = PORT;
pub const WAKE: u16 = PORT + 1;
pub const CONNECT: u16 = PORT + 2;
pub const WITHOUT_DEFAULT: u16 = PORT + 3;
pub const CONNECT_WARM: u16 = PORT + 4;
/// IDs: one of several on `SHARED`, the same on `WITHOUT_DEFAULT`; that of the function on `CONNECT`; a warm one.
pub const GUEST: u32 = 0x0102_0304;
pub const CLOSED: u32 = 77;
pub const WARM: u32 = 78;

/// A packet, what it must be counted as, and whether it must be dropped.
pub struct Proof {
    pub name: String,
    pub frame: Vec<u8>,
    pub counts: Vec<Stat>,
    pub dropped: bool,
}

fn proof(name: &str, frame: Vec<u8>, counts: &[Stat]) -> Proof {
    let dropped = [Stat::Refused, Stat::Knock, Stat::KnockReplayed].iter().any(|stat| counts.contains(stat));
    Proof { name: name.to_owned(), frame, counts: counts.to_vec(), dropped }
}

/// A SYN with `options`, padded with zeros to whole words.
pub fn syn_to(port: u16, isn: u32, options: &[&[u8]]) -> Vec<u8> {
    let mut options = options.concat();
    options.resize(options.len().next_multiple_of(4), 0);
    let frame = tcp_v4(SYN, &options, &[]);
    with(with(frame, V4_TCP_AT + 2, &port.to_be_bytes()), V4_TCP_AT + 4, &isn.to_be_bytes())
}

/// A SYN with a tag; `epoch` is the one it was made in.
pub fn tagged_syn(port: u16, isn: u32, key: Key, number: u8, epoch: u64, id: u32) -> Vec<u8> {
    let option = FunctionOption::tagged(key, number, epoch, id, port, isn);
    syn_to(port, isn, &[&option.encode()])
}

/// A UDP packet from the client to the server.
pub fn udp_v4(port: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(IPV4, &ipv4(UDP, &[], &udp(port, payload)))
}

pub fn udp_v6(port: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(IPV6, &ipv6(UDP, &udp(port, payload)))
}

/// A knock with a key of the right number.
pub fn knock(key: Key, epoch: u64, id: u32, nonce: u64) -> Vec<u8> {
    udp_v4(KNOCK_PORT, &Knock::new(key, 1, epoch, id, nonce).encode())
}

/// Every packet with its outcome, in this order on a fresh node.
pub fn all() -> Vec<Proof> {
    [options(), tags(), replays(), knocks(), flipped()].into_iter().flatten().collect()
}

/// Who is meant.
fn options() -> Vec<Proof> {
    use Stat::{BadOption, Event, Refused, Unauthenticated, Unowned, Warm};
    let linux: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    let ours = FunctionOption::open(GUEST).encode();
    let row =
        |name: &str, options: &[&[u8]], counts: &[Stat]| proof(name, syn_to(SHARED, ISN, options), counts);
    let to = |name: &str, port: u16, options: &[&[u8]], counts: &[Stat]| {
        proof(name, syn_to(port, ISN, options), counts)
    };
    vec![
        row("no option", &[], &[Event]),
        row("ours alone", &[&ours], &[Event]),
        row("ours of an unknown function", &[&FunctionOption::open(5).encode()], &[Event]),
        row("ours first", &[&ours, linux], &[Event]),
        row("ours last", &[linux, &ours], &[Event]),
        row("ours unaligned", &[linux, &[1], &ours], &[Event]),
        row("ours last of 40", &[&[1; 24], &ours], &[Event]),
        row("ours cut off by the end of the options", &[&[1; 28], &ours[..12]], &[Event, BadOption]),
        row("ours cut off after its ExID", &[&[1; 36], &ours[..4]], &[Event, BadOption]),
        row("ours of length 12", &[&[253, 12, b'H', b'S'], &ours[4..12]], &[Event, BadOption]),
        row("ours of length 4", &[&[253, 4, b'H', b'S']], &[Event, BadOption]),
        row("ours of length 255", &[&[253, 255, b'H', b'S'], &ours[4..]], &[Event, BadOption]),
        row("ours of version 2", &[&ours[..4], &[0x20], &ours[5..]], &[Event, BadOption]),
        row("ours twice", &[&ours, &FunctionOption::open(0).encode()], &[Event]),
        row("another experiment's 253", &[&[253, 6, 0xf9, 0x89, 1, 2]], &[Event]),
        row("another experiment's 253 before ours", &[&[253, 6, 0xf9, 0x89, 1, 2], &ours], &[Event]),
        row("254 with our ExID", &[&[254, 16], &ours[2..]], &[Event]),
        row("ours after the end", &[&[0], &ours], &[Event]),
        row("ours after an option of length 0", &[&[8, 0], &ours], &[Event]),
        row("ours after an option of length 1", &[&[8, 1], &ours], &[Event]),
        row("ours within another option", &[&[19, 18], &ours], &[Event]),
        to("a closed function without option", CONNECT, &[], &[Refused]),
        to("a closed, warm function without option", CONNECT_WARM, &[], &[Refused]),
        to("a function early for others", WAKE, &[], &[Unauthenticated]),
        to("a port without a default function", WITHOUT_DEFAULT, &[], &[Unowned]),
        to("a port without a default function, a guest", WITHOUT_DEFAULT, &[&ours], &[Event]),
        to(
            "a port without a default function, unknown function",
            WITHOUT_DEFAULT,
            &[&FunctionOption::open(5).encode()],
            &[Unowned],
        ),
        row("a warm guest", &[&FunctionOption::open(WARM).encode()], &[Warm]),
        row("a closed guest", &[&FunctionOption::open(CLOSED).encode()], &[Refused]),
    ]
}

/// Who asks.
fn tags() -> Vec<Proof> {
    use Stat::{Authenticated, BadEpoch, BadTag, Event, Refused, Unauthenticated, UnknownKey, Warm};
    let at = |name: &str, epoch: u64, isn: u32, counts: &[Stat]| {
        proof(name, tagged_syn(CONNECT, isn, KEY, 1, epoch, 0), counts)
    };
    let moved = |port: u16, frame: Vec<u8>| with(frame, V4_TCP_AT + 2, &port.to_be_bytes());
    vec![
        at("this epoch", EPOCH, 1, &[Authenticated]),
        at("one epoch early", EPOCH + 1, 2, &[Authenticated]),
        at("one epoch late", EPOCH - 1, 3, &[Authenticated]),
        at("two epochs early", EPOCH + 2, 4, &[Refused, BadEpoch]),
        at("two epochs late", EPOCH - 2, 5, &[Refused, BadEpoch]),
        at("256 epochs late", EPOCH - 256, 6, &[Refused, BadTag]),
        proof("wrong key", tagged_syn(CONNECT, 7, WRONG_KEY, 1, EPOCH, 0), &[Refused, BadTag]),
        proof("unknown key", tagged_syn(CONNECT, 8, KEY, 2, EPOCH, 0), &[Refused, UnknownKey]),
        proof("wrong key, open function", tagged_syn(SHARED, 9, WRONG_KEY, 1, EPOCH, 0), &[Event, BadTag]),
        proof(
            "wrong key, early function",
            tagged_syn(WAKE, 10, WRONG_KEY, 1, EPOCH, 0),
            &[Unauthenticated, BadTag],
        ),
        proof("early function", tagged_syn(WAKE, 11, KEY, 1, EPOCH, 0), &[Authenticated]),
        proof("open function", tagged_syn(SHARED, 12, KEY, 1, EPOCH, 0), &[Authenticated]),
        proof("open guest", tagged_syn(SHARED, 13, KEY, 1, EPOCH, GUEST), &[Authenticated]),
        proof("closed guest", tagged_syn(SHARED, 14, KEY, 1, EPOCH, CLOSED), &[Authenticated]),
        proof("closed and warm", tagged_syn(CONNECT_WARM, 15, KEY, 1, EPOCH, 0), &[Warm]),
        proof(
            "a tag for another port",
            moved(CONNECT, tagged_syn(WAKE, 16, KEY, 1, EPOCH, 0)),
            &[Refused, BadTag],
        ),
        proof(
            "a tag for another sequence number",
            with(tagged_syn(CONNECT, 17, KEY, 1, EPOCH, 0), V4_TCP_AT + 4, &[0, 0, 0, 18]),
            &[Refused, BadTag],
        ),
    ]
}

fn replays() -> Vec<Proof> {
    use Stat::{Authenticated, Refused, Replayed};
    let syn = || tagged_syn(CONNECT, 100, KEY, 1, EPOCH, 0);
    let source = with(syn(), V4_AT + 12, &[192, 0, 2, 99]);
    vec![
        proof("first", syn(), &[Authenticated]),
        proof("again: a retransmission", syn(), &[Authenticated]),
        proof("from another port", with(syn(), V4_TCP_AT, &[0x9c, 0x41]), &[Refused, Replayed]),
        proof("from another address", source, &[Refused, Replayed]),
        proof("to another address", with(syn(), V4_AT + 16, &[198, 51, 100, 21]), &[Refused, Replayed]),
        proof("from the first once more", syn(), &[Authenticated]),
    ]
}

fn knocks() -> Vec<Proof> {
    use Stat::{Authenticated, Knock as Valid, KnockInvalid, KnockReplayed, NotSyn, Refused};
    let right = knock(KEY, EPOCH, CLOSED, 1);
    let payload = Knock::new(KEY, 1, EPOCH, CLOSED, 2).encode();
    let far = with(syn_to(CONNECT, 200, &[]), V4_AT + 12, &[192, 0, 2, 200]);
    let padded = [&knock(KEY, EPOCH, CLOSED, 3)[..], &[0; 6]].concat();
    let wrong = |name: &str, frame: Vec<u8>| proof(name, frame, &[KnockInvalid]);
    vec![
        proof("before any knock", syn_to(CONNECT, 199, &[]), &[Refused]),
        proof("knock", right.clone(), &[Valid]),
        proof("knock again", right.clone(), &[KnockReplayed]),
        proof("knock again, other port", with(right.clone(), V4_TCP_AT, &[1, 1]), &[KnockReplayed]),
        proof("opened", syn_to(CONNECT, 201, &[]), &[Authenticated]),
        proof("not opened for others", far, &[Refused]),
        proof("not opened: the early function", syn_to(WAKE, 202, &[]), &[Stat::Unauthenticated]),
        proof("knock, padded", padded, &[Valid]),
        proof("knock, IPv6", udp_v6(KNOCK_PORT, &Knock::new(KEY, 1, EPOCH, GUEST, 4).encode()), &[Valid]),
        proof("knock at a warm function", knock(KEY, EPOCH, WARM, 5), &[Valid]),
        proof("knock one epoch early", knock(KEY, EPOCH + 1, CLOSED, 6), &[Valid]),
        proof("knock one epoch late", knock(KEY, EPOCH - 1, CLOSED, 7), &[Valid]),
        wrong("knock two epochs early", knock(KEY, EPOCH + 2, CLOSED, 8)),
        wrong("knock two epochs late", knock(KEY, EPOCH - 2, CLOSED, 9)),
        wrong("knock 256 epochs late", knock(KEY, EPOCH - 256, CLOSED, 9)),
        wrong("knock with a wrong key", knock(WRONG_KEY, EPOCH, CLOSED, 10)),
        wrong("knock for an unknown function", knock(KEY, EPOCH, 5, 11)),
        wrong("knock at function 0", knock(KEY, EPOCH, 0, 12)),
        wrong("knock with key 2", udp_v4(KNOCK_PORT, &Knock::new(KEY, 2, EPOCH, CLOSED, 13).encode())),
        wrong("knock with key 0", udp_v4(KNOCK_PORT, &Knock::new(KEY, 0, EPOCH, CLOSED, 13).encode())),
        wrong("knock with key 255", udp_v4(KNOCK_PORT, &Knock::new(KEY, 255, EPOCH, CLOSED, 13).encode())),
        wrong("knock, one byte more", udp_v4(KNOCK_PORT, &[&payload[..], &[0]].concat())),
        wrong("knock, one byte less", udp_v4(KNOCK_PORT, &payload[..39])),
        wrong("knock, cut off", cut(udp_v4(KNOCK_PORT, &payload), V4_AT + 20 + 8 + 39)),
        wrong("knock from a multicast address", with(udp_v4(KNOCK_PORT, &payload), V4_AT + 12, &[224])),
        wrong("nothing at the knock's port", udp_v4(KNOCK_PORT, &[])),
        wrong("noise at the knock's port", udp_v4(KNOCK_PORT, &[0xaa; 40])),
        proof("knock at another port", udp_v4(KNOCK_PORT + 1, &payload), &[NotSyn]),
        proof("knock in a later fragment", with(udp_v4(KNOCK_PORT, &payload), V4_AT + 6, &[0, 1]), &[NotSyn]),
        proof("the same, at last", udp_v4(KNOCK_PORT, &payload), &[Valid]),
    ]
}

/// A tag and a knock with each of their bytes changed: none is right.
fn flipped() -> Vec<Proof> {
    let option = FunctionOption::tagged(KEY, 1, EPOCH, CLOSED, CONNECT, 300).encode();
    let other = [192, 0, 2, 77];
    let mut proofs = Vec::new();
    for byte in 0..option.len() {
        let mut changed = option;
        changed[byte] ^= 1;
        // Of another source than the one that knocked.
        let frame = with(syn_to(CONNECT, 300, &[&changed]), V4_AT + 12, &other);
        let note = match byte {
            // No option of ours, or one without a key.
            0 | 2 | 3 | 4 => None,
            1 => Some(Stat::BadOption),
            _ => Some(Stat::BadTag),
        };
        let counts: Vec<Stat> = [Stat::Refused].into_iter().chain(note).collect();
        proofs.push(proof(&format!("byte {byte} of a tag's option changed"), frame, &counts));
    }
    let payload = Knock::new(KEY, 1, EPOCH, CLOSED, 400).encode();
    for byte in 0..payload.len() {
        let mut changed = payload;
        changed[byte] ^= 1;
        let frame = udp_v4(KNOCK_PORT, &changed);
        proofs.push(proof(&format!("byte {byte} of a knock changed"), frame, &[Stat::KnockInvalid]));
    }
    proofs
}
