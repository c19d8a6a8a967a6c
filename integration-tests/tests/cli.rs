//! The commands with which operators look at functions, start and stop them, against a real agent.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use headstart_integration_tests::lab::cli::{self, Outcome, headstart};
use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    AgentSetup, ChildProcess, RunningAgent, Scratch, binary, client, fixture, free_port, privilege,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const RUNTIME: &str = "process";

/// An agent with the function `orders` in one of the fixture's modes; `None` where it cannot run.
fn serving(mode: &str, keys: &str) -> Option<(RunningAgent, TestFunction)> {
    if !privilege::require_root("namespaces") {
        return None;
    }
    let function = fixture::function(mode, RUNTIME, keys).unwrap();
    Some((AgentSetup::default().config(&function.text("orders", &[])).start().unwrap(), function))
}

/// One command, told where the agent is.
fn ask(admin: SocketAddr, arguments: &[&str]) -> Outcome {
    headstart(&[arguments, &["--admin", &admin.to_string()]].concat()).unwrap()
}

/// What a command that must succeed said.
fn told(admin: SocketAddr, arguments: &[&str]) -> String {
    let said = ask(admin, arguments);
    assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.all);
    said.stdout
}

fn says(text: &str, all: &[&str]) {
    for said in all {
        assert!(text.contains(said), "{said:?} is not in:\n{text}");
    }
}

#[test]
fn an_operator_wakes_a_function_stops_it_and_is_told_what_comes_of_it() {
    let Some((agent, function)) = serving("plain", "") else { return };
    function.rest(&agent, "orders").unwrap();
    says(
        &told(agent.admin(), &["explain", "orders"]),
        &["process) is cold", "one container is parked", "released at once", "none is remembered"],
    );
    assert_eq!(told(agent.admin(), &["stop", "orders"]), "orders: nothing is stopped: no instance runs\n");

    assert_eq!(told(agent.admin(), &["wake", "orders"]), "orders: it is being started\n");
    agent
        .wait_function("orders", "ready, with the next container parked", LIMIT, |function| {
            function["state"] == "ready" && function["prepared"] == 1
        })
        .unwrap();
    assert_eq!(told(agent.admin(), &["wake", "orders"]), "orders: an instance runs already\n");
    let text = told(agent.admin(), &["explain", "orders"]);
    says(&text, &["is ready", "an instance accepts already", "asked for by api): ready after ", "  init "]);

    let facts: Value = serde_json::from_str(&told(agent.admin(), &["explain", "orders", "--json"])).unwrap();
    assert_eq!((&facts["state"], &facts["next_syn"]), (&"ready".into(), &"nothing".into()), "{facts}");
    assert_eq!(facts["last_start"]["trigger"], "api", "{facts}");
    assert!(facts["last_start"]["stages"]["total"].as_f64().unwrap() > 0.0, "{facts}");
    says(&text, &[facts["why"].as_str().unwrap(), facts["next_syn_text"].as_str().unwrap()]);

    assert_eq!(told(agent.admin(), &["stop", "orders"]), "orders: its instances are being stopped\n");
    function.rest(&agent, "orders").unwrap();
    assert!(agent.stop().unwrap().success());
}

