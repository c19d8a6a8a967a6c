//! Namespaces, links and delays.

use crate::common::{LIMIT, can_network, connect_time, echo, echo_server};
use headstart_integration_tests::{
    lab::client::LineClient,
    lab::{self, Delay, Link, Namespace},
};
use std::{
    net::{SocketAddr, TcpListener},
    process::Command,
    time::Duration,
};

#[test]
fn a_client_in_a_namespace_reaches_the_host() {
    if !can_network() {
        return;
    }
    let site = Namespace::new("client").unwrap();
    let link = Link::connect(&site).unwrap();
    let listener = TcpListener::bind(link.host(0)).unwrap();
    let target = listener.local_addr().unwrap();
    echo(listener);

    let mut client = site.enter(|| LineClient::connect(target, LIMIT)).unwrap().unwrap();
    assert_eq!(client.ask("hello").unwrap(), "hello");
    assert!(client.timings().connect < client.timings().first_byte);
}

#[test]
fn the_host_reaches_a_server_in_a_namespace() {
    if !can_network() {
        return;
    }
    let site = Namespace::new("server").unwrap();
    let link = Link::connect(&site).unwrap();
    echo_server(&site, link.peer(7000));
    assert_eq!(LineClient::connect(link.peer(7000), LIMIT).unwrap().ask("hello").unwrap(), "hello");
}

#[test]
fn a_namespace_may_have_several_links() {
    if !can_network() {
        return;
    }
    let site = Namespace::new("client").unwrap();
    let links = [Link::connect(&site).unwrap(), Link::connect(&site).unwrap()];
    let shown = site.run(Command::new("ip").args(["-4", "-oneline", "address"])).unwrap();
    for link in &links {
        assert!(shown.contains(&link.peer(0).ip().to_string()), "{shown}");
        assert!(shown.contains(link.peer_if()), "{shown}");
        assert!(link.host_if().len() <= 15);
    }
    assert_ne!(links[0].host(0), links[1].host(0));
}

#[test]
fn a_failing_command_says_why() {
    let error = lab::run(Command::new("ls").arg("/nowhere")).unwrap_err().to_string();
    assert!(error.contains("/nowhere") && error.contains("No such file"), "{error}");
    let error = lab::run_within(Duration::from_millis(50), Command::new("sleep").arg("60")).unwrap_err();
    assert!(error.to_string().contains("still running"), "{error}");
}

#[test]
fn a_handshake_takes_one_round_trip() {
    if !can_network() {
        return;
    }
    let site = Namespace::new("client").unwrap();
    let link = Link::connect(&site).unwrap();
    let listener = TcpListener::bind(link.host(0)).unwrap();
    let target = listener.local_addr().unwrap();
    echo(listener);
    let connect = || site.enter(|| connect_time(target)).unwrap();

    assert!(connect() < Duration::from_millis(3), "without a delay");
    for round_trip in [5, 20, 50].map(Duration::from_millis) {
        let _delay = Delay::new(&site, round_trip).unwrap();
        assert_round_trip(connect(), round_trip);
    }
    assert!(connect() < Duration::from_millis(3), "after the delay was removed");
}

#[test]
fn a_server_can_be_far_away_too() {
    if !can_network() {
        return;
    }
    let site = Namespace::new("server").unwrap();
    let link = Link::connect(&site).unwrap();
    echo_server(&site, link.peer(7000));
    let round_trip = Duration::from_millis(5);
    let _delay = Delay::new(&site, round_trip).unwrap();
    assert_round_trip(connect_time(link.peer(7000)), round_trip);

    let mut client = LineClient::connect(link.peer(7000), LIMIT).unwrap();
    client.ask("hello").unwrap();
    let both = client.timings().total;
    assert!(both > round_trip * 2, "a handshake and an answer took {both:?}");
}

#[test]
fn loopback_is_not_delayed() {
    if !can_network() {
        return;
    }
    let site = Namespace::new("alone").unwrap();
    let address: SocketAddr = "127.0.0.1:7000".parse().unwrap();
    echo_server(&site, address);
    let _delay = Delay::new(&site, Duration::from_millis(50)).unwrap();
    assert!(site.enter(|| connect_time(address)).unwrap() < Duration::from_millis(3));
}

fn assert_round_trip(measured: Duration, wanted: Duration) {
    eprintln!("a round trip of {wanted:?} took {measured:?}");
    // A packet may wait a moment longer than it should, but never shorter.
    assert!(measured >= wanted.mul_f64(0.95), "{measured:?}, wanted {wanted:?}");
    assert!(measured <= wanted.mul_f64(1.15), "{measured:?}, wanted {wanted:?}");
}
