//! Whether the benches measure what they say: a delay that is known, put into one stage of a cold start after the other,
//! is found in that stage and in what the client waits, and nowhere else. Run by `make bench-smoke`.
//!
//! `hello_to_injected` is missing: what it is about, the lease, is there before the function is. A connection that is not
//! ready by then is waited for where the function asks for it, in `init`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::Duration;

use headstart_integration_tests::evidence::peers::{self, PeerPlace, PeerSetup};
use headstart_integration_tests::lab::node::newest_start;
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, STAGES, Site, TestFunction, unbounded};
use headstart_integration_tests::lab::{
    Distance, Link, Namespace, PostgresServer, PostgresSetup, Rootfs, Scratch, build_static, client,
    free_port, privilege,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// As no other function is called.
const NAME: &str = "slow-smoke";
const DELAY_MS: u64 = 80;
const ROUNDS: usize = 5;

/// What is slowed down.
#[derive(Clone, Copy, Debug, PartialEq)]
enum SlowPart {
    Nothing,
    /// The container is not there before.
    Unprepared,
    /// The agent is stopped while the SYN arrives.
    Event,
    /// The same, and its runtime takes its time.
    Runtime,
    /// The parked container is stopped while the agent releases it.
    Exec,
    /// A variable makes the function take its time.
    Function(&'static str),
    /// The pool is empty, and the server far away.
    Server,
    /// The client is far away.
    Client,
}

#[test]
fn a_known_delay_is_found_in_its_stage_and_in_the_total() {
    if !able() {
        return;
    }
    let [prepared, unprepared] = [SlowPart::Nothing, SlowPart::Unprepared].map(measure);
    let delay = f64::from(u32::try_from(DELAY_MS).unwrap());
    for (slow, stage) in [
        (SlowPart::Event, "syn_to_event"),
        (SlowPart::Runtime, "event_to_start"),
        (SlowPart::Exec, "start_to_exec"),
        (SlowPart::Function("HELLO_MS"), "exec_to_hello"),
        (SlowPart::Server, "init"),
        (SlowPart::Function("INIT_MS"), "init"),
        (SlowPart::Client, "ready_to_accept"),
        (SlowPart::Function("ANSWER_MS"), "first_response"),
    ] {
        let (stages, total) = measure(slow);
        let (nothing, nothing_total) = if slow == SlowPart::Runtime { &unprepared } else { &prepared };
        let more: Vec<Spread> =
            stages.iter().zip(nothing).map(|(with, without)| with.above(without)).collect();
        let more_total = total.above(nothing_total);
        println!("{slow:?}: {more:.1?}, total {more_total:.1?}");
        for (name, more) in STAGES.into_iter().zip(&more) {
            if name == stage {
                assert!(more.shows(delay), "{slow:?}: {more:.1?} ms more in {name}");
            } else {
                assert!(more.low < delay / 2.0, "{slow:?}: {more:.1?} ms more in {name}");
            }
        }
        // A client that is far away waits for its handshake, and for request and answer.
        let expected = if slow == SlowPart::Client { 2.0 * delay } else { delay };
        assert!(more_total.shows(expected), "{slow:?}: {more_total:.1?} ms more in all");
    }
}

/// The lowest and the middle one of some times, in milliseconds. What else the machine does only ever adds to a time, so the
/// lowest ones are compared; but a process that is stopped may have had some of its pause before the client began.
#[derive(Debug)]
struct Spread {
    low: f64,
    middle: f64,
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self { low: samples[0], middle: samples[samples.len() / 2] }
    }

    /// How far it is above the lowest time without a delay.
    fn above(&self, without: &Self) -> Self {
        Self { low: self.low - without.low, middle: self.middle - without.low }
    }

    /// Whether it is a delay of this length: there in the middle, and at most twice as long at the lowest.
    fn shows(&self, delay: f64) -> bool {
        self.middle >= delay * 0.9 && self.low < delay * 2.0
    }
}

/// The stages and what the client waits.
fn measure(slow: SlowPart) -> (Vec<Spread>, Spread) {
    let (client, server) = (Namespace::new("client").unwrap(), Namespace::new("server").unwrap());
    let (link, server_link) = (Link::connect(&client).unwrap(), Link::connect(&server).unwrap());
    let [mut client_distance, mut server_distance] = [&client, &server].map(Distance::of);
    let postgres = PostgresSetup::default().inside(&server, server_link.peer(5432)).start().unwrap();
    let files = Scratch::new("smoke").unwrap();
    let function = function(slow);
    let mut setup = unbounded().interface(link.host_if()).config(&backend(&postgres, slow));
    if slow == SlowPart::Runtime {
        let runtime = files.path().join("runc");
        let seconds = DELAY_MS as f64 / 1e3;
        let script =
            format!("#!/bin/sh\ncase \" $* \" in *' create '*) sleep {seconds};; esac\nexec runc \"$@\"\n");
        fs::write(&runtime, script).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
        setup = setup.setting("runc", &format!("{runtime:?}"));
    }
    let agent = setup.config(&function.text(NAME, &["server"])).start().unwrap();
    function.rest(&agent, NAME).unwrap();
    let delay = Duration::from_millis(DELAY_MS);
    match slow {
        SlowPart::Client => client_distance.set(delay).unwrap(),
        SlowPart::Server => server_distance.set(delay).unwrap(),
        _ => {}
    }
    let (mut stages, mut totals) = (vec![Vec::new(); STAGES.len()], Vec::new());
    for round in 0..=ROUNDS {
        let stopped = match slow {
            SlowPart::Event => Some(stop(i32::try_from(agent.id()).unwrap())),
            SlowPart::Exec => Some(stop(parked())),
            _ => None,
        };
        let reply = client.enter(|| client::get(link.host(function.port), "/", LIMIT)).unwrap();
        let reply = reply.unwrap_or_else(|failure| panic!("{failure}\n{}", agent.log()));
        stopped.into_iter().for_each(|going_on| going_on.join().unwrap());
        let start = newest_start(&agent, NAME).unwrap();
        assert_eq!(start["trigger"], "syn", "{start}");
        function.cool(&agent, NAME).unwrap();
        let complete = newest_start(&agent, NAME).unwrap();
        // The first warms caches.
        if round > 0 {
            totals.push(reply.timings.total.as_secs_f64() * 1e3);
            for (stage, name) in stages.iter_mut().zip(STAGES) {
                stage.push(
                    complete["stages"][name].as_f64().unwrap_or_else(|| panic!("{name}: {complete}")) * 1e3,
                );
            }
        }
    }
    assert!(agent.stop().unwrap().success());
    (stages.into_iter().map(Spread::of).collect(), Spread::of(totals))
}

fn function(slow: SlowPart) -> TestFunction {
    let binary = build_static("headstart-lab-functions", "slow").unwrap();
    let kind = FunctionKind::Oci(Rootfs::with_binary("slow", &binary).unwrap());
    let variable = match slow {
        SlowPart::Function(variable) => format!(", {variable} = \"{DELAY_MS}\""),
        _ => String::new(),
    };
    let keys = format!("env = {{ BACKEND = \"server\"{variable} }}\n");
    TestFunction {
        port: free_port().unwrap().port(),
        prepared: usize::from(!matches!(slow, SlowPart::Runtime | SlowPart::Unprepared)),
        kind,
        keys,
    }
}

/// A server that is only connected to, or a pool of connections to it.
fn backend(postgres: &PostgresServer, slow: SlowPart) -> String {
    let idle = if slow == SlowPart::Server { 0 } else { 2 };
    let address = postgres.address();
    format!(
        "[[backend]]\nname = \"server\"\nkind = \"tcp\"\naddress = \"{address}\"\npool = {{ min_idle = {idle}, max = 8 }}\n"
    )
}

/// The process of the function's parked container.
fn parked() -> i32 {
    let is_parked = |id: &i32| {
        let read = |what: &str| fs::read_to_string(format!("/proc/{id}/{what}")).unwrap_or_default();
        read("cgroup").contains(NAME) && read("cmdline").contains("init")
    };
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    processes.into_iter().find(is_parked).expect("it is parked")
}

/// Stops a process; after the delay it goes on.
#[expect(clippy::disallowed_methods, reason = "it is the delay that the test must find")]
fn stop(process: i32) -> thread::JoinHandle<()> {
    let process = Pid::from_raw(process);
    kill(process, Signal::SIGSTOP).unwrap();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(DELAY_MS));
        kill(process, Signal::SIGCONT).unwrap();
    })
}

