//! The agent is killed and started again while clients keep coming: clients notice no more than a delay.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use headstart_integration_tests::lab::node::TestNode;
use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{
    AgentSetup, Manager, RunningAgent, cli, client, fixture, now_ns, privilege,
};
use nix::poll::poll;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const FUNCTIONS: usize = 30;
const REQUESTS: usize = 200;
const EVERY: Duration = Duration::from_millis(50);
/// After so many requests the agent is killed.
const KILLED_AFTER: usize = 80;
/// From the moment when the next agent is up to its first early start.
const RESUMED_WITHIN: Duration = Duration::from_secs(1);

/// What became of a request.
struct Request {
    function: usize,
    done_ns: u64,
    outcome: Result<u16, String>,
}

#[test]
fn a_killed_agent_loses_no_request_and_the_next_one_starts_early() {
    let Some(node) = TestNode::new().unwrap() else { return };
    let manager = Manager::new().unwrap();
    let mut setup = node.watching().lookup(true).pinned().manager(&manager);
    let functions: Vec<_> = (0..FUNCTIONS)
        .map(|number| (format!("f{number}"), fixture::function("plain", "oci", "").unwrap()))
        .collect();
    for (name, function) in &functions {
        setup = setup.config(&function.text(name, &[]));
    }
    let first = setup.start().unwrap();
    for (name, function) in &functions {
        function.rest(&first, name).unwrap();
    }
    assert!(manager.stored().unwrap().len() >= FUNCTIONS, "it stores its listeners");

    let ports: Vec<_> = functions.iter().map(|(_, function)| function.port).collect();
    let trickle = Trickle {
        node: &node,
        ports,
        socket: first.admin_socket(),
        done: Mutex::default(),
        sent: Mutex::default(),
    };
    let (before, killed_ns, next, up_ns) = thread::scope(|scope| {
        scope.spawn(|| trickle.run());
        trickle.wait_sent(KILLED_AFTER);
        let before = cold_starts(&first);
        let killed_ns = now_ns().unwrap();
        let killed = first.kill().unwrap();
        // A client connects while there is no agent.
        let sent = *trickle.sent.lock().unwrap();
        trickle.wait_sent(sent + 1);
        let next = killed.start().unwrap();
        (before, killed_ns, next, now_ns().unwrap())
    });

    let requests = trickle.done.into_inner().unwrap();
    assert_eq!(requests.len(), REQUESTS);
    let lost: Vec<_> = requests.iter().filter(|request| request.outcome != Ok(200)).collect();
    let said = |request: &&Request| format!("f{}: {:?}", request.function, request.outcome);
    assert!(lost.is_empty(), "{:?}\n{}", lost.iter().map(said).collect::<Vec<_>>(), next.log());

    resumed(&next, up_ns);
    let after = cold_starts(&next);
    for (number, (name, _)) in functions.iter().enumerate() {
        let asked =
            requests.iter().filter(|request| request.function == number && request.done_ns >= killed_ns);
        let (asked, started) = (asked.count(), after[number]);
        assert!(started <= asked as f64, "{name} was started {started} times for {asked} requests");
    }
    let cold = before.iter().chain(&after).sum::<f64>();
    println!("{cold} cold starts of {REQUESTS} requests");
    assert!(cold >= REQUESTS as f64 * 0.75, "only {cold} of the requests were cold");
    let stale = next.metrics().unwrap().sum("headstart_syn_lost_total", &[("reason", "stale")]);
    assert!(stale >= 1.0, "what the kernel saw while there was no agent is recognised");
    assert!(next.stop().unwrap().success());
}

