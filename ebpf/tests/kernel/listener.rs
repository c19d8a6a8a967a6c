//! The filter on listeners, with real connections, and with SYNs made by hand where they need a tag.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use aya::programs::SocketFilter;
use headstart_ebpf::event::Stat;
use headstart_ebpf::maps::{
    FUNCTION_AUTH_CONNECT, FUNCTION_AUTH_WAKE, FUNCTION_OPTION, OpenedKey, PROGRAM_GATE, PacketFlow, PortKey,
};
use headstart_ebpf::option::FunctionOption;
use headstart_ebpf::packet::IpWords;
use socket2::{Domain, Protocol, Socket, Type};

use super::FUNCTION;
use super::namespace::alone;
use headstart_ebpf_test_support::kernel::Kernel;
use headstart_ebpf_test_support::proofs::{CLOSED, EPOCH, KEY, WRONG_KEY};

const CLOSED_FLAGS: u32 = FUNCTION_OPTION | FUNCTION_AUTH_CONNECT;

/// A listener behind the filter, of a function with `flags`.
fn guarded(kernel: &mut Kernel, address: &str, flags: u32) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let bound = listener.local_addr().unwrap();
    let program: &SocketFilter = kernel.ebpf.program(PROGRAM_GATE).unwrap().try_into().unwrap();
    program.attach(&listener).unwrap();
    kernel.own(PortKey::any(bound.port()), FUNCTION, flags);
    kernel.know(1, KEY);
    kernel.set(|settings| settings.epoch = EPOCH);
    (listener, bound)
}

fn refused(kernel: &Kernel) -> u64 {
    kernel.counters()[Stat::GateRefused as usize]
}

/// Starts to connect; on loopback the SYN has been answered, or dropped, when this returns.
fn starts_to_connect(to: SocketAddr) -> bool {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _in_progress = socket.connect(&to.into());
    socket.peer_addr().is_ok()
}

#[test]
fn unannounced_clients_are_refused_until_their_network_knocks() {
    alone(|mut kernel| {
        for (address, source) in [
            ("127.0.0.1:0", IpWords::from_v4(Ipv4Addr::LOCALHOST.octets())),
            ("[::1]:0", IpWords::from(Ipv6Addr::LOCALHOST.octets())),
        ] {
            let (_listener, bound) = guarded(&mut kernel, address, CLOSED_FLAGS);
            let before = refused(&kernel);
            assert!(!starts_to_connect(bound), "{bound}");
            assert_eq!(refused(&kernel), before + 1);
            let key = OpenedKey { network: source.network(), function: FUNCTION, pad: 0 };
            kernel.opened.insert(key, u64::MAX, 0).unwrap();
            assert!(starts_to_connect(bound), "{bound}");
            kernel.opened.insert(key, 1, 0).unwrap();
            assert!(!starts_to_connect(bound), "{bound}: it was open until long ago");
        }
    });
}

#[test]
fn other_functions_and_running_connections_are_left_alone() {
    use std::io::{Read as _, Write as _};
    alone(|mut kernel| {
        let (listener, bound) = guarded(&mut kernel, "127.0.0.1:0", FUNCTION_OPTION | FUNCTION_AUTH_WAKE);
        let mut client = TcpStream::connect(bound).unwrap();
        // The function closes now. Open connections stay, although an accepted socket has the filter too.
        kernel.own(PortKey::any(bound.port()), FUNCTION, CLOSED_FLAGS);
        let (mut served, _) = listener.accept().unwrap();
        let sent = vec![7; 100_000];
        let writer = std::thread::spawn({
            let sent = sent.clone();
            move || client.write_all(&sent).map(|()| client)
        });
        let mut received = vec![0; sent.len()];
        served.read_exact(&mut received).unwrap();
        assert_eq!(received, sent);
        drop(writer.join().unwrap().unwrap());
        assert_eq!(served.read(&mut received).unwrap(), 0, "the end arrives as well");
        assert_eq!(refused(&kernel), 0);
    });
}

