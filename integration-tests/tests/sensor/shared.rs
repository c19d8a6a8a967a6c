//! One port for several functions: the SYN's option says which one is meant.

use headstart_integration_tests::lab::node::{TestNode, trigger};

use crate::common::{assert_cold, function};

#[test]
fn two_functions_share_a_port_and_the_option_chooses() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let default = function("");
    let mut seven = function("id = 7");
    seven.port = default.port;
    let setup = node.watching().lookup(true);
    let setup = setup.config(&default.text("default", &[])).config(&seven.text("seven", &[]));
    let agent = setup.start().unwrap();
    let target = node.link.host(default.port);
    default.rest(&agent, "default").unwrap();
    seven.rest(&agent, "seven").unwrap();

    // From outside: the interface reads the option.
    let answer = node.get_tagged(&node.client, target, 7, None).unwrap();
    assert!(answer.contains("alive"), "{answer}");
    assert_eq!(trigger(&agent, "seven").unwrap(), "syn");
    assert_cold(&agent, "default");
    // Also when it is warm.
    let answer = node.get_tagged(&node.client, target, 7, None).unwrap();
    assert!(answer.contains("alive"), "{answer}");
    assert_cold(&agent, "default");
    seven.cool(&agent, "seven").unwrap();

    // Without the option, as if a middlebox had removed it, and with an ID that no function has.
    assert_eq!(node.get(default.port).unwrap().status, 200);
    assert_eq!(trigger(&agent, "default").unwrap(), "syn");
    assert_cold(&agent, "seven");
    default.cool(&agent, "default").unwrap();
    let answer = node.get_tagged(&node.client, target, 99, None).unwrap();
    assert!(answer.contains("alive"), "{answer}");
    assert_eq!(trigger(&agent, "default").unwrap(), "syn");
    assert_cold(&agent, "seven");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_shared_port_without_a_default_gives_unannounced_clients_nothing() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let seven = function("id = 7");
    let mut eight = function("id = 8");
    eight.port = seven.port;
    let setup = node.watching().lookup(true);
    let agent = setup.config(&seven.text("seven", &[])).config(&eight.text("eight", &[])).start().unwrap();
    let target = node.link.host(seven.port);
    for (function, name, id) in [(&seven, "seven", 7), (&eight, "eight", 8)] {
        function.rest(&agent, name).unwrap();
        let answer = node.get_tagged(&node.client, target, id, None).unwrap();
        assert!(answer.contains("alive"), "{answer}");
        assert_eq!(trigger(&agent, name).unwrap(), "syn");
        function.cool(&agent, name).unwrap();
    }
    node.get_in_vain(&node.client, target).unwrap();
    assert_cold(&agent, "seven");
    assert_cold(&agent, "eight");
    assert!(agent.stop().unwrap().success());
}
