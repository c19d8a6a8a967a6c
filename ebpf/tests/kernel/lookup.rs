//! The socket lookup, with real connections.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use headstart_ebpf::event::{EventKind, SensorCounters, Stat};
use headstart_ebpf::maps::{
    FUNCTION_AUTH_WAKE, FUNCTION_NONE, FUNCTION_OPTION, FUNCTION_WARM, LOBBY, PacketFlow, PortKey,
    SETTINGS_LOBBY, SourceRule,
};
use headstart_ebpf::packet::IpWords;
use socket2::{Domain, SockRef, Socket, Type};

use super::FUNCTION;
use super::namespace::{ADDRESS, alone, attach_lookup};
use headstart_ebpf_test_support::kernel::Kernel;

const HOUR_NS: u64 = 3_600_000_000_000;

fn listen(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let bound = listener.local_addr().unwrap();
    (listener, bound)
}

fn counted(kernel: &Kernel, stat: Stat) -> u64 {
    kernel.counters()[stat as usize]
}

/// The address of a client that has connected to `listener`; panics without one. On a busy machine its last segment comes
/// after its connect has returned.
fn accepted(listener: &TcpListener) -> SocketAddr {
    SockRef::from(listener).set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    listener.accept().expect("a connection comes").1
}

#[test]
fn a_lookup_says_who_connects_to_whom() {
    alone(|mut kernel| {
        attach_lookup(&mut kernel);
        for (listen_on, connect_to, version) in [
            ("127.0.0.1:0", "127.0.0.1", 4),
            ("0.0.0.0:0", "127.1.2.3", 4),
            ("0.0.0.0:0", ADDRESS, 4),
            ("[::1]:0", "::1", 6),
            // A listener for both versions, and a client of IPv4.
            ("[::]:0", "127.0.0.1", 4),
            ("[::]:0", "::1", 6),
        ] {
            let (listener, bound) = listen(listen_on);
            kernel.own(PortKey::listener(bound), FUNCTION, 0);
            let to = SocketAddr::new(connect_to.parse().unwrap(), bound.port());
            let client = TcpStream::connect(to).unwrap();
            accepted(&listener);
            let events = kernel.take_events().0;
            assert_eq!(events.len(), 1, "{to}: one connection is one event");
            let event = events[0];
            assert_eq!(event.kind(), Some(EventKind::Lookup));
            assert_eq!(event.source(), client.local_addr().unwrap());
            assert_eq!(event.destination(), to);
            assert_eq!((event.function, event.isn, event.ip_version), (FUNCTION, 0, version), "{to}");
            assert!(!event.is_authenticated());
        }
        assert_eq!(counted(&kernel, Stat::LookupEvent), 6);
        assert_eq!(counted(&kernel, Stat::Packets), 0);
    });
}

#[test]
fn a_port_without_a_listener_is_looked_up_too() {
    alone(|mut kernel| {
        attach_lookup(&mut kernel);
        let (listener, bound) = listen("127.0.0.1:0");
        drop(listener);
        kernel.own(PortKey::listener(bound), FUNCTION, 0);
        TcpStream::connect(bound).unwrap_err();
        assert_eq!(kernel.take_events().0.len(), 1);
    });
}

#[test]
fn only_a_cold_and_open_functions_connections_raise_an_event() {
    alone(|mut kernel| {
        attach_lookup(&mut kernel);
        for flags in [FUNCTION_WARM, FUNCTION_AUTH_WAKE, FUNCTION_NONE] {
            let (listener, bound) = listen("127.0.0.1:0");
            kernel.own(PortKey::listener(bound), FUNCTION, flags);
            let _client = TcpStream::connect(bound).unwrap();
            accepted(&listener);
        }
        let (_listener, unowned) = listen("127.0.0.1:0");
        let _client = TcpStream::connect(unowned).unwrap();
        assert_eq!(kernel.take_events().0, []);
        assert_eq!(kernel.counters(), SensorCounters::default());
    });
}

