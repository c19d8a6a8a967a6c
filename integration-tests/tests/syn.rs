//! `syn`: the kernel half sees a client's first packet, and nothing depends on it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::process::Command;
use std::time::Duration;

use headstart_integration_tests::lab::client::{self, HttpReply};
use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    self, AgentSetup, Delay, Link, Namespace, RunningAgent, cli, fixture, privilege,
};
use serde_json::Value;

const RUNTIME: &str = "oci";
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// No interface has such a name.
const NOWHERE: &str = "headstart-none";

/// By what the kernel says of its devices.
#[test]
fn overlay_networks_are_watched_automatically() {
    if !privilege::require_root("namespaces") {
        return;
    }
    let node = Namespace::new("node").unwrap();
    let inside = |words: &[&str]| {
        let mut command = Command::new("ip");
        lab::run(command.args(["netns", "exec", node.name()]).args(words)).unwrap()
    };
    inside(&["ip", "link", "add", "overlay", "type", "vxlan", "id", "7", "dstport", "4789"]);
    inside(&["ip", "link", "add", "plain", "type", "veth"]);
    let said = inside(&[lab::binary().unwrap().to_str().unwrap(), "doctor"]);
    assert!(said.contains("[\"auto\"] means overlay\n"), "{said}");
}

#[test]
fn a_syn_starts_the_function_before_the_handshake_ends() {
    let Some(site) = WatchedSite::new() else { return };
    let _delay = Delay::new(&site.client, ROUND_TRIP).unwrap();
    // One listens on every address, the other only on that of the link.
    let (any, exact) = (function(), function());
    let only = any_to(&exact, &site.link.host(exact.port).to_string());
    let setup = AgentSetup::default().interface(site.link.host_if());
    let agent = setup.config(&any.text("any", &[])).config(&only).start().unwrap();

    let watching = agent.wait_log("watching for SYNs", LIMIT).unwrap();
    let mode = ["native", "generic"].into_iter().find(|mode| watching.contains(mode)).expect(&watching);
    assert!(watching.contains(site.link.host_if()), "{watching}");
    let labels = [("interface", site.link.host_if()), ("mode", mode)];
    assert_eq!(agent.metrics().unwrap().get("headstart_syn_sensor", &labels), Some(1.0));
    assert!(xdp(&site.link), "ip link shows the program");

    for (name, function) in [("any", &any), ("exact", &exact)] {
        function.rest(&agent, name).unwrap();
        let reply = site.get(function.port);
        assert_eq!((reply.status, &*reply.body), (200, fixture::ALIVE));
        let start = start(&agent, name);
        assert_eq!(start["trigger"], "syn", "{start}");
        // Seen from this host the handshake ends one round trip after its SYN.
        let ready = start["ready_ns"].as_u64().unwrap() - start["syn_ns"].as_u64().unwrap();
        assert!(u128::from(ready) < ROUND_TRIP.as_nanos(), "ready after {ready} ns");
        assert!(Duration::from_nanos(ready) < reply.timings.connect, "{start}, {:?}", reply.timings);
        assert!(start["connected_ns"].is_null(), "no client waited: {start}");
        assert_eq!(start["stages"]["exposed"], 0.0, "{start}");
    }

    let port = exact.port;
    assert!(agent.stop().unwrap().success());
    // The kernel releases a link that is no longer pinned a moment later, in a task of its own.
    let gone = || Ok((!xdp(&site.link)).then_some(()));
    cli::eventually("the program is gone with the agent", LIMIT, gone).unwrap();
    assert!(site.client.enter(|| client::get(site.link.host(port), "/", LIMIT)).unwrap().is_err());
}