#[test]
fn a_right_tag_passes_once() {
    alone(|mut kernel| {
        let (_listener, bound) = guarded(&mut kernel, "127.0.0.1:0", CLOSED_FLAGS);
        let port = bound.port();
        let tag = |key, id| FunctionOption::tagged(key, 1, EPOCH, id, port, 1000).encode();
        // Source port, option, what is counted beside a refusal; None for a SYN that passes.
        for (from, option, note) in [
            (2001, tag(KEY, 0), None),
            (2001, tag(KEY, 0), None),
            (2002, tag(KEY, 0), Some(Stat::Replayed)),
            (2003, tag(WRONG_KEY, 0), Some(Stat::BadTag)),
            (2004, FunctionOption::open(0).encode(), Some(Stat::GateRefused)),
        ] {
            let before = kernel.counters();
            send_syn(from, port, 1000, &option);
            let after = kernel.counters();
            let moved = |stat: Stat| after[stat as usize] - before[stat as usize];
            assert_eq!(moved(Stat::GateRefused), u64::from(note.is_some()), "from {from}");
            for stat in [Stat::Replayed, Stat::BadTag] {
                assert_eq!(moved(stat), u64::from(note == Some(stat)), "from {from}");
            }
        }
    });
}

/// On a shared port the function that is named decides, not the one whose port it is.
#[test]
fn the_named_functions_flags_decide() {
    alone(|mut kernel| {
        let (_listener, bound) = guarded(&mut kernel, "127.0.0.1:0", FUNCTION_OPTION);
        let port = bound.port();
        kernel.own(PortKey::any(port).with_id(CLOSED), FUNCTION + 1, CLOSED_FLAGS);
        send_syn(2001, port, 1, &FunctionOption::open(0).encode());
        assert_eq!(refused(&kernel), 0);
        send_syn(2002, port, 1, &FunctionOption::open(CLOSED).encode());
        assert_eq!(refused(&kernel), 1);
        send_syn(2003, port, 1, &FunctionOption::tagged(KEY, 1, EPOCH, CLOSED, port, 1).encode());
        assert_eq!(refused(&kernel), 1);
    });
}

/// The socket lookup leads a client to the listener that an earlier one has named with a key.
#[test]
fn a_connection_that_was_steered_for_another_client_is_refused() {
    alone(|mut kernel| {
        let (_listener, bound) = guarded(&mut kernel, "127.0.0.1:0", FUNCTION_OPTION);
        let port = bound.port();
        kernel.own(PortKey::any(port).with_id(CLOSED), FUNCTION + 1, CLOSED_FLAGS);
        let here = IpWords::from_v4(Ipv4Addr::LOCALHOST.octets());
        let flow = PacketFlow { src: here, dst: here, src_port: 2001, dst_port: port, pad: 0 };
        kernel.steered.insert(flow, FUNCTION + 1, 0).unwrap();
        // The second one finds the way of its own.
        for refused_so_far in [1, 1] {
            send_syn(2001, port, 1, &FunctionOption::open(0).encode());
            assert_eq!(refused(&kernel), refused_so_far);
            assert_eq!(kernel.steered(&flow), None);
        }
        // Who names the function itself keeps its way.
        kernel.steered.insert(flow, FUNCTION + 1, 0).unwrap();
        send_syn(2001, port, 7, &FunctionOption::tagged(KEY, 1, EPOCH, CLOSED, port, 7).encode());
        assert_eq!((refused(&kernel), kernel.steered(&flow)), (1, Some(FUNCTION + 1)));
    });
}

/// Sends one SYN over loopback, past TCP.
fn send_syn(from: u16, to: u16, isn: u32, options: &[u8]) {
    let words = (20 + options.len() / 4 * 4) as u8 / 4;
    let mut tcp: Vec<u8> = [
        &from.to_be_bytes()[..],
        &to.to_be_bytes(),
        &isn.to_be_bytes(),
        &[0; 4],
        &[words << 4, 0x02, 255, 255],
    ]
    .concat();
    tcp.extend([0; 4]);
    tcp.extend(options);
    let sum = checksum(&tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    assert_eq!(socket.send_to(&tcp, &server.into()).unwrap(), tcp.len());
}

/// RFC 9293, 3.1, between two loopback addresses.
fn checksum(tcp: &[u8]) -> u16 {
    let pseudo = [127, 0, 0, 1, 127, 0, 0, 1, 0, 6, 0, tcp.len() as u8];
    let mut sum: u32 = [&pseudo[..], tcp]
        .concat()
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
