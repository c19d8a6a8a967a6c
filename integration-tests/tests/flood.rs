//! A flood of SYNs from random sources: it costs its victims nothing but a bounded number of early starts.

use std::time::{Duration, Instant};

use headstart_integration_tests::node::trigger;
use headstart_integration_tests::siege::{BUDGET, CLOSED, CLOSED_ID, Siege};
use headstart_integration_tests::{privilege, usage};

const OPEN: u16 = 100;
const LASTING: Duration = Duration::from_secs(10);

/// What the agent's memory may grow by: the instances that were started have their place in it.
const GROWTH_BYTES: u64 = 16 * 1024 * 1024;

#[test]
fn a_flood_starts_few_functions_and_loses_nobody() {
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
    let (mut strangers, mut known) = (0, 0);
    for (name, port) in siege.open().iter().cycle() {
        if !flood.is_running() {
            break;
        }
        let reply = node.get(*port).unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", agent.log()));
        assert_eq!(reply.status, 200, "{name}: {}", reply.body);
        strangers += 1;
        let answer = node.get_tagged(&node.client, siege.target(), CLOSED_ID, Some(keys)).unwrap();
        assert!(answer.contains("alive"), "{answer}");
        assert_eq!(trigger(agent, CLOSED).unwrap(), "syn", "request {known} with a key");
        known += 1;
        closed.cool(agent, CLOSED).unwrap();
        highest = highest.max(resident());
    }
    let sent = flood.join().unwrap();
    let took = begin.elapsed();
    let metrics = agent.metrics().unwrap();
    println!("{sent:?}, {:.0} SYNs a second; {strangers} and {known} requests", sent.rate());
    assert!(sent.took >= LASTING && sent.frames > 500_000, "that was no flood: {sent:?}");
    assert!(strangers >= 10 && known >= 10, "{strangers} and {known} requests in {took:?}");

    // Early starts for strangers: what the budget gives in this time, and its burst of one second.
    let early = |trigger| {
        let all = metrics.find("headstart_coldstarts_total", &[]);
        let open = all.filter(|sample| sample.labels["function"] != CLOSED);
        open.filter(|sample| sample.labels["trigger"] == trigger).map(|sample| sample.value).sum::<f64>()
    };
    let early = early("syn") + early("lookup");
    let most = f64::from(BUDGET.1) * (took.as_secs_f64() + 1.0);
    println!("{early} early starts; at most {most:.0} are allowed");
    assert!(early <= most, "{early} early starts in {took:?}, more than {most:.0}");
    let suppressed = metrics.sum("headstart_syn_suppressed_total", &[]);
    assert!(suppressed > 0.0, "what is over the budget is counted");

    let lost = metrics.sum("headstart_syn_lost_total", &[("reason", "authenticated_ring_full")]);
    assert!(lost.abs() < f64::EPSILON, "{lost} events of clients with a key were lost");
    println!("resident: {before} bytes before, {highest} at most");
    assert!(highest <= before + GROWTH_BYTES, "{before} bytes before, {highest} during the flood");
}
