//! The socket lookup and the gate: loopback, shared ports, the lobby, closed functions.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use headstart_agent::serve;
use headstart_agent::syn::{Kernel, RingRecord, Route, SynError};
use headstart_config::RequireAuth;
use headstart_ebpf::event::{EventKind, Stat};
use headstart_ebpf::maps::{PacketFlow, STEERED};
use socket2::{Domain, Socket, Type};

use super::{Listener, first};
use crate::bed::{self, config, listener, map, named, numbered, pins, route, start};

#[test]
fn the_lookup_sees_loopback_of_both_ip_versions_without_any_interface() {
    bed::run("lookup::the_lookup_sees_loopback_of_both_ip_versions_without_any_interface", || async {
        for address in ["127.0.0.1:8081", "[::1]:8081"] {
            let (fd, listener) = listener(address);
            let address = listener.local_addr().unwrap();
            let sensing = start(None, &[route(address, &fd)], &config(""), &named(&[]), true);
            let stream = TcpStream::connect(address).unwrap();
            let RingRecord::Event(event) = first(sensing).await else { panic!("no event") };
            assert_eq!(event.kind(), Some(EventKind::Lookup));
            assert_eq!((event.source(), event.destination()), (stream.local_addr().unwrap(), address));
            assert_eq!((event.function, event.isn, event.is_authenticated()), (0, 0, false));
        }
    });
}

#[test]
fn a_steered_connection_reaches_the_hidden_listener_of_the_function_it_named() {
    bed::run("lookup::a_steered_connection_reaches_the_hidden_listener_of_the_function_it_named", || async {
        let cases = [("0.0.0.0:8443", "127.0.0.1"), ("[::]:8444", "127.0.0.1"), ("[::]:8445", "::1")];
        for (nth, (listen, client)) in (1..).zip(cases) {
            let (fd, default) = listener(listen);
            let listen: SocketAddr = listen.parse().unwrap();
            let hidden = serve::listen(serve::hidden(listen), 16).unwrap();
            let own = TcpListener::from(hidden.try_clone().unwrap());
            own.set_nonblocking(false).unwrap();
            let hidden: Listener = hidden.into();
            let named_route = Route { id: Some(7), steered: true, ..route(listen, &hidden) };
            let routes = [route(listen, &fd), named_route];
            let sensing = start(pins(true), &routes, &config(""), &named(&[]), true);

            // As the program on an interface would have noted it, had the SYN named function 7.
            let address: IpAddr = client.parse().unwrap();
            let to = SocketAddr::new(address, listen.port());
            let client = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            client.bind(&SocketAddr::new(address, 0).into()).unwrap();
            let from = client.local_addr().unwrap().as_socket().unwrap();
            let mut steered: HashMap<_, PacketFlow, u32> =
                HashMap::try_from(Map::LruHashMap(MapData::from_pin(map(STEERED)).unwrap())).unwrap();
            steered.insert(flow(from, to), 1, 0).unwrap();
            client.connect(&to.into()).unwrap();
            assert_eq!(canonical(own.accept().unwrap().1), from);
            let counters = sensing.sensor.counters().unwrap();
            assert!(counters.contains(&(Stat::Steered, nth)), "{counters:?}");

            // Everybody else gets the default.
            let other = TcpStream::connect(to).unwrap();
            assert_eq!(canonical(default.accept().unwrap().1), other.local_addr().unwrap());
        }
    });
}

