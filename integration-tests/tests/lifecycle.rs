//! Instances from birth to end: bursts, limits, frozen ones, failing ones, and those that outlive their agent.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use headstart_integration_tests::lab::client::{self, HttpReply};
use headstart_integration_tests::lab::site::{LIMIT, Site, TestFunction};
use headstart_integration_tests::lab::{AgentSetup, Manager, RunningAgent, cli, fixture, privilege};
use serde_json::Value;

const NAME: &str = "steady";

/// An agent with this function, at rest. None without the privileges.
fn serving(function: &TestFunction) -> Option<RunningAgent> {
    if !ready() {
        return None;
    }
    let agent = AgentSetup::default().config(&function.text(NAME, &[])).start().unwrap();
    function.rest(&agent, NAME).unwrap();
    Some(agent)
}

fn ready() -> bool {
    privilege::require_root("containers") && privilege::require_tools(&["runc", "dockerd"])
}

fn get(function: &TestFunction, path: &str) -> HttpReply {
    client::get(function.local(), path, LIMIT).unwrap()
}

/// So many requests at once, each on a connection of its own.
fn burst(address: SocketAddr, count: usize, path: &str) -> Vec<HttpReply> {
    thread::scope(|scope| {
        let clients: Vec<_> =
            (0..count).map(|_| scope.spawn(|| client::get(address, path, LIMIT).unwrap())).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

fn instances(function: &Value, state: &str) -> usize {
    function["running"].as_array().unwrap().iter().filter(|instance| instance["state"] == state).count()
}

fn wait_ready(agent: &RunningAgent, count: usize) -> Value {
    let ready = |function: &Value| instances(function, "ready") == count && function["queued"] == 0;
    agent.wait_function(NAME, &format!("ready {count} times"), LIMIT, ready).unwrap()
}

/// The accept queue alone, without any SYN seen, is demand enough.
#[test]
fn each_client_of_a_burst_has_an_instance_of_its_own_as_far_as_allowed() {
    let mut function = fixture::steady("oci", "concurrency = 1\nmax_instances = 6").unwrap();
    function.prepared = 3;
    let Some(agent) = serving(&function) else { return };
    let replies = burst(function.local(), 12, "/hold/300");
    assert!(replies.iter().all(|reply| reply.status == 200));
    let names: BTreeSet<_> = replies.iter().map(|reply| reply.body.clone()).collect();
    assert_eq!(names.len(), 6, "{names:?}");
    let shown = wait_ready(&agent, 6);
    assert_eq!(shown["instances"], 6);
    let metrics = agent.metrics().unwrap();
    let starts = metrics.sum("headstart_coldstarts_total", &[("function", NAME)]);
    assert!((starts - 6.0).abs() < f64::EPSILON, "{starts} starts");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn one_instance_serves_a_whole_burst_when_its_concurrency_allows() {
    let function = fixture::steady("oci", "concurrency = 12\nmax_instances = 6").unwrap();
    let Some(agent) = serving(&function) else { return };
    let names: BTreeSet<_> =
        burst(function.local(), 12, "/hold/200").into_iter().map(|reply| reply.body).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn provisioned_instances_are_ready_before_any_client_connects() {
    let mut function = fixture::steady("process", "min_ready = 2\nconcurrency = 1").unwrap();
    function.prepared = 0;
    if !ready() {
        return;
    }
    let agent = AgentSetup::default().config(&function.text(NAME, &[])).start().unwrap();
    let shown = wait_ready(&agent, 2);
    assert!(shown["running"].as_array().unwrap().iter().all(|one| one["accepted"] == 0), "{shown}");
    assert_eq!(get(&function, "/").status, 200);
    let starts = agent.starts().unwrap();
    assert!(starts.as_array().unwrap().iter().all(|start| start["trigger"] == "provision"), "{starts}");
    // When an operator stops them, they start again.
    agent.stop_function(NAME).unwrap();
    agent
        .wait_function(NAME, "provisioned anew", LIMIT, |function| {
            function["instances"] == 2 && instances(function, "ready") == 2
        })
        .unwrap();
    assert!(agent.stop().unwrap().success());
}

#[test]
fn at_the_ceiling_clients_wait_and_are_answered_in_time() {
    for (overload, status) in [("http-503", Some(503)), ("http-429", Some(429)), ("reset", None)] {
        let keys = format!(
            "concurrency = 1\nmax_instances = 1\nqueue_timeout = \"300ms\"\noverload = \"{overload}\""
        );
        let function = fixture::steady("process", &keys).unwrap();
        let Some(agent) = serving(&function) else { return };
        // A first start may take longer than clients wait.
        agent.operate(NAME, "wake").unwrap();
        agent.wait_state(NAME, "ready", LIMIT).unwrap();
        let address = function.local();
        thread::scope(|scope| {
            let busy = scope.spawn(move || client::get(address, "/hold/3000", LIMIT).unwrap());
            agent.wait_function(NAME, "busy", LIMIT, |function| function["running"][0]["open"] == 1).unwrap();
            let begin = Instant::now();
            let waited = client::get(address, "/", LIMIT);
            assert!(begin.elapsed() >= Duration::from_millis(300), "{:?}", begin.elapsed());
            assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
            match (waited, status) {
                (Ok(reply), Some(status)) => {
                    assert_eq!(reply.status, status);
                    assert!(reply.header("retry-after").is_some(), "{reply:?}");
                }
                (Err(_reset), None) => {}
                (said, _) => panic!("{overload}: {said:?}"),
            }
            assert_eq!(busy.join().unwrap().status, 200);
        });
        let labels = [("function", NAME), ("reason", "queue_timeout")];
        let answers = agent.metrics().unwrap().sum("headstart_overload_answers_total", &labels);
        assert!((answers - 1.0).abs() < f64::EPSILON, "{answers} answers");
        assert_eq!(get(&function, "/").status, 200);
        assert!(agent.stop().unwrap().success());
    }
}

#[test]
fn a_function_that_is_off_says_so_at_once() {
    let mut function = fixture::steady("process", "max_instances = 0").unwrap();
    if !ready() {
        return;
    }
    function.prepared = 0;
    let agent = AgentSetup::default().config(&function.text(NAME, &[])).start().unwrap();
    agent.wait_state(NAME, "off", LIMIT).unwrap();
    assert_eq!(get(&function, "/").status, 503);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn an_idle_instance_is_frozen_uses_no_time_and_is_thawed_by_the_next_client() {
    for runtime in ["oci", "process", "docker"] {
        let function = fixture::steady(runtime, "freeze_after = \"200ms\"\nstop_after = \"30s\"").unwrap();
        if !ready() {
            return;
        }
        let mut setup = AgentSetup::default();
        if let headstart_integration_tests::lab::site::FunctionKind::Docker { docker, .. } = &function.kind {
            setup = setup.docker(docker);
        }
        let agent = setup.config(&function.text(NAME, &[])).start().unwrap();
        function.rest(&agent, NAME).unwrap();
        let name = get(&function, "/spin").status;
        assert_eq!(name, 200);
        for _ in 0..3 {
            agent.wait_state(NAME, "frozen", LIMIT).unwrap();
            assert_eq!(get(&function, "/").status, 200);
        }
        let starts = agent.metrics().unwrap().sum("headstart_coldstarts_total", &[("function", NAME)]);
        assert!((starts - 1.0).abs() < f64::EPSILON, "{runtime}: it was the same instance");
        // Not with an open connection, as long as that may be.
        let address = function.local();
        thread::scope(|scope| {
            let held = scope.spawn(move || client::get(address, "/hold/1000", LIMIT).unwrap());
            agent.wait_function(NAME, "busy", LIMIT, |function| function["running"][0]["open"] == 1).unwrap();
            while !held.is_finished() {
                let shown = agent.functions().unwrap();
                // It may have taken the client before it has said that it is thawed.
                let awake = ["thawing", "ready"].map(Value::from);
                assert!(awake.contains(&shown[0]["running"][0]["state"]), "{shown}");
            }
        });
        agent.wait_state(NAME, "frozen", LIMIT).unwrap();
        // A frozen one can be stopped.
        function.cool(&agent, NAME).unwrap();
        assert!(agent.stop().unwrap().success());
    }
}

/// Several instances wait on one listening socket; a wake-up that went to a frozen one would be lost.
#[test]
fn a_frozen_instance_swallows_no_wake_up_of_a_running_one() {
    let mut function = fixture::steady("oci", "concurrency = 1\nmin_ready = 1\nmax_instances = 4").unwrap();
    function.prepared = 3;
    let Some(agent) = serving_provisioned(&function) else { return };
    burst(function.local(), 4, "/hold/2000");
    wait_ready(&agent, 4);
    agent.operate(NAME, "freeze").unwrap();
    // `min_ready` keeps one; the others are frozen.
    let rested = |function: &Value| instances(function, "frozen") >= 3 && instances(function, "ready") >= 1;
    agent.wait_function(NAME, "frozen but for one", LIMIT, rested).unwrap();
    for _ in 0..100 {
        let begin = Instant::now();
        assert_eq!(get(&function, "/").status, 200);
        assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    }
    assert!(agent.stop().unwrap().success());
}

fn serving_provisioned(function: &TestFunction) -> Option<RunningAgent> {
    if !ready() {
        return None;
    }
    let agent = AgentSetup::default().config(&function.text(NAME, &[])).start().unwrap();
    wait_ready(&agent, 1);
    Some(agent)
}

#[test]
fn a_database_that_restarts_while_the_function_is_frozen_costs_no_request() {
    if !ready() {
        return;
    }
    for keys in ["freeze_backends = \"keep\"", "freeze_backends = \"return\""] {
        let mut site = Site::new(Duration::ZERO, Duration::ZERO).unwrap();
        let mut function = TestFunction::example("orders", "oci").unwrap();
        function.keys = format!("freeze_after = \"100ms\"\n{keys}\n");
        let agent = site.agent(false, &function).unwrap();
        assert_eq!(site.get(function.port, "/").unwrap().status, 200);
        for _ in 0..3 {
            agent.wait_state("orders", "frozen", LIMIT).unwrap();
            // What is returned has its place until the kernel says that it is closed.
            let kept = u64::from(keys.contains("keep"));
            cli::eventually(keys, LIMIT, || Ok((backends(&agent)["leased"] == kept).then_some(()))).unwrap();
            site.postgres.restart().unwrap();
            cli::eventually("the pool has connections again", LIMIT, || {
                Ok((backends(&agent)["idle"].as_u64() >= Some(1)).then_some(()))
            })
            .unwrap();
            let reply = site.get(function.port, "/").unwrap();
            assert_eq!(reply.status, 200, "{}\n{}", reply.body, agent.log());
        }
        let starts = agent.metrics().unwrap().sum("headstart_coldstarts_total", &[("function", "orders")]);
        assert!((starts - 1.0).abs() < f64::EPSILON, "it was the same instance");
        assert!(agent.stop().unwrap().success());
    }
}

fn backends(agent: &RunningAgent) -> Value {
    let reply = agent.ask("GET", "/api/v1/backends").unwrap();
    serde_json::from_str::<Value>(&reply.body).unwrap()[0].clone()
}

#[test]
fn functions_that_misbehave_are_explained_and_harm_no_other() {
    if !ready() {
        return;
    }
    let modes = [
        ("exit", "queue_timeout = \"4s\"", "exit code 3"),
        ("silent", "init_timeout = \"500ms\"\nqueue_timeout = \"4s\"", "was not ready within init_timeout"),
        ("header", "queue_timeout = \"4s\"", "its control socket was closed"),
        ("fork", "queue_timeout = \"4s\"", "ended before it was ready: exit code 0"),
        ("hog", "memory = \"16MiB\"\nqueue_timeout = \"4s\"", "out of memory"),
        ("hang", "queue_timeout = \"1500ms\"", "took no connection"),
        ("stubborn", "stop_grace = \"200ms\"", ""),
    ];
    let good = fixture::steady("oci", "").unwrap();
    let mut setup = AgentSetup::default().config(&good.text("good", &[]));
    let mut bad = Vec::new();
    for (mode, keys, reason) in modes {
        let mut function = fixture::function(mode, "oci", keys).unwrap();
        function.prepared = 1;
        setup = setup.config(&function.text(mode, &[]));
        bad.push((mode, function, reason));
    }
    let agent = setup.start().unwrap();
    good.rest(&agent, "good").unwrap();
    assert_eq!(get(&good, "/").status, 200);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stops = Stops(&stop);
        // The neighbour is asked all the time.
        let neighbour = scope.spawn(|| {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(get(&good, "/").status, 200);
                asked += 1;
            }
            asked
        });
        for (mode, function, reason) in &bad {
            let address = function.local();
            let client = scope.spawn(move || client::get(address, "/", LIMIT));
            if reason.is_empty() {
                assert_eq!(client.join().unwrap().unwrap().status, 200);
                function.cool(&agent, mode).unwrap();
                continue;
            }
            let explained = cli::eventually(&format!("{mode} is explained"), LIMIT, || {
                let admin = agent.admin().to_string();
                let said = cli::headstart(&["explain", mode, "--admin", &admin])?;
                Ok(said.stdout.contains(reason).then_some(said.stdout))
            });
            assert!(explained.is_ok(), "{mode}: {explained:?}\n{}", agent.log());
            let answered = client.join().unwrap();
            assert_eq!(answered.map(|reply| reply.status).unwrap_or_default(), 503, "{mode}");
        }
        stop.store(true, Ordering::Relaxed);
        println!("the neighbour answered {} requests meanwhile", neighbour.join().unwrap());
    });
    assert!(agent.stop().unwrap().success());
}

/// Ends those who ask again and again, also when the test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Half of the functions run when the agent dies, the others are cold; clients keep coming to all of them.
#[test]
fn a_killed_agent_fails_no_request_and_the_next_one_takes_its_instances_over() {
    const EACH: usize = 20;
    if !ready() {
        return;
    }
    let manager = Manager::new().unwrap();
    let mut setup = AgentSetup::default().manager(&manager);
    let functions: Vec<_> = (0..2 * EACH)
        .map(|number| {
            let mut function = fixture::steady("oci", "").unwrap();
            function.prepared = usize::from(number >= EACH);
            (format!("f{number}"), function)
        })
        .collect();
    for (name, function) in &functions {
        setup = setup.config(&function.text(name, &[]));
    }
    let first = setup.start().unwrap();
    let names: Vec<_> = functions[..EACH].iter().map(|(_, function)| get(function, "/").body).collect();
    for (name, function) in &functions[EACH..] {
        function.rest(&first, name).unwrap();
    }
    // A few of those that run are frozen.
    for (name, _) in &functions[..3] {
        first.operate(name, "freeze").unwrap();
        first.wait_state(name, "frozen", LIMIT).unwrap();
    }
    let stop = AtomicBool::new(false);
    let next = thread::scope(|scope| {
        let _stops = Stops(&stop);
        for (_, function) in &functions[3..EACH] {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(get(function, "/").status, 200);
                }
            });
        }
        let killed = first.kill().unwrap();
        // A client connects to a cold one while there is no agent.
        let address = functions[EACH].1.local();
        let waiting = scope.spawn(move || client::get(address, "/", LIMIT).unwrap().status);
        let next = killed.start().unwrap();
        assert_eq!(waiting.join().unwrap(), 200);
        stop.store(true, Ordering::Relaxed);
        next
    });
    let shown = next.functions().unwrap();
    assert_eq!(shown.as_array().unwrap().len(), 2 * EACH);
    for ((name, function), instance) in functions.iter().zip(&names) {
        let shown = shown.as_array().unwrap().iter().find(|shown| shown["name"] == **name).unwrap();
        assert_eq!(shown["instances"], 1, "{name} is not doubled: {shown}");
        assert_eq!(shown["running"][0]["name"], **instance, "{shown}\n{}", next.log());
        assert_eq!(&get(function, "/").body, instance, "also the frozen ones");
    }
    for (name, function) in &functions[EACH + 1..] {
        function.rest(&next, name).unwrap();
    }
    assert!(next.stop().unwrap().success());
}
