//! A flood of SYNs from random sources: it costs its victims nothing but a bounded number of early starts.

use std::time::{Duration, Instant};

use headstart_integration_tests::lab::node::trigger;
use headstart_integration_tests::lab::siege::{BUDGET, CLOSED, CLOSED_ID, Siege};
use headstart_integration_tests::lab::{privilege, usage};

const OPEN: u16 = 100;
const LASTING: Duration = Duration::from_secs(10);

/// What the agent's memory may grow by: the instances that were started have their place in it.
const GROWTH_BYTES: u64 = 16 * 1024 * 1024;

#[test]
fn a_flood_starts_few_functions_and_loses_no_request() {
    if !privilege::require_root("namespaces, eBPF and containers") {
        return;
    }
    let Some(siege) = Siege::new(OPEN).unwrap() else { return };
    let Siege { agent, closed, keys, node, .. } = &siege;
    let resident = || usage::resident_bytes(agent.id()).unwrap();
    // Once without a flood, so that what is made once is made.
    node.get_tagged(&node.client, siege.target(), CLOSED_ID, Some(keys)).unwrap();
    closed.cool(agent, CLOSED).unwrap();
    let before = resident();

    let (begin, mut highest) = (Instant::now(), 0);
    let flood = siege.flood(LASTING).unwrap();
    let (mut unannounced, mut known) = (0, 0);
    for (name, port) in siege.open().iter().cycle() {
        if !flood.is_running() {
            break;
        }
        let reply = node.get(*port).unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", agent.log()));
        assert_eq!(reply.status, 200, "{name}: {}", reply.body);
        unannounced += 1;
        let answer = node.get_tagged(&node.client, siege.target(), CLOSED_ID, Some(keys)).unwrap();
        assert!(answer.contains("alive"), "{answer}");
        assert_eq!(trigger(agent, CLOSED).unwrap(), "syn", "request {known} with a key");
        known += 1;
        closed.cool(agent, CLOSED).unwrap();
        highest = highest.max(resident());
    }
    let sent = flood.join().unwrap();
    let metrics = agent.metrics().unwrap();
    let took = begin.elapsed();
    println!("{sent:?}, {:.0} SYNs a second; {unannounced} and {known} requests", sent.rate());
    assert!(sent.took >= LASTING && sent.frames > 500_000, "that was no flood: {sent:?}");
    assert!(unannounced >= 10 && known >= 10, "{unannounced} and {known} requests in {took:?}");

    // What unannounced clients took from the budget: no more than it gives in this time, and its burst of one second.
    let open = |name, labels: &[(&str, &str)]| {
        let all = metrics.find(name, labels).filter(|sample| sample.labels["function"] != CLOSED);
        all.map(|sample| sample.value).sum::<f64>()
    };
    let spent = open("headstart_syn_budget_spent_total", &[]);
    let most = f64::from(BUDGET.1) * (took.as_secs_f64() + 1.0);
    // Every other start is for a connection that was there.
    let starts = open("headstart_decisions_total", &[("action", "start")]);
    println!("{starts} starts for {unannounced} requests; {spent} of the budget's {most:.1}");
    assert!(spent > 0.0, "the flood starts what the budget lets it");
    assert!(spent <= most, "{spent} starts of the budget in {took:?}, more than {most:.1}");
    assert!(
        starts <= spent + f64::from(unannounced),
        "{starts} starts for {unannounced} requests and {spent} SYNs"
    );
    let suppressed = metrics.sum("headstart_syn_suppressed_total", &[]);
    assert!(suppressed > 0.0, "what is over the budget is counted");

    let lost = metrics.sum("headstart_syn_lost_total", &[("reason", "authenticated_ring_full")]);
    assert!(lost.abs() < f64::EPSILON, "{lost} events of clients with a key were lost");
    println!("resident: {before} bytes before, {highest} at most");
    assert!(highest <= before + GROWTH_BYTES, "{before} bytes before, {highest} during the flood");
}