fn flow(src: SocketAddr, dst: SocketAddr) -> PacketFlow {
    let words = |address: SocketAddr| match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    };
    PacketFlow { src: words(src), dst: words(dst), src_port: src.port(), dst_port: dst.port(), pad: 0 }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn ignored_sources_meet_the_lobby_while_the_function_is_cold_and_wake_nobody() {
    bed::run("lookup::ignored_sources_meet_the_lobby_while_the_function_is_cold_and_wake_nobody", || async {
        for (address, ignore) in [("[::1]:8081", "::1"), ("127.0.0.1:8081", "127.0.0.0/8")] {
            let (fd, listener) = listener(address);
            listener.set_nonblocking(true).unwrap();
            let address = listener.local_addr().unwrap();
            let config = config(&format!("ignore = [{ignore:?}]"));
            let mut sensing = start(None, &[route(address, &fd)], &config, &named(&[]), true);
            let lobby = tokio::spawn(sensing.watching.background.run());
            let answer = tokio::task::spawn_blocking(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: health\r\n\r\n").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            });
            let answer = answer.await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("asleep\n"), "{answer}");
            assert!(listener.accept().is_err(), "no client came to the function");

            sensing.sensor.warm(0, true).unwrap();
            let warm = TcpStream::connect(address).unwrap();
            listener.set_nonblocking(false).unwrap();
            assert_eq!(listener.accept().unwrap().1, warm.local_addr().unwrap());
            let count = |wanted| {
                let counters = sensing.sensor.counters().unwrap();
                counters.iter().find(|(stat, _)| *stat == wanted).unwrap().1
            };
            assert_eq!((count(Stat::Lobby), count(Stat::LookupEvent)), (1, 0));
            lobby.abort();

            // The lobby closed first: what is in TIME_WAIT there keeps no later agent from the port.
            drop((listener, fd));
            serve::listen(address, 16).unwrap();
        }
    });
}

#[test]
fn a_closed_listener_admits_nobody_without_a_key_and_stays_closed() {
    bed::run("lookup::a_closed_listener_admits_nobody_without_a_key_and_stays_closed", || async {
        let address: SocketAddr = "127.0.0.1:8081".parse().unwrap();
        let kernel = Kernel::load(headstart_ebpf::OBJECT, pins(true)).unwrap();
        let fd: Listener =
            serve::listen_behind(address, 16, |socket| kernel.listeners().guard(socket)).unwrap().into();
        assert!(is_refused(address), "no function has the address yet");
        let closed = Route { auth: RequireAuth::Connect, ..route(address, &fd) };
        let sensing = kernel.watch(&numbered(&[closed]), &config("").syn, &named(&[])).unwrap();

        assert!(is_refused(address));
        let counters = sensing.sensor.counters().unwrap();
        assert!(
            counters.iter().any(|(stat, count)| *stat == Stat::GateRefused && *count >= 2),
            "{counters:?}"
        );

        // Whoever holds the listener cannot take the filter off, and a later agent finds its own there.
        let held = Socket::from(fd.try_clone().unwrap());
        assert_eq!(held.detach_filter().unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        drop(sensing);
        let next = Kernel::load(headstart_ebpf::OBJECT, pins(true)).unwrap();
        next.listeners().guard(&held).unwrap();
        drop(next);
        let stranger = Kernel::load(headstart_ebpf::OBJECT, None).unwrap();
        assert!(matches!(stranger.listeners().guard(&held), Err(SynError::GateLocked)));
    });
}

/// Whether a SYN without a key gets no answer. The kernel drops it in the call, so that waiting longer for what
/// must not come would prove no more.
fn is_refused(address: SocketAddr) -> bool {
    let stranger = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    let refused = stranger.connect_timeout(&address.into(), Duration::from_millis(300));
    refused.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

#[test]
fn a_hidden_listener_of_a_closed_function_is_closed_to_its_own_host_too() {
    bed::run("lookup::a_hidden_listener_of_a_closed_function_is_closed_to_its_own_host_too", || async {
        let listen: SocketAddr = "[::]:8081".parse().unwrap();
        let mut kernel = Kernel::load(headstart_ebpf::OBJECT, None).unwrap();
        kernel.attach_lookup().unwrap();
        let support = kernel.listeners();
        assert!(support.can_steer());
        let guard = |socket: std::os::fd::BorrowedFd<'_>| support.guard(socket);
        let hidden: Listener = serve::listen_behind(serve::hidden(listen), 16, guard).unwrap().into();
        let port =
            Socket::from(hidden.try_clone().unwrap()).local_addr().unwrap().as_socket().unwrap().port();
        let closed =
            Route { id: Some(7), auth: RequireAuth::Connect, steered: true, ..route(listen, &hidden) };
        let _sensing = kernel.watch(&numbered(&[closed]), &config("").syn, &named(&[])).unwrap();
        assert!(is_refused((Ipv4Addr::LOCALHOST, port).into()));
    });
}
