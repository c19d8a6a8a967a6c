//! Sources that an operator named: those to ignore, and those to which no budget applies.

use headstart_integration_tests::lab::node::{TestNode, trigger};
use headstart_integration_tests::lab::site::LIMIT;

use crate::common::{assert_cold, count, function};

/// Cold functions that are asked within one second.
const BURST: usize = 6;

#[test]
fn an_ignored_source_wakes_nothing_and_is_told_so() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let function = function("");
    let checker = node.link.peer(0).ip();
    let setup = node.watching().lookup(true).syn("ignore", &format!("[\"{checker}\"]"));
    let agent = setup.config(&function.text("orders", &[])).start().unwrap();
    function.rest(&agent, "orders").unwrap();

    for _ in 0..3 {
        let reply = node.get(function.port).unwrap();
        assert_eq!((reply.status, reply.body.trim()), (200, "asleep"));
    }
    assert_cold(&agent, "orders");
    let starts = count(&agent, "headstart_coldstarts_total", &[("function", "orders")]);
    assert!(starts.abs() < f64::EPSILON, "{starts} starts");
    assert!(count(&agent, "headstart_syn_suppressed_total", &[("reason", "ignored")]) >= 3.0);

    // Others wake it, and then the checker sees the function itself.
    assert_eq!(node.get_locally(function.port).unwrap().body, "alive");
    assert_eq!(trigger(&agent, "orders").unwrap(), "lookup");
    // The function answers by itself, so its reply can come before the agent has marked it ready for the lookup.
    agent.wait_state("orders", "ready", LIMIT).unwrap();
    assert_eq!(node.get(function.port).unwrap().body, "alive");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_source_over_its_budget_is_served_without_a_head_start() {
    let early = early_starts(false);
    let Some((early, suppressed)) = early else { return };
    assert!((1..BURST).contains(&early), "{early} of {BURST} started early");
    assert!(suppressed >= 1.0, "{suppressed} were suppressed");
}

#[test]
fn an_allowed_source_has_the_budget_of_the_node_to_itself() {
    let Some((early, suppressed)) = early_starts(true) else { return };
    assert_eq!(early, BURST);
    assert!(suppressed.abs() < f64::EPSILON, "{suppressed} were suppressed");
}

/// How many of a burst of requests to cold functions started them early, and how many SYNs were over a budget.
fn early_starts(allowed: bool) -> Option<(usize, f64)> {
    let node = TestNode::new().unwrap()?;
    let events = format!("{{ source = 1, function = 1, global = {BURST} }}");
    let mut setup = node.watching().syn("events", &events);
    if allowed {
        setup = setup.syn("allow", &format!("[\"{}/32\"]", node.link.peer(0).ip()));
    }
    let functions: Vec<_> = (0..BURST).map(|number| (format!("f{number}"), function(""))).collect();
    for (name, function) in &functions {
        setup = setup.config(&function.text(name, &[]));
    }
    let agent = setup.start().unwrap();
    for (name, function) in &functions {
        function.rest(&agent, name).unwrap();
    }
    for (_, function) in &functions {
        assert_eq!(node.get(function.port).unwrap().status, 200, "every client is answered");
    }
    let early = functions.iter().filter(|(name, _)| trigger(&agent, name).unwrap() == "syn").count();
    let reasons = ["source_budget", "function_budget", "global_budget"];
    let over = |reason: &&str| count(&agent, "headstart_syn_suppressed_total", &[("reason", *reason)]);
    let suppressed = reasons.iter().map(over).sum();
    assert!(agent.stop().unwrap().success());
    Some((early, suppressed))
}