#[test]
fn what_cannot_be_asked_for_says_what_to_do() {
    let nobody = free_port().unwrap().to_string();
    for command in
        [&["wake", "orders"][..], &["stop", "orders"], &["explain", "orders"], &["status", "--watch"]]
    {
        let said = headstart(&[command, &["--admin", &nobody]].concat()).unwrap();
        assert_eq!((said.code, &*said.stdout), (Some(1), ""), "{command:?}: {}", said.all);
        says(&said.all, &[&nobody, "no agent answers", "is it running"]);
    }
    if !privilege::require_root("namespaces") {
        return;
    }
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let mut lost = fixture::function("plain", RUNTIME, "").unwrap();
    lost.port = taken.local_addr().unwrap().port();
    let function = fixture::function("plain", RUNTIME, "").unwrap();
    let files = Scratch::new("agent").unwrap();
    let (admin, state) = (free_port().unwrap(), files.path().join("state"));
    let head = format!("[agent]\nadmin = \"{admin}\"\nstate_dir = {state:?}\n\n");
    let text = head + &function.text("orders", &[]) + &lost.text("lost", &[]);
    let mut agent = cli::run(&files, &text).unwrap();
    agent.wait_line("headstart is up", LIMIT).unwrap();
    for command in ["wake", "stop", "explain"] {
        let said = ask(admin, &[command, "ordres"]);
        assert_eq!((said.code, &*said.stdout), (Some(1), ""), "{}", said.all);
        says(&said.all, &["no function \"ordres\"", "did you mean \"orders\"?"]);
        // A name is never part of a path before the agent has named it.
        let said = ask(admin, &[command, "../starts HTTP/1.0\r\n"]);
        assert_eq!(said.code, Some(1), "{}", said.all);
        says(&said.all, &["there are orders, lost"]);
    }
    for command in ["wake", "stop"] {
        let said = ask(admin, &[command, "lost"]);
        assert_eq!((said.code, &*said.stdout), (Some(1), ""), "{}", said.all);
        says(&said.all, &["lost is configured and not served", "in use"]);
    }
    says(&told(admin, &["explain", "lost"]), &["lost is unavailable", "in use", "does not serve"]);
    assert!(agent.stop(Signal::SIGTERM, LIMIT).unwrap().success());
}

/// Longer than the path of a unix socket can be.
#[test]
fn a_long_state_directory_is_as_good_as_a_short_one() {
    if !privilege::require_root("containers") || !privilege::require_tools(&["runc"]) {
        return;
    }
    let functions =
        ["oci", RUNTIME].map(|runtime| (runtime, fixture::function("plain", runtime, "").unwrap()));
    let files = Scratch::new("agent").unwrap();
    let (admin, state) = (free_port().unwrap(), files.path().join("s".repeat(120)));
    let mut text = format!("[agent]\nadmin = \"{admin}\"\nstate_dir = {state:?}\n\n");
    functions.iter().for_each(|(name, function)| text += &function.text(name, &[]));
    let mut agent = cli::run(&files, &text).unwrap();
    agent.wait_line("headstart is up", LIMIT).unwrap();
    for (name, function) in &functions {
        assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().body, fixture::ALIVE);
        told(admin, &["stop", name]);
    }
    let said = headstart(&["reload", "--admin", state.join("admin.sock").to_str().unwrap()]).unwrap();
    assert_eq!(said.code, Some(0), "{}", said.all);
    assert!(agent.stop(Signal::SIGTERM, LIMIT).unwrap().success());
}

