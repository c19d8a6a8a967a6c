//! `headstart bench`, as an operator runs it against a running agent.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::net::TcpStream;

use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{AgentSetup, RunningAgent, cli, fixture, privilege};
use serde_json::Value;

#[test]
fn a_function_is_measured_on_its_own_node() {
    if !privilege::require_root("containers") || !privilege::require_tools(&["runc"]) {
        return;
    }
    let steady = fixture::steady("oci", "").unwrap();
    let agent = AgentSetup::default().config(&steady.text("steady", &[])).start().unwrap();
    steady.rest(&agent, "steady").unwrap();

    let text = bench(&agent, &["steady", "--requests", "3"]);
    assert_eq!(text.code, Some(0), "{}", text.all);
    for said in
        ["stopped 4 times", "Started by: accept 3.", "A cold start adds", "start_to_exec", "first_response"]
    {
        assert!(text.stdout.contains(said), "{said}: {}", text.all);
    }

    let json = bench(&agent, &["steady", "--requests", "3", "--json"]);
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    let median = |name: &str| {
        let figures = report["figures"].as_array().unwrap();
        let figure = figures.iter().find(|figure| figure["name"] == name).unwrap();
        assert_eq!(figure["n"], 3, "{report}");
        figure["p50"].as_f64().unwrap()
    };
    assert!(median("bench_cold_ms") > median("bench_warm_ms"), "{report}");
    assert_eq!(report["partial"], false);

    for (arguments, said) in [
        (&["stedy"][..], "did you mean \"steady\"?"),
        (&["steady", "--requests", "0"], "0 is not in 1..=10000"),
        (&["steady", "--path", "here"], "a path begins with /"),
    ] {
        let refused = bench(&agent, arguments);
        assert!(!matches!(refused.code, Some(0)) && refused.all.contains(said), "{said}: {}", refused.all);
    }

    // A client is connected.
    let client = TcpStream::connect(steady.local()).unwrap();
    agent.wait_function("steady", "in use", LIMIT, |function| function["running"][0]["open"] == 1).unwrap();
    let refused = bench(&agent, &["steady"]);
    assert!(
        refused.code == Some(1) && refused.all.contains("is in use: 1 connections are open"),
        "{}",
        refused.all
    );
    drop(client);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn without_an_agent_it_says_so() {
    let refused = cli::headstart(&["bench", "orders", "--admin", "127.0.0.1:1"]).unwrap();
    assert!(
        refused.code == Some(1) && refused.all.contains("no agent answers at 127.0.0.1:1"),
        "{}",
        refused.all
    );
}

fn bench(agent: &RunningAgent, arguments: &[&str]) -> cli::Outcome {
    let admin = agent.admin().to_string();
    cli::headstart(&[&["bench"], arguments, &["--admin", &admin]].concat()).unwrap()
}