/// A stopped process stands for a loop that hangs.
#[test]
#[expect(clippy::disallowed_methods, reason = "that nothing is heard shows in a span of time only")]
fn the_watchdog_hears_an_agent_that_runs_and_not_one_that_hangs() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    if !privilege::require_root("containers") || !privilege::require_tools(&["runc"]) {
        return;
    }
    let manager = Manager::new().unwrap();
    let micros = TIMEOUT.as_micros().to_string();
    let setup = AgentSetup::default().manager(&manager).variable("WATCHDOG_USEC", &micros);
    let agent = setup.start().unwrap();
    let pings = || manager.heard("WATCHDOG=1").unwrap();
    let hears_more = || {
        let (before, deadline) = (pings(), Instant::now() + LIMIT);
        while pings() < before + 3 {
            assert!(Instant::now() < deadline, "no pings:\n{}", agent.log());
            thread::sleep(TIMEOUT / 10);
        }
    };
    hears_more();
    let signal = |signal| kill(Pid::from_raw(agent.id().cast_signed()), signal).unwrap();
    signal(Signal::SIGSTOP);
    thread::sleep(TIMEOUT);
    let before = pings();
    thread::sleep(2 * TIMEOUT);
    let after = pings();
    signal(Signal::SIGCONT);
    assert_eq!(before, after);
    hears_more();
    assert!(agent.stop().unwrap().success());
}

/// The first early start of this agent came in time.
fn resumed(agent: &RunningAgent, up_ns: u64) {
    let starts = agent.starts().unwrap();
    let early = starts.as_array().unwrap().iter().filter(|start| start["trigger"] == "syn");
    let first_ns = early.filter_map(|start| start["start_ns"].as_u64()).min();
    let first_ns = first_ns.unwrap_or_else(|| panic!("no early starts: {starts}\n{}", agent.log()));
    let after_start = Duration::from_nanos(first_ns - agent.started_ns());
    let after_up = Duration::from_nanos(first_ns.saturating_sub(up_ns));
    println!(
        "the first early start came {after_start:?} after the next agent's start, {after_up:?} after it was up"
    );
    assert!(after_up <= RESUMED_WITHIN, "early starts resumed after {after_up:?}");
}

/// Cold starts by function, whatever their trigger and outcome.
fn cold_starts(agent: &RunningAgent) -> Vec<f64> {
    let metrics = agent.metrics().unwrap();
    let of = |number| metrics.sum("headstart_coldstarts_total", &[("function", &*format!("f{number}"))]);
    (0..FUNCTIONS).map(of).collect()
}

/// Clients that come one after another, at a steady pace, whatever becomes of those before them.
struct Trickle<'a> {
    node: &'a TestNode,
    ports: Vec<u16>,
    socket: PathBuf,
    done: Mutex<Vec<Request>>,
    sent: Mutex<usize>,
}

impl Trickle<'_> {
    fn run(&self) {
        let begin = Instant::now();
        thread::scope(|scope| {
            for number in 0..REQUESTS {
                let due = begin + EVERY * u32::try_from(number).unwrap();
                while let left @ 1.. = due.saturating_duration_since(Instant::now()).as_millis() {
                    poll(&mut [], u8::try_from(left).unwrap()).unwrap();
                }
                scope.spawn(move || self.ask(number % self.ports.len()));
                *self.sent.lock().unwrap() += 1;
            }
        });
    }

    /// One request; then the function is stopped, so that the next request to it is a cold one again.
    fn ask(&self, function: usize) {
        let target = self.node.link.host(self.ports[function]);
        let reply = self.node.client.enter(|| client::get(target, "/", LIMIT)).unwrap();
        let outcome = reply.map(|reply| reply.status).map_err(|failure| failure.to_string());
        self.done.lock().unwrap().push(Request { function, done_ns: now_ns().unwrap(), outcome });
        let path = format!("/api/v1/functions/f{function}/stop");
        // While there is no agent it cannot be asked; then the next request finds the function warm.
        let _answer = client::request_at(&self.socket, "POST", &path, LIMIT);
    }

    fn wait_sent(&self, number: usize) {
        let sent = || Ok((*self.sent.lock().unwrap() >= number).then_some(()));
        cli::eventually("requests are sent", LIMIT, sent).unwrap();
    }
}
