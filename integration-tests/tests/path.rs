//! The whole path: SYN to answered request with an injected PostgreSQL connection, on each runtime.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::HashSet;
use std::time::Duration;

use headstart_integration_tests::lab::leaks::LeakWatch;
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, Site, TestFunction};
use headstart_integration_tests::lab::{LabLease, Metrics, RunningAgent, privilege};

/// In a row, with a client that connects and sends at once.
const STARTS: usize = 200;

/// A container start costs Docker hundreds of milliseconds.
const DOCKER_STARTS: usize = 20;

/// After so many the agent's descriptors are at their usual number.
const SETTLED: usize = 5;

#[test]
fn oci_never_loses_a_first_request() {
    first_requests("oci", STARTS, true);
}

#[test]
fn oci_never_loses_a_first_request_without_ebpf() {
    first_requests("oci", STARTS, false);
}

#[test]
fn process_never_loses_a_first_request() {
    first_requests("process", STARTS, true);
}

#[test]
fn process_never_loses_a_first_request_without_ebpf() {
    first_requests("process", STARTS, false);
}

#[test]
fn docker_never_loses_a_first_request() {
    first_requests("docker", DOCKER_STARTS, true);
}

#[test]
fn docker_never_loses_a_first_request_without_ebpf() {
    first_requests("docker", DOCKER_STARTS, false);
}

fn first_requests(runtime: &str, starts: usize, syn: bool) {
    if !privilege::require_root("namespaces, XDP and containers") {
        return;
    }
    let _lease = LabLease::take().unwrap();
    let site = Site::new(Duration::ZERO, Duration::ZERO).unwrap();
    let function = TestFunction::example("orders", runtime).unwrap();
    // Alone under this name, so that whatever is left under it was left by this test.
    let name = format!("path-{runtime}-{}-{}", if syn { "syn" } else { "accept" }, std::process::id());
    let everything = watch(&function, &name);
    let nothing = everything.snapshot().unwrap();

    let agent = site.agent_for(&name, syn, &function).unwrap();
    let descriptors = LeakWatch::default().process(agent.id());
    let mut settled = None;
    let mut sessions = HashSet::new();
    for start in 0..starts {
        let reply = site
            .get(function.port, "/")
            .unwrap_or_else(|error| panic!("{start}: {error:#}\n{}", agent.log()));
        assert_eq!(reply.status, 200, "{start}: {}", reply.body);
        sessions.insert(reply.body);
        function.cool(&agent, &name).unwrap();
        if start == SETTLED {
            rest(&agent);
            settled = Some(descriptors.snapshot().unwrap());
        }
    }
    assert_eq!(sessions.len(), starts, "every start has a server connection of its own");

    rest(&agent);
    let leaked = descriptors.leaked_since(&settled.unwrap(), LIMIT).unwrap();
    assert_eq!(leaked, Vec::<String>::new(), "descriptors of the agent");
    let metrics = agent.metrics().unwrap();
    counts(&metrics, &name, starts, syn);
    let status = agent.stop().unwrap();
    assert!(status.success(), "{status}");
    let leaked = everything.leaked_since(&nothing, LIMIT).unwrap();
    assert_eq!(leaked, Vec::<String>::new(), "containers, cgroups, mounts");
}

fn watch(function: &TestFunction, name: &str) -> LeakWatch {
    let watch = LeakWatch::default().name(name);
    match &function.kind {
        FunctionKind::Docker { docker, .. } => {
            watch.docker(docker, &format!("label=headstart.function={name}"))
        }
        FunctionKind::Oci(_) | FunctionKind::Process(_) => watch,
    }
}

/// Until the pool has replaced what was used.
fn rest(agent: &RunningAgent) {
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        let metrics = agent.metrics().unwrap();
        let connections = |state| metrics.sum("headstart_pool_connections", &[("state", state)]);
        if connections("leased") == 0.0 && connections("connecting") == 0.0 {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "the pool does not come to rest");
    }
}

#[expect(clippy::float_cmp, clippy::cast_precision_loss, reason = "small counts")]
fn counts(metrics: &Metrics, name: &str, starts: usize, syn: bool) {
    let ready = |trigger| {
        let labels = [("function", name), ("outcome", "ready"), ("trigger", trigger)];
        metrics.sum("headstart_coldstarts_total", &labels)
    };
    assert_eq!(ready("syn") + ready("accept"), starts as f64, "each start is counted once");
    assert_eq!(metrics.sum("headstart_coldstarts_total", &[("outcome", "failed")]), 0.0);
    assert_eq!(metrics.sum("headstart_syn_lost_total", &[]), 0.0);
    let expected = if syn { "syn" } else { "accept" };
    assert_eq!(ready(expected), starts as f64, "all were started by the {expected}");
}
