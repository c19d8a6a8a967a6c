//! `serve`: listeners are shared with the instances that accept from them, and these may do anything to them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::net::{TcpListener, TcpStream};

use headstart_integration_tests::lab::client::{self, HttpReply};
use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::lab::{AgentSetup, Manager, RunningAgent, cli, fixture, privilege};

const RUNTIME: &str = "oci";

fn ready() -> bool {
    privilege::require_root("containers") && privilege::require_tools(&["runc"])
}

fn get(function: &TestFunction, path: &str) -> HttpReply {
    client::get(function.local(), path, LIMIT).unwrap()
}

/// It answers, unless the agent has seen what it did before that, and has stopped it.
fn ask_to_end_its_listener(function: &TestFunction, how: &str) {
    let reply = client::get(function.local(), &format!("/listener/{how}"), LIMIT);
    assert!(reply.as_ref().map_or(true, |reply| reply.body == "done"), "{reply:?}");
}

/// A new instance answers, on the same port.
fn answers_again(agent: &RunningAgent, function: &TestFunction) {
    let alive = || {
        let reply = client::get(function.local(), "/", LIMIT);
        Ok(reply.is_ok_and(|reply| reply.status == 200 && reply.body == fixture::ALIVE).then_some(()))
    };
    cli::eventually("it answers again", LIMIT, alive)
        .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    cli::eventually("ready", LIMIT, || Ok((agent.ask("GET", "/readyz")?.status == 200).then_some(())))
        .unwrap();
}

#[test]
fn a_listener_that_an_instance_ended_is_bound_anew() {
    if !ready() {
        return;
    }
    let manager = Manager::new().unwrap();
    let [hostile, neighbour] = [(); 2].map(|()| fixture::function("plain", RUNTIME, "").unwrap());
    let setup = AgentSetup::default().lookup(true).manager(&manager);
    let setup = setup.config(&hostile.text("hostile", &[])).config(&neighbour.text("neighbour", &[]));
    let agent = setup.start().unwrap();
    for (name, function) in [("hostile", &hostile), ("neighbour", &neighbour)] {
        function.rest(&agent, name).unwrap();
        assert_eq!(get(function, "/").body, fixture::ALIVE);
    }
    ask_to_end_its_listener(&hostile, "disconnect");
    let line = agent.wait_log("was ended by an instance", LIMIT).unwrap();
    assert!(
        line.contains("ERROR") && line.contains("function=\"hostile\"") && line.contains("hostile-"),
        "{line}"
    );
    agent.wait_log("its address is bound anew", LIMIT).unwrap();
    answers_again(&agent, &hostile);
    let listeners = || {
        let stored = manager.stored()?;
        Ok((stored.iter().filter(|name| name.starts_with("listen-")).count() == 2).then_some(()))
    };
    cli::eventually("the manager has the new listener in place of the old one", LIMIT, listeners).unwrap();

    // Once more: not in a tight loop. Another process can take the port meanwhile.
    ask_to_end_its_listener(&hostile, "shutdown");
    let taken =
        cli::eventually("the port is free", LIMIT, || Ok(TcpListener::bind(hostile.local()).ok())).unwrap();
    let ended = |function: &serde_json::Value| function["state"] == "failed";
    let shown = agent.wait_function("hostile", "without a listener", LIMIT, ended).unwrap();
    assert!(shown["last_error"].as_str().unwrap().contains("was ended by an instance"), "{shown}");
    let unready = |why: &str| {
        let asked = || {
            let reply = agent.ask("GET", "/readyz")?;
            Ok((reply.status == 503 && reply.body.contains(why)).then_some(()))
        };
        cli::eventually(why, LIMIT, asked).unwrap();
    };
    unready("hostile: its instances have ended its listener again");
    agent.wait_log("is in use", LIMIT).unwrap();
    unready("is in use");
    assert_eq!(get(&neighbour, "/").body, fixture::ALIVE);
    drop(taken);
    answers_again(&agent, &hostile);
    let lines = agent.log().lines().filter(|line| line.contains("hostile")).count();
    assert!(lines < 100, "{lines} lines:\n{}", agent.log());
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_listener_that_blocks_does_not_block_the_agent_that_drains_it() {
    if !ready() {
        return;
    }
    let [hostile, neighbour] = [(); 2].map(|()| fixture::function("plain", RUNTIME, "").unwrap());
    let stays = neighbour.text("neighbour", &[]);
    let setup = AgentSetup::default().config(&hostile.text("hostile", &[])).config(&stays);
    let agent = setup.start().unwrap();
    neighbour.rest(&agent, "neighbour").unwrap();
    assert_eq!(get(&hostile, "/listener/block").body, "done");
    agent.rewrite(&stays).unwrap();
    assert_eq!(agent.ask("POST", "/api/v1/reload").unwrap().status, 200);
    let closed = || Ok(TcpStream::connect(hostile.local()).is_err().then_some(()));
    cli::eventually("its port is closed", LIMIT, closed).unwrap();
    assert_eq!(agent.ask("GET", "/healthz").unwrap().status, 200);
    assert_eq!(get(&neighbour, "/").body, fixture::ALIVE);
    assert!(agent.stop().unwrap().success());
}