#[test]
fn explain_tells_of_a_function_that_cannot_start_when_it_is_tried_again() {
    let Some((agent, _function)) = serving("exit", "retry_max = \"1h\"\nqueue_timeout = \"100ms\"") else {
        return;
    };
    // Each failure doubles the pause: one that is long enough to be looked at comes soon.
    let failed = |function: &Value| function["retry_in_seconds"].as_f64().is_some_and(|left| left > 2.0);
    let text = cli::eventually("a pause of some seconds", LIMIT, || {
        told(agent.admin(), &["wake", "orders"]);
        let functions = agent.functions()?;
        Ok(failed(&functions[0]).then(|| told(agent.admin(), &["explain", "orders"])))
    })
    .unwrap();
    says(
        &text,
        &[
            "orders (",
            "is failed: it fails to start, also after `start_attempts` attempts in a row",
            "is answered by the agent (http-503)",
            "The last error: instance ended before it was ready: exit code 3",
        ],
    );
    says(&text, &["asked for by api): failed"]);
    says(&told(agent.admin(), &["wake", "orders"]), &["its starts fail", "wake it again in "]);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn status_watch_prints_again_and_again_until_it_is_interrupted() {
    let Some((agent, function)) = serving("plain", "") else { return };
    function.rest(&agent, "orders").unwrap();
    let watch = |more: &[&str]| {
        let admin = agent.admin().to_string();
        // The parent of the tests may ignore SIGINT, and children inherit that.
        let mut command = Command::new("env");
        command.arg("--default-signal").arg(binary().unwrap());
        ChildProcess::spawn(command.args(["status", "--watch", "--admin", &admin]).args(more)).unwrap()
    };
    let (mut table, mut json) = (watch(&[]), watch(&["--json"]));
    let count = |process: &ChildProcess, word: &str| process.stdout().matches(word).count();
    cli::eventually("two tables and two documents", LIMIT, || {
        Ok((count(&table, "FUNCTION") >= 2 && json.stdout().lines().count() >= 2).then_some(()))
    })
    .unwrap();
    assert!(!table.stdout().contains('\x1b'), "no terminal reads it: {:?}", table.stdout());
    told(agent.admin(), &["wake", "orders"]);
    table.wait_line("ready", LIMIT).unwrap();
    json.wait_line("\"ready\"", LIMIT).unwrap();
    for line in json.stdout().lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()[0]["name"], "orders", "{line}");
    }
    for process in [&mut table, &mut json] {
        process.stop(Signal::SIGINT, LIMIT).unwrap();
    }
    assert!(agent.stop().unwrap().success());
}

#[test]
fn status_watch_clears_a_terminal_and_ends_with_its_reader() {
    let Some((agent, _function)) = serving("plain", "") else { return };
    let program = binary().unwrap().display().to_string();
    let command = format!("{program} status --watch --admin {}", agent.admin());
    // script(1) gives it a terminal.
    let mut terminal =
        ChildProcess::spawn(Command::new("script").args(["-qefc", &command, "/dev/null"])).unwrap();
    cli::eventually("a second table", LIMIT, || {
        Ok((terminal.stdout().matches("\x1b[H\x1b[JFUNCTION").count() >= 2).then_some(()))
    })
    .unwrap();
    terminal.stop(Signal::SIGTERM, LIMIT).unwrap();

    let pipe = format!("set -o pipefail; {command} | head -n 1");
    let mut piped = ChildProcess::spawn(Command::new("bash").args(["-c", &pipe])).unwrap();
    assert!(piped.wait(LIMIT).unwrap().success(), "{}", piped.log());
    assert!(piped.log().starts_with("FUNCTION"), "{}", piped.log());
    assert!(agent.stop().unwrap().success());
}

#[test]
fn check_names_a_program_of_the_agent_that_a_contract_needs() {
    if !privilege::require_root("namespaces") {
        return;
    }
    let files = Scratch::new("contract").unwrap();
    let config = files.path().join("headstart.toml");
    for (contract, lack) in [
        ("headstart", None),
        ("port", Some("/nowhere/init")),
        ("listen-fds", Some("/nowhere/init")),
        ("lambda", Some("/nowhere/headstart-lambda")),
    ] {
        let text = format!(
            "[agent]\ninit = \"/nowhere/init\"\n\n[[function]]\nname = \"web\"\nlisten = \"0.0.0.0:8081\"\n\
             runtime = \"process\"\ncommand = [\"/bin/true\"]\ncontract = \"{contract}\"\n"
        );
        fs::write(&config, text).unwrap();
        let said = headstart(&["check", "--config", &config.display().to_string()]).unwrap();
        let Some(program) = lack else {
            assert_eq!(said.code, Some(0), "{}", said.all);
            continue;
        };
        let line = format!("{}:9: ", config.display());
        let found = said
            .all
            .lines()
            .any(|said| said.starts_with(&line) && said.contains(program) && said.contains("install"));
        assert!(said.code == Some(2) && found, "{contract}: {}", said.all);
    }
}
