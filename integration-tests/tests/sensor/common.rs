//! What several tests need.

use headstart_integration_tests::lab::node::ip;
use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::lab::{Namespace, RunningAgent, cli, fixture};

/// Parked containers make an early start visible: it is over before a client's connection is complete.
const RUNTIME: &str = "oci";

/// A key of 128 bits, and another.
pub(crate) const KEY: [u8; 16] = *b"sixteen secret b";
pub(crate) const OTHER_KEY: [u8; 16] = *b"another secret b";

/// A function that answers, with one parked container. `keys` are further keys of its section.
pub(crate) fn function(keys: &str) -> TestFunction {
    fixture::function("plain", RUNTIME, keys).unwrap()
}

/// Whether an XDP program is on the interface.
pub(crate) fn has_xdp(namespace: &Namespace, interface: &str) -> bool {
    ip(namespace, &format!("-d link show dev {interface}")).unwrap().contains("xdp")
}

/// Waits until there is none: the kernel releases a link that is no longer pinned a moment later, in a task of its own.
pub(crate) fn wait_bare(namespace: &Namespace, interface: &str) {
    cli::eventually(&format!("no program on {interface}"), LIMIT, || {
        Ok((!has_xdp(namespace, interface)).then_some(()))
    })
    .unwrap();
}

/// The modes in which the agent watches the interface now.
pub(crate) fn modes(agent: &RunningAgent, interface: &str) -> Vec<String> {
    let metrics = agent.metrics().unwrap();
    let labels = [("interface", interface)];
    let on = metrics.find("headstart_syn_sensor", &labels).filter(|sample| sample.value > 0.0);
    on.map(|sample| sample.labels["mode"].clone()).collect()
}

/// Waits until the agent watches the interface in one of `wanted`, or not at all if there are none.
pub(crate) fn wait_modes(agent: &RunningAgent, interface: &str, wanted: &[&str]) -> Vec<String> {
    let reached = |modes: &[String]| match wanted {
        [] => modes.is_empty(),
        _ => modes.len() == 1 && wanted.contains(&&*modes[0]),
    };
    cli::eventually(&format!("{interface} watched in {wanted:?}"), LIMIT, || {
        let modes = modes(agent, interface);
        Ok(reached(&modes).then_some(modes))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()))
}

/// The sum of a counter.
pub(crate) fn count(agent: &RunningAgent, name: &str, labels: &[(&str, &str)]) -> f64 {
    agent.metrics().unwrap().sum(name, labels)
}

/// Asserts that nothing has started the function.
pub(crate) fn assert_cold(agent: &RunningAgent, name: &str) {
    let all = agent.functions().unwrap();
    let function = all.as_array().unwrap().iter().find(|function| function["name"] == name).unwrap();
    assert_eq!(function["state"], "cold", "{function}\n{}", agent.log());
}
