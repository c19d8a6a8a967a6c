//! The ladder of attaching to an interface, and interfaces that come and go.

use std::net::SocketAddr;

use headstart_integration_tests::lab::Namespace;
use headstart_integration_tests::lab::node::{TestNode, get_from, ip, trigger};

use crate::common::{function, has_xdp, modes, wait_modes};

/// An interface that is plugged in while the agent runs, and its addresses; these networks have no other hosts.
const LATE: &str = "late0";
const LATE_NODE: &str = "10.214.0.1";
const LATE_CLIENT: &str = "10.214.0.2";

#[test]
fn an_interface_is_watched_in_native_mode_where_frames_are_large_too() {
    let Some(node) = TestNode::new().unwrap() else { return };
    for (namespace, interface) in [(&node.node, node.link.host_if()), (&node.client, node.link.peer_if())] {
        ip(namespace, &format!("link set {interface} mtu 9000")).unwrap();
    }
    let function = function("");
    let agent = node.watching().config(&function.text("orders", &[])).start().unwrap();
    assert_eq!(wait_modes(&agent, node.link.host_if(), &["native", "generic", "tcx"]), ["native"]);
    function.rest(&agent, "orders").unwrap();
    assert_eq!(node.get(function.port).unwrap().status, 200);
    assert_eq!(trigger(&agent, "orders").unwrap(), "syn");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn where_another_program_has_the_interface_tcx_is_used() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let (first, second) = (function(""), function(""));
    let holder = node.watching().config(&first.text("first", &[])).start().unwrap();
    wait_modes(&holder, node.link.host_if(), &["native", "generic"]);
    let agent = node.watching().config(&second.text("second", &[])).start().unwrap();
    wait_modes(&agent, node.link.host_if(), &["tcx"]);

    second.rest(&agent, "second").unwrap();
    assert_eq!(node.get(second.port).unwrap().status, 200);
    assert_eq!(trigger(&agent, "second").unwrap(), "syn");
    // And the other one is not disturbed, also not by the end of this one.
    assert!(agent.stop().unwrap().success());
    assert!(has_xdp(&node.node, node.link.host_if()));
    first.rest(&holder, "first").unwrap();
    assert_eq!(node.get(first.port).unwrap().status, 200);
    assert_eq!(trigger(&holder, "first").unwrap(), "syn");
    assert!(holder.stop().unwrap().success());
}

#[test]
fn an_interface_may_appear_disappear_and_come_back() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let function = function("");
    let agent = node.agent().interface(LATE).config(&function.text("orders", &[])).start().unwrap();
    assert_eq!(modes(&agent, LATE), Vec::<String>::new());
    for _ in 0..2 {
        plug(&node.node, &node.client);
        wait_modes(&agent, LATE, &["native", "generic"]);
        function.rest(&agent, "orders").unwrap();
        let target: SocketAddr = format!("{LATE_NODE}:{}", function.port).parse().unwrap();
        assert_eq!(get_from(&node.client, target).unwrap().unwrap().status, 200);
        assert_eq!(trigger(&agent, "orders").unwrap(), "syn");
        agent.stop_function("orders").unwrap();
        ip(&node.node, &format!("link delete {LATE}")).unwrap();
        wait_modes(&agent, LATE, &[]);
    }
    // The rest goes on.
    function.rest(&agent, "orders").unwrap();
    assert_eq!(node.get_locally(function.port).unwrap().status, 200);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn auto_watches_uplinks_and_no_links_of_containers() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let function = function("");
    let agent = node.agent().interface("auto").config(&function.text("orders", &[])).start().unwrap();
    assert_eq!(modes(&agent, node.link.host_if()), Vec::<String>::new(), "it leads nowhere yet");
    let gateway = node.link.peer(0).ip();
    ip(&node.node, &format!("route add default via {gateway}")).unwrap();
    wait_modes(&agent, node.link.host_if(), &["native", "generic"]);
    ip(&node.node, "route del default").unwrap();
    wait_modes(&agent, node.link.host_if(), &[]);
    assert!(agent.stop().unwrap().success());
}

fn plug(node: &Namespace, client: &Namespace) {
    ip(node, &format!("link add {LATE} type veth peer name late1 netns {}", client.name())).unwrap();
    for (namespace, interface, address) in [(node, LATE, LATE_NODE), (client, "late1", LATE_CLIENT)] {
        ip(namespace, &format!("address add {address}/30 dev {interface}")).unwrap();
        ip(namespace, &format!("link set {interface} up")).unwrap();
    }
}
