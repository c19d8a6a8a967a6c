//! What functions and readers of the log can make the agent wait for: nothing. Their neighbours notice nothing.

use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::lab::stall::{MODES, StalledNode};
use headstart_integration_tests::lab::{AgentSetup, Manager, binary, cli, client, fixture, privilege};
use nix::errno::Errno;

const RUNTIME: &str = "oci";

/// Of two bytes: more than a pipe holds, and than the agent takes of one function at once.
const LINES: usize = 200_000;

/// Far more than anything takes on a machine that is busy itself; `make bench` measures how long it takes.
const LONGEST: Duration = Duration::from_secs(5);

fn ready() -> bool {
    privilege::require_root("containers") && privilege::require_tools(&["runc"])
}

/// An agent whose log the test reads itself. Ended on drop.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_log_reader_that_pauses_holds_up_nobody_and_no_function_fills_or_forges_the_log() {
    if !ready() {
        return;
    }
    let [talks, neighbour] = [(); 2].map(|()| fixture::function("plain", RUNTIME, "").unwrap());
    let setup =
        AgentSetup::default().config(&talks.text("talks", &[])).config(&neighbour.text("neighbour", &[]));
    // For its configuration.
    let agent = setup.start().unwrap();
    let (config, admin) = (agent.config().to_owned(), agent.admin());
    let stopped = agent.halt().unwrap();
    let mut command = Command::new(binary().unwrap());
    command.args(["run", "--unpin", "--config"]).arg(config).stderr(Stdio::piped());
    let mut agent = Agent(command.spawn().unwrap());
    let unread = agent.0.stderr.take().unwrap();
    let asked = |what: &str, path: &str| {
        let ok = || Ok(client::get(admin, path, LIMIT).is_ok_and(|reply| reply.status == 200).then_some(()));
        cli::eventually(what, LIMIT, ok).unwrap();
    };
    asked("ready", "/readyz");

    // It prints from many threads, because one that has printed its share has to wait.
    for _ in 0..4 {
        let path = format!("/print/{LINES}");
        assert_eq!(client::get(talks.local(), &path, LIMIT).unwrap().body, "done");
    }
    let left_out = || {
        let metrics = client::get(admin, "/metrics", LIMIT)?.body;
        let count = metrics.lines().find_map(|line| {
            line.strip_prefix("headstart_log_lines_left_out_total{of=\"functions\"} ")?.parse::<f64>().ok()
        });
        Ok(count.filter(|count| *count > 10_000.0))
    };
    cli::eventually("the agent counts what it leaves out", LIMIT, left_out).unwrap();
    assert_eq!(client::get(neighbour.local(), "/", LIMIT).unwrap().body, fixture::ALIVE);
    asked("alive", "/healthz");

    // The reader goes on, and the agent ends.
    let reading =
        std::thread::spawn(move || BufReader::new(unread).lines().collect::<Result<Vec<_>, _>>().unwrap());
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(agent.0.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert!(agent.0.wait().unwrap().success());
    let lines = reading.join().unwrap();
    let count = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    let printed = count("function: x ");
    assert!(printed > 100 && printed < LINES / 20, "{printed}");
    assert!(count("lines left out") > 0 && count("instance: ready") == 2 && count(": stopped") == 1);
    assert_eq!(count("forged"), lines.iter().filter(|line| line.contains("function: x\\r2026-")).count());
    assert!(count("forged") > 0);
    assert!(!lines.iter().any(|line| line.contains(['\r', '\0', '\u{1b}'])));
    drop(stopped);
}

#[test]
fn a_function_that_keeps_the_agent_busy_makes_no_neighbour_wait() {
    if !ready() {
        return;
    }
    let node = StalledNode::new().unwrap();
    for (mode, _) in MODES {
        for waits in node.block(Some(mode), 3).unwrap() {
            let longest = waits.healthz.max(waits.cold).max(waits.wake);
            assert!(longest < LONGEST, "{mode}: {waits:?}\n{}", node.agent.log());
        }
    }
    let log = node.agent.log();
    let count =
        |of: &str, what: &str| log.lines().filter(|line| line.contains(of) && line.contains(what)).count();
    for (of, what, times) in [
        ("printer", "lines left out", 1),
        ("asker", "connection handed over", 50),
        ("blocker", "clients answered", 1),
        ("ender", "was ended by an instance", 1),
    ] {
        assert!(count(of, what) >= times, "{of} was under way: {what}, {}", count(of, what));
    }
    assert!(node.agent.stop().unwrap().success());
}