#[test]
fn every_peer_that_is_here_answers_when_it_is_cold_and_when_it_is_warm() {
    if !able() || !privilege::require_tools(&["dockerd"]) {
        return;
    }
    let site = Site::with_tls().unwrap();
    let docker = std::sync::Arc::new(headstart_integration_tests::lab::DockerDaemon::bridged().unwrap());
    docker.bridge().unwrap().route(&site.database_link).unwrap();
    let mut here = 0;
    for (name, start) in peers::ALL {
        let mut peer = match start(&PeerPlace { site: &site, docker: &docker }).unwrap() {
            PeerSetup::Here(peer) => peer,
            PeerSetup::Missing(why) => {
                println!("{name}: {why}");
                continue;
            }
        };
        here += 1;
        let (address, path) = (peer.address(), peer.path());
        let lives = [(); 2].map(|()| {
            let [cold, warm] = [(); 2].map(|()| {
                let reply = site.client.enter(|| client::get(address, path, LIMIT)).unwrap();
                let reply =
                    reply.unwrap_or_else(|failure| panic!("{name}: {failure}, {:?}", peer.problems()));
                assert_eq!(reply.status, 200, "{name}: {reply:?}");
                (reply.timings.total, reply.body)
            });
            println!("{name} ({}): cold {:?}, warm {:?}", peer.version(), cold.0, warm.0);
            peer.cool().unwrap();
            assert_eq!(cold.1, warm.1, "{name}: the second answer is of the same life");
            cold.1
        });
        // The function answers with when it was born.
        match name {
            "always-warm" | "docker-unpause" => assert_eq!(lives[0], lives[1], "{name} is never cold"),
            _ if !peer.has_database() => assert_eq!(lives, ["42", "42"], "{name}"),
            _ => assert_ne!(lives[0], lives[1], "{name}: it was cold in between"),
        }
        assert_eq!(peer.problems(), Vec::<String>::new(), "{name}");
    }
    assert!(here >= 6, "only {here} peers are here");
}

fn able() -> bool {
    privilege::require_root("namespaces, eBPF programs and containers")
        && privilege::require_tools(&["ip", "iptables", "runc"])
}
