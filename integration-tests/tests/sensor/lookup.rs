//! The socket lookup sees what no interface shows: loopback, containers, and the port after DNAT.

use std::net::SocketAddr;
use std::process::Command;

use headstart_integration_tests::lab::node::{TestNode, get_from, ip, trigger};
use headstart_integration_tests::lab::{Link, Namespace};

use crate::common::{count, function, wait_modes};

#[test]
fn a_loopback_request_starts_early() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let v4 = function("");
    let v6 = function("");
    let wide = v6.text("v6", &[]).replace("0.0.0.0", "[::]");
    let agent = node.agent().lookup(true).config(&v4.text("v4", &[])).config(&wide).start().unwrap();
    v4.rest(&agent, "v4").unwrap();
    v6.rest(&agent, "v6").unwrap();

    assert_eq!(node.get_locally(v4.port).unwrap().status, 200);
    assert_eq!(trigger(&agent, "v4").unwrap(), "lookup");
    let v6_loopback: SocketAddr = format!("[::1]:{}", v6.port).parse().unwrap();
    assert_eq!(get_from(&node.node, v6_loopback).unwrap().unwrap().status, 200);
    assert_eq!(trigger(&agent, "v6").unwrap(), "lookup");
    assert!(count(&agent, "headstart_syn_lookups_total", &[("kind", "event")]) >= 2.0);

    // A warm function is no news.
    let events = |agent: &_| count(agent, "headstart_syn_events_total", &[("function", "v4")]);
    let before = events(&agent);
    assert_eq!(node.get_locally(v4.port).unwrap().status, 200);
    assert!((events(&agent) - before).abs() < f64::EPSILON);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn without_the_lookup_a_loopback_request_starts_when_it_is_accepted() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let function = function("");
    let agent = node.watching().config(&function.text("orders", &[])).start().unwrap();
    function.rest(&agent, "orders").unwrap();
    assert_eq!(node.get_locally(function.port).unwrap().status, 200);
    assert_eq!(trigger(&agent, "orders").unwrap(), "accept");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_container_behind_a_bridge_starts_functions_early() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let container = Namespace::new("container").unwrap();
    let link = Link::between(&node.node, &container).unwrap();
    // The node's address moves from its end of the container's link to the bridge.
    let address = link.host(0).ip();
    ip(&node.node, "link add bridge0 type bridge").unwrap();
    ip(&node.node, &format!("link set {} master bridge0", link.host_if())).unwrap();
    ip(&node.node, &format!("address del {address}/30 dev {}", link.host_if())).unwrap();
    ip(&node.node, &format!("address add {address}/30 dev bridge0")).unwrap();
    ip(&node.node, "link set bridge0 up").unwrap();

    let function = function("");
    let agent = node.watching().lookup(true).config(&function.text("orders", &[])).start().unwrap();
    function.rest(&agent, "orders").unwrap();
    assert_eq!(get_from(&container, link.host(function.port)).unwrap().unwrap().status, 200);
    assert_eq!(trigger(&agent, "orders").unwrap(), "lookup");
    // From outside, the interface sees it first, and the lookup's word for the same SYN is no other demand.
    function.cool(&agent, "orders").unwrap();
    assert_eq!(node.get(function.port).unwrap().status, 200);
    assert_eq!(trigger(&agent, "orders").unwrap(), "syn");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_port_that_is_translated_starts_its_function_early() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let function = function("");
    let rule = format!("-t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports {}", function.port);
    node.node.run(Command::new("iptables").args(rule.split(' '))).unwrap();
    let agent = node.watching().lookup(true).config(&function.text("orders", &[])).start().unwrap();
    wait_modes(&agent, node.link.host_if(), &["native", "generic"]);
    function.rest(&agent, "orders").unwrap();
    assert_eq!(node.get(80).unwrap().status, 200);
    assert_eq!(trigger(&agent, "orders").unwrap(), "lookup");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_syn_that_both_sensors_see_is_one_demand() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let function = function("");
    let agent = node.watching().lookup(true).config(&function.text("orders", &[])).start().unwrap();
    let mut seen = 0.0;
    for round in 1..=10_u8 {
        function.rest(&agent, "orders").unwrap();
        assert_eq!(node.get(function.port).unwrap().status, 200);
        assert_eq!(trigger(&agent, "orders").unwrap(), "syn", "{round}");
        seen = f64::from(round);
        agent.stop_function("orders").unwrap();
    }
    let starts = count(&agent, "headstart_coldstarts_total", &[("function", "orders")]);
    assert!((starts - seen).abs() < f64::EPSILON, "{starts} starts of {seen} requests");
    assert!(agent.stop().unwrap().success());
}