/// They are of the node's network. Also while no agent runs, and under the next one.
#[test]
fn the_sockets_that_functions_hold_lead_nowhere_else() {
    if !ready() {
        return;
    }
    let [secret, server] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    secret.set_nonblocking(true).unwrap();
    let backend = format!(
        "[[backend]]\nname = \"db\"\nkind = \"tcp\"\naddress = \"{}\"\npool = {{ min_idle = 1, max = 4 }}\n",
        server.local_addr().unwrap()
    );
    // Nothing else is being made when the agent is killed.
    let function = |runtime| TestFunction { prepared: 0, ..fixture::function("plain", runtime, "").unwrap() };
    let functions = ["oci", "process"].map(|runtime| (runtime, function(runtime)));
    let manager = Manager::new().unwrap();
    let mut setup = AgentSetup::default().pinned().manager(&manager).config(&backend);
    for (name, function) in &functions {
        setup = setup.config(&function.text(name, &["db"]));
    }
    let try_all = |when: &str| {
        for (name, function) in &functions {
            let ask = |path: &str| client::get(function.local(), path, LIMIT).unwrap().body;
            assert_eq!(ask("/keep"), "kept", "{name} {when}");
            let said = ask(&format!("/elsewhere/{}", secret.local_addr().unwrap()));
            let refused = [(); 3].map(|()| Errno::EPERM.to_string()).join(", ");
            assert!(
                said.lines().count() >= 2 && said.lines().all(|line| line == refused),
                "{name} {when}:\n{said}"
            );
            assert_eq!(ask("/"), fixture::ALIVE, "{name} {when}");
        }
        assert_eq!(secret.accept().map(drop).unwrap_err().kind(), ErrorKind::WouldBlock, "{when}");
    };
    let agent = setup.start().unwrap();
    try_all("under the agent that started it");
    // Listener, control socket and page of each.
    let stored = || Ok((manager.stored()?.len() == 3 * functions.len()).then_some(()));
    cli::eventually("the manager has all of it", LIMIT, stored).unwrap();
    let killed = agent.kill().unwrap();
    try_all("without an agent");
    let agent = killed.start().unwrap();
    let adopted = |function: &serde_json::Value| function["running"][0]["reason"] == "adopted";
    for (name, _) in &functions {
        agent.wait_function(name, "taken over", LIMIT, adopted).unwrap();
    }
    // The connections that the agent makes are its own business.
    agent.wait_idle("db", 1, LIMIT).unwrap();
    try_all("under the next agent");
    assert!(agent.stop().unwrap().success());
}

/// What it says of its connections does not matter: the places are taken as long as the connections exist.
#[test]
fn a_function_that_keeps_what_it_returns_gets_no_more_than_its_share() {
    if !ready() {
        return;
    }
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = |limits: &str| {
        format!(
            "[[backend]]\nname = \"db\"\nkind = \"tcp\"\naddress = \"{}\"\n\
             pool = {{ min_idle = 0, wait = \"100ms\", {limits} }}\n",
            server.local_addr().unwrap()
        )
    };
    for (limits, said) in [
        ("max = 4", "refused after 4"),
        ("max = 8, max_per_function = 5", "refused after 5"),
        ("max = 100", "the instance holds 64 backend connections already"),
    ] {
        let hoarder = fixture::function("hoarder", "process", "").unwrap();
        let setup = AgentSetup::default().config(&backend(limits)).config(&hoarder.text("hoarder", &["db"]));
        let agent = setup.start().unwrap();
        agent.operate("hoarder", "wake").unwrap();
        agent.wait_log(said, LIMIT).unwrap();
        agent.operate("hoarder", "stop").unwrap();
        let leased = || {
            let places = [("backend", "db"), ("state", "leased")];
            Ok((agent.metrics()?.sum("headstart_pool_connections", &places) == 0.0).then_some(()))
        };
        cli::eventually("they exist no longer", LIMIT, leased).unwrap();
        assert!(agent.stop().unwrap().success());
    }
}
