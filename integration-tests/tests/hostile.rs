//! What functions and readers of the log can make the agent wait for: nothing. Their neighbours notice nothing.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::stall::{MODES, StalledNode};
use headstart_integration_tests::lab::{AgentSetup, binary, cli, client, fixture, privilege};

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