#[test]
fn a_syn_to_a_warm_function_is_no_news() {
    let Some(site) = WatchedSite::new() else { return };
    let function = function();
    let setup = AgentSetup::default().interface(site.link.host_if());
    let agent = setup.config(&function.text("warm", &[])).start().unwrap();
    function.rest(&agent, "warm").unwrap();
    site.get(function.port);
    agent.wait_state("warm", "ready", LIMIT).unwrap();

    let look = || {
        let metrics = agent.metrics().unwrap();
        let packets = metrics.sum("headstart_syn_packets_total", &[("kind", "warm")]);
        (packets, metrics.sum("headstart_syn_events_total", &[("function", "warm")]))
    };
    let (packets, events) = look();
    assert!(events >= 1.0, "the first SYN was news");
    for more in 1..=3 {
        assert_eq!(site.get(function.port).status, 200);
        assert_eq!(look(), (packets + f64::from(more), events));
    }
    // Cold again, a SYN is news again.
    function.cool(&agent, "warm").unwrap();
    site.get(function.port);
    assert!(look().1 > events);
    assert_eq!(start(&agent, "warm")["trigger"], "syn");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn an_interface_that_does_not_exist_costs_nothing_else() {
    let Some(site) = WatchedSite::new() else { return };
    let function = function();
    let setup = AgentSetup::default().interface(NOWHERE).interface(site.link.host_if());
    let agent = setup.config(&function.text("orders", &[])).start().unwrap();

    agent.wait_log("headstart is up", LIMIT).unwrap();
    let log = agent.log();
    let errors: Vec<_> = log.lines().filter(|line| line.contains(NOWHERE)).collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(errors[0].contains("ip link"), "{log}");
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.sum("headstart_syn_sensor", &[("interface", NOWHERE)]), 0.0);
    assert_eq!(metrics.sum("headstart_syn_sensor", &[("interface", site.link.host_if())]), 1.0);

    function.rest(&agent, "orders").unwrap();
    assert_eq!(site.get(function.port).status, 200);
    assert_eq!(start(&agent, "orders")["trigger"], "syn");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn without_interfaces_the_accept_queue_starts_functions() {
    let Some(site) = WatchedSite::new() else { return };
    let function = function();
    let agent = AgentSetup::default().config(&function.text("orders", &[])).start().unwrap();
    agent.wait_log("nothing is watched", LIMIT).unwrap();
    for _ in 0..2 {
        function.rest(&agent, "orders").unwrap();
        let reply = site.get(function.port);
        assert_eq!((reply.status, &*reply.body), (200, fixture::ALIVE));
        assert_eq!(start(&agent, "orders")["trigger"], "accept");
        agent.stop_function("orders").unwrap();
    }
    let metrics = agent.metrics().unwrap();
    assert_eq!(metrics.get("headstart_syn_sensor", &[]), None);
    assert_eq!(metrics.sum("headstart_syn_events_total", &[("kind", "syn")]), 0.0);
    assert!(!xdp(&site.link));
    assert!(agent.stop().unwrap().success());
}

/// A client's network and its link to this host.
struct WatchedSite {
    link: Link,
    client: Namespace,
}

impl WatchedSite {
    fn new() -> Option<Self> {
        if !privilege::require_root("namespaces, XDP and containers")
            || !privilege::require_tools(&["ip", "iptables", "runc"])
        {
            return None;
        }
        let client = Namespace::new("client").unwrap();
        Some(Self { link: Link::connect(&client).unwrap(), client })
    }

    /// One request on a connection of its own.
    fn get(&self, port: u16) -> HttpReply {
        let target = self.link.host(port);
        self.client.enter(|| client::get(target, "/", LIMIT)).unwrap().unwrap()
    }
}

fn function() -> TestFunction {
    fixture::function("plain", RUNTIME, "").unwrap()
}

/// The section of `function`, but with another address to listen on.
fn any_to(function: &TestFunction, listen: &str) -> String {
    function.text("exact", &[]).replace(&format!("0.0.0.0:{}", function.port), listen)
}

/// The newest timeline of a function, once it is complete as far as ready.
fn start(agent: &RunningAgent, name: &str) -> Value {
    cli::eventually("a timeline with ready", LIMIT, || {
        let starts = agent.starts()?;
        let own = starts.as_array().and_then(|all| all.iter().rfind(|start| start["function"] == name));
        Ok(own.filter(|start| !start["ready_ns"].is_null()).cloned())
    })
    .unwrap()
}

/// Whether there is an XDP program on the host's end.
fn xdp(link: &Link) -> bool {
    let shown = lab::run(Command::new("ip").args(["-d", "link", "show", "dev", link.host_if()])).unwrap();
    shown.contains("xdp")
}
