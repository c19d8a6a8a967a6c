//! What stays in the kernel when an agent ends, who may take it over, and how it goes.

use std::fs;
use std::path::Path;

use headstart_integration_tests::lab::node::{TestNode, trigger};
use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{Scratch, cli, free_port};

use crate::common::{function, has_xdp, wait_bare, wait_modes};

#[test]
fn with_unpin_nothing_is_left_behind() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let function = function("");
    let setup = node.watching().lookup(true).config(&function.text("orders", &[]));
    let agent = setup.start().unwrap();
    wait_modes(&agent, node.link.host_if(), &["native", "generic"]);
    let ended = agent.halt().unwrap();
    assert_eq!(pinned(ended.pin_dir()), Vec::<String>::new());
    wait_bare(&node.node, node.link.host_if());
}

#[test]
fn pins_outlive_the_agent_and_the_next_one_takes_them_over() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let function = function("");
    let setup = node.watching().lookup(true).pinned().config(&function.text("orders", &[]));
    let agent = setup.start().unwrap();
    wait_modes(&agent, node.link.host_if(), &["native", "generic"]);
    assert!(agent.uninstall().is_err(), "not under a running agent");

    let ended = agent.halt().unwrap();
    let pins = pinned(ended.pin_dir());
    assert!(pins.iter().any(|pin| pin.contains("xdp")), "{pins:?}");
    assert!(has_xdp(&node.node, node.link.host_if()));
    let next = ended.start().unwrap();
    wait_modes(&next, node.link.host_if(), &["native", "generic"]);
    function.rest(&next, "orders").unwrap();
    assert_eq!(node.get(function.port).unwrap().status, 200);
    assert_eq!(trigger(&next, "orders").unwrap(), "syn");

    // A kill leaves them too, and uninstall removes everything of either.
    let killed = next.kill().unwrap();
    assert!(has_xdp(&node.node, node.link.host_if()));
    killed.uninstall().unwrap();
    assert_eq!(pinned(killed.pin_dir()), Vec::<String>::new());
    wait_bare(&node.node, node.link.host_if());
    // Twice is no mistake.
    killed.uninstall().unwrap();
}

#[test]
fn a_second_agent_with_the_same_pins_refuses_and_says_what_to_do() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let function = function("");
    let agent = node.watching().pinned().config(&function.text("orders", &[])).start().unwrap();
    let files = Scratch::new("second").unwrap();
    let text = format!(
        "[agent]\nadmin = \"{}\"\nstate_dir = \"{}\"\n[syn]\npin_dir = \"{}\"\nlookup = false\n",
        free_port().unwrap(),
        files.path().join("state").display(),
        agent.pin_dir().display()
    );
    let mut second = cli::run(&files, &text).unwrap();
    assert_eq!(second.wait(LIMIT).unwrap().code(), Some(1));
    let said = second.log();
    assert!(said.contains("another agent") && said.contains("pin_dir"), "{said}");
    // And the first one has not noticed.
    function.rest(&agent, "orders").unwrap();
    assert_eq!(node.get(function.port).unwrap().status, 200);
    assert_eq!(trigger(&agent, "orders").unwrap(), "syn");
    assert!(agent.stop().unwrap().success());
}

/// Everything below a directory for pins.
fn pinned(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        found.push(entry.path().display().to_string());
        found.extend(pinned(&entry.path()));
    }
    found
}