#[test]
fn a_lookup_over_the_budget_connects_without_an_event() {
    alone(|mut kernel| {
        attach_lookup(&mut kernel);
        let (listener, bound) = listen("127.0.0.1:0");
        kernel.own(PortKey::listener(bound), FUNCTION, 0);
        kernel.set(|settings| settings.function_interval_ns = HOUR_NS);
        for _ in 0..3 {
            let _client = TcpStream::connect(bound).unwrap();
            accepted(&listener);
        }
        assert_eq!(kernel.take_events().0.len(), 1);
        assert_eq!(counted(&kernel, Stat::LookupBudget), 2);
    });
}

#[test]
fn a_steered_connection_reaches_the_function_it_named() {
    alone(|mut kernel| {
        attach_lookup(&mut kernel);
        let (default, port) = listen("127.0.0.1:0");
        let (named, _) = listen("127.0.0.1:0");
        kernel.own(PortKey::listener(port), 1, FUNCTION_OPTION);
        kernel.listeners.set(2, &named, 0).unwrap();
        let steered = bound_client("127.0.0.1:0");
        let from = steered.local_addr().unwrap().as_socket().unwrap();
        let words = |address: SocketAddr| match address {
            SocketAddr::V4(v4) => IpWords::from_v4(v4.ip().octets()),
            SocketAddr::V6(v6) => v6.ip().octets().into(),
        };
        let flow = |function: SocketAddr| PacketFlow {
            src: words(from),
            dst: words(function),
            src_port: from.port(),
            dst_port: function.port(),
            pad: 0,
        };
        kernel.steered.insert(flow(port), 2, 0).unwrap();
        steered.connect(&port.into()).unwrap();
        assert_eq!(accepted(&named), from);
        assert_eq!(counted(&kernel, Stat::Steered), 1);
        assert_eq!(kernel.take_events().0, [], "the SYN has said it all");
        // Anybody else, and a connection to a function whose listener is gone, gets the default.
        let plain = TcpStream::connect(port).unwrap();
        assert_eq!(accepted(&default), plain.local_addr().unwrap());
        drop(named);
        let late = bound_client("127.0.0.1:0");
        let from = late.local_addr().unwrap().as_socket().unwrap();
        kernel.steered.insert(PacketFlow { src_port: from.port(), ..flow(port) }, 2, 0).unwrap();
        late.connect(&port.into()).unwrap();
        assert_eq!(accepted(&default), from);
        assert_eq!(counted(&kernel, Stat::Steered), 1);
    });
}

fn bound_client(address: &str) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&address.parse::<SocketAddr>().unwrap().into()).unwrap();
    socket
}

#[test]
fn ignored_sources_wait_in_the_lobby_while_their_function_is_cold() {
    alone(|mut kernel| {
        attach_lookup(&mut kernel);
        let (listener, bound) = listen("127.0.0.1:0");
        let (lobby, _) = listen("127.0.0.1:0");
        kernel.own(PortKey::listener(bound), FUNCTION, 0);
        kernel.say("127.0.0.0".parse().unwrap(), 8, SourceRule::Ignore);
        // No lobby: the function's own listener.
        let client = TcpStream::connect(bound).unwrap();
        assert_eq!(accepted(&listener), client.local_addr().unwrap());
        kernel.listeners.set(LOBBY, &lobby, 0).unwrap();
        kernel.set(|settings| settings.flags |= SETTINGS_LOBBY);
        let client = TcpStream::connect(bound).unwrap();
        assert_eq!(accepted(&lobby), client.local_addr().unwrap());
        // Warm: the function answers for itself.
        kernel.own(PortKey::listener(bound), FUNCTION, FUNCTION_WARM);
        let client = TcpStream::connect(bound).unwrap();
        assert_eq!(accepted(&listener), client.local_addr().unwrap());
        assert_eq!(counted(&kernel, Stat::Lobby), 1);
        assert_eq!(kernel.take_events().0, []);
    });
}
