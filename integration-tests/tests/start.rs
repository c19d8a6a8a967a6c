//! `start`: what a function is confined to, what becomes of those that do not start, and what is
//! left when the agent is gone: nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use headstart_integration_tests::lab::client::{self, HttpReply};
use headstart_integration_tests::lab::leaks::{LeakWatch, Snapshot};
use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::lab::{self, AgentSetup, RunningAgent, Scratch, cli, fixture, privilege};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const RUNTIME: &str = "oci";

fn ready() -> bool {
    privilege::require_root("containers") && privilege::require_tools(&["runc"])
}

#[test]
fn a_function_is_confined() {
    if !ready() {
        return;
    }
    let function =
        fixture::function("plain", RUNTIME, "memory = \"64MiB\"\npids = 32\ncpu = \"0.5\"\ncpu_weight = 200")
            .unwrap();
    let agent = AgentSetup::default().config(&function.text("confined", &[])).start().unwrap();
    function.rest(&agent, "confined").unwrap();
    let read = |path: &str| {
        let reply = get(&function, path);
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.body
    };

    let status = read("/proc/self/status");
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {key} in {status}")).split_whitespace().collect::<Vec<_>>()
    };
    for ids in ["Uid", "Gid"] {
        assert_eq!(field(ids), ["65534"; 4], "{ids}");
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs"), ["1"]);
    assert_eq!(field("Seccomp"), ["2"], "a filter");
    assert_eq!(field("Pid"), ["1"], "a process namespace of its own");

    sockets_are_few(&function);

    let interfaces = read("/proc/net/dev");
    let names: Vec<_> = interfaces.lines().skip(2).filter_map(|line| line.split(':').next()).collect();
    assert_eq!(names.iter().map(|name| name.trim()).collect::<Vec<_>>(), ["lo"]);
    let processes = read("/proc");
    assert_eq!(processes.lines().filter(|name| name.parse::<u32>().is_ok()).count(), 1, "{processes}");
    // It reaches its /tmp, and nothing else.
    let write = |path: &str| client::request(function.local(), "PUT", path, "", LIMIT).unwrap();
    let written = write("/tmp/file");
    assert_eq!(written.status, 200, "{}: {}", written.body, read("/proc/self/mountinfo"));
    for path in ["/file", "/etc/passwd", "/hostile", "/proc/sys/kernel/hostname"] {
        let refused = write(path);
        assert_eq!(refused.status, 403, "{path}");
        let read_only = ["Read-only", "ermission", "busy"].iter().any(|why| refused.body.contains(why));
        assert!(read_only, "{path}: {}", refused.body);
    }
    let environment = read("/proc/self/environ");
    let mut names: Vec<_> =
        environment.split_terminator('\0').filter_map(|pair| pair.split('=').next()).collect();
    names.sort_unstable();
    names.retain(|name| *name != "HOME"); // runc's own
    assert_eq!(names, ["HEADSTART_CONTROL_FD", "MODE", "PATH"]);

    // The limits, as the kernel keeps them.
    let child = container_of(&agent);
    let cgroup = fs::read_to_string(format!("/proc/{child}/cgroup")).unwrap();
    assert!(cgroup.contains("/confined-"), "{cgroup}");
    assert_eq!(limit(&cgroup, "memory", ["memory.max", "memory.limit_in_bytes"]), (64 << 20).to_string());
    assert_eq!(limit(&cgroup, "pids", ["pids.max"; 2]), "32");
    let quota = limit(&cgroup, "cpu", ["cpu.max", "cpu.cfs_quota_us"]);
    assert!(["50000", "50000 100000"].contains(&&*quota), "{quota}");
    let weight = limit(&cgroup, "cpu", ["cpu.weight", "cpu.shares"]);
    assert!(["200", "2048"].contains(&&*weight), "{weight}");
    not_protected_and_without_core_files(&read("/proc/self/oom_score_adj"), &read("/proc/self/limits"));
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_process_has_a_filter_and_directories_of_its_own() {
    if !ready() {
        return;
    }
    let function = fixture::function("plain", "process", "cpu = \"0.5\"").unwrap();
    let agent = AgentSetup::default().config(&function.text("process", &[])).start().unwrap();
    function.rest(&agent, "process").unwrap();
    assert!(get(&function, "/proc/self/status").body.contains("Seccomp:\t2\n"), "a filter");
    sockets_are_few(&function);
    assert!(fs::read_dir("/run").unwrap().count() > 0);
    let read = |path: &str| get(&function, path).body;
    not_protected_and_without_core_files(&read("/proc/self/oom_score_adj"), &read("/proc/self/limits"));
    let shown = agent.functions().unwrap();
    let name = shown[0]["running"][0]["name"].as_str().unwrap();
    let own = agent.state_dir().display().to_string().trim_start_matches('/').replace('/', ":");
    let cgroup = format!("0::/headstart/{own}/{name}\n1:cpu:/headstart/{own}/{name}");
    let cgroup =
        if Path::new("/sys/fs/cgroup/cpu").exists() { &*cgroup } else { cgroup.lines().next().unwrap() };
    let quota = limit(cgroup, "cpu", ["cpu.max", "cpu.cfs_quota_us"]);
    assert!(["50000", "50000 100000"].contains(&&*quota), "{quota}");
    for directory in ["/run", "/tmp", "/var/tmp"] {
        assert_eq!(get(&function, directory).body, "", "{directory}");
    }
    let file = format!("/var/tmp/{}", lab::unique("file"));
    assert_eq!(client::request(function.local(), "PUT", &file, "", LIMIT).unwrap().status, 200);
    assert!(!Path::new(&file).exists());
    assert!(agent.stop().unwrap().success());
}

#[test]
fn each_function_has_a_user_of_its_own() {
    if !ready() {
        return;
    }
    let names = [RUNTIME, "process", RUNTIME].map(|runtime| (runtime, lab::unique("user")));
    let functions = names.map(|(runtime, name)| (name, fixture::function("plain", runtime, "").unwrap()));
    let mut setup = AgentSetup::default().setting("uids", "\"100000-165535\"");
    for (name, function) in &functions {
        setup = setup.config(&function.text(name, &[]));
    }
    let agent = setup.start().unwrap();
    let users = functions.each_ref().map(|(name, function)| {
        function.rest(&agent, name).unwrap();
        assert_eq!(client::request(function.local(), "PUT", "/tmp/file", "", LIMIT).unwrap().status, 200);
        let status = get(function, "/proc/self/status").body;
        let ids = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.split_whitespace().map(|id| id.parse::<u32>().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(ids("Uid:"), ids("Gid:"));
        let environment = get(function, "/proc/self/environ").body;
        assert!(environment.split('\0').any(|variable| variable == "HOME=/tmp"), "{environment}");
        ids("Uid:")[0]
    });
    assert!(users.iter().all(|user| (100_000..165_536).contains(user)), "{users:?}");
    assert!(users[0] != users[1] && users[1] != users[2] && users[0] != users[2], "{users:?}");

    // As the node sees them.
    let mut seen: Vec<_> = containers_of(&agent).into_iter().map(namespace_of).collect();
    seen.sort_unstable();
    let mut expected = [users[0], users[2]].map(|user| (user, vec![[0, user - 1, 1], [user, user, 1]]));
    expected.sort_unstable();
    assert_eq!(seen, expected);
    assert!(agent.stop().unwrap().success());
}

/// The kernel kills functions before it kills the agent, and nothing of their memory stays on the disk.
fn not_protected_and_without_core_files(oom_score_adj: &str, limits: &str) {
    assert!(oom_score_adj.trim().parse::<i32>().unwrap() >= 0, "{oom_score_adj}");
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert!(core.split_whitespace().take(2).all(|limit| limit == "0"), "{core}");
}

/// Those that a function needs, and none that leads out of its network namespace.
fn sockets_are_few(function: &TestFunction) {
    for family in ["unix", "inet", "inet6", "netlink"] {
        assert_eq!(get(function, &format!("/socket/{family}")).body, "opened", "{family}");
    }
    for family in ["alg", "vsock", "packet"] {
        let refused = get(function, &format!("/socket/{family}")).body;
        assert!(refused.contains("Operation not permitted"), "{family}: {refused}");
    }
}

#[test]
fn what_does_not_start_says_why_and_harms_no_other() {
    if !ready() {
        return;
    }
    let name = |kind: &str| lab::unique(kind);
    let (crash, silent, stubborn) = (name("crash"), name("silent"), name("stubborn"));
    let (no_command, no_rootfs, healthy) = (name("nocommand"), name("norootfs"), name("healthy"));
    let retry = "retry_max = \"400ms\"";
    let crashes = fixture::function("exit", RUNTIME, &format!("{retry}\nqueue_timeout = \"2s\"")).unwrap();
    let never_ready = fixture::function("silent", RUNTIME, "init_timeout = \"1s\"").unwrap();
    let ignores = fixture::function("stubborn", RUNTIME, "stop_grace = \"1s\"").unwrap();
    let (commandless, rootless) = (
        fixture::function("plain", RUNTIME, retry).unwrap(),
        fixture::function("plain", RUNTIME, retry).unwrap(),
    );
    let good = fixture::function("plain", RUNTIME, "").unwrap();
    let watch = [&crash, &silent, &stubborn, &no_command, &no_rootfs, &healthy]
        .into_iter()
        .fold(LeakWatch::default(), |watch, name| watch.name(name));
    let missing = rootless.text(&no_rootfs, &[]).replace("rootfs = \"", "rootfs = \"/nowhere");
    let agent = AgentSetup::default()
        .config(&crashes.text(&crash, &[]))
        .config(&never_ready.text(&silent, &[]))
        .config(&ignores.text(&stubborn, &[]))
        .config(&commandless.text(&no_command, &[]).replace("[\"/hostile\"]", "[\"/missing\"]"))
        .config(&missing)
        .config(&good.text(&healthy, &[]))
        .start()
        .unwrap();
    let watch = watch.runc(agent.state_dir()).name(&agent.state_dir().display().to_string());
    good.rest(&agent, &healthy).unwrap();
    assert_eq!(get(&good, "/").body, fixture::ALIVE);

    // Nothing can be prepared: the API, the log and a hint.
    let shown = wait_error(&agent, &no_rootfs);
    assert!(shown.contains("/nowhere") && shown.contains("correct `rootfs`"), "{shown}");
    agent.wait_log("correct `rootfs`", LIMIT).unwrap();

    // It crashes: said with its exit code and its last words, and tried again ever more slowly.
    ignores.rest(&agent, &stubborn).unwrap();
    crashes.rest(&agent, &crash).unwrap();
    let waiting = client_that_waits(&crashes);
    agent.wait_log("there is nothing to do here", LIMIT).unwrap();
    let line = agent.wait_log("exit code 3", LIMIT).unwrap();
    assert!(line.contains(&crash) && line.contains("WARN"), "{line}");
    let failed = |count: usize| {
        cli::eventually("failed starts", LIMIT, || {
            let starts = agent.starts()?;
            let own: Vec<_> = starts
                .as_array()
                .into_iter()
                .flatten()
                .filter(|start| start["function"] == *crash)
                .cloned()
                .collect();
            Ok((own.len() >= count).then_some(own))
        })
        .unwrap()
    };
    let starts = failed(3);
    assert!(starts.iter().all(|start| start["outcome"] == "failed"), "{starts:?}");
    let began: Vec<u64> =
        starts.iter().map(|start| start["start_ns"].as_u64().unwrap() / 1_000_000).collect();
    let pauses: Vec<u64> = began.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (pause, least) in pauses.iter().zip([100, 200]) {
        assert!(*pause >= least, "pauses of {pauses:?} ms");
    }
    // Then it is left alone, and clients that wait get an answer that says so.
    let said = told(waiting);
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("\r\nRetry-After: "), "{said}");
    assert!(said.ends_with("\r\n\r\nthe function fails to start\n"), "{said}");
    // On a slow machine its time was up before the last attempt was.
    cli::eventually("a cool-down", LIMIT, || {
        let shown = agent.functions()?;
        let own = shown.as_array().into_iter().flatten().find(|function| function["name"] == *crash);
        let pause = own.and_then(|own| own["retry_in_seconds"].as_f64());
        if pause.is_some_and(|pause| pause > 1.0) {
            return Ok(Some(()));
        }
        told(client_that_waits(&crashes));
        Ok(None)
    })
    .unwrap();
    let attempts = failed(3).len();
    assert!(told(client_that_waits(&crashes)).starts_with("HTTP/1.1 503 "), "also who comes later, at once");
    assert_eq!(failed(3).len(), attempts);

    // It lives but is never ready: ended at its deadline.
    never_ready.rest(&agent, &silent).unwrap();
    let before = Instant::now();
    wake(&agent, &silent);
    never_ready.rest(&agent, &silent).unwrap();
    assert!(before.elapsed() >= Duration::from_secs(1), "{:?}", before.elapsed());
    let silence = newest(&agent, &silent);
    assert_eq!((&silence["outcome"], &silence["ready_ns"]), (&"failed".into(), &Value::Null), "{silence}");

    // It does not listen to SIGTERM: killed after the grace period.
    assert_eq!(get(&ignores, "/").status, 200);
    let before = Instant::now();
    ignores.cool(&agent, &stubborn).unwrap();
    assert!(before.elapsed() >= Duration::from_secs(1), "{:?}", before.elapsed());
    let line = agent.wait_log("did not stop in time: killed", LIMIT).unwrap();
    assert!(line.contains("WARN"), "{line}");

    // The command is not there: runc notices when the agent releases the function, or before.
    let waiting = client_that_waits(&commandless);
    let said = agent.wait_log("/missing", LIMIT).unwrap();
    assert!(said.contains(&no_command), "{said}");
    let shown = wait_error(&agent, &no_command);
    assert!(shown.contains("/missing") && shown.contains("correct `command`"), "{shown}");
    drop(waiting);

    // A function that fails to start delays no other, and is not retried in a tight loop.
    good.cool(&agent, &healthy).unwrap();
    assert_eq!(get(&good, "/").body, fixture::ALIVE);
    assert!(failed(1).len() < 40, "{} starts", failed(1).len());

    let instances = watch.snapshot().unwrap();
    assert!(!instances.beyond(&Snapshot::default()).is_empty(), "there is something to remove");
    end(&agent);
    assert_eq!(watch.leaked_since(&Snapshot::default(), LIMIT).unwrap(), Vec::<String>::new());
    assert!(agent.stop().unwrap().success());
}

#[test]
fn without_runc_the_agent_says_what_to_install() {
    if !ready() {
        return;
    }
    let function = fixture::function("plain", RUNTIME, "retry_max = \"400ms\"").unwrap();
    let setup = AgentSetup::default().setting("runc", "\"/nonexistent\"");
    let agent = setup.config(&function.text("norunc", &[])).start_unready().unwrap();
    let shown = wait_error(&agent, "norunc");
    assert!(shown.contains("/nonexistent") && shown.contains("apt install runc"), "{shown}");
    let line = agent.wait_log("apt install runc", LIMIT).unwrap();
    assert!(line.contains("ERROR") && line.contains("reason=\"runtime_missing\""), "{line}");
    // Tried again and again, with growing pauses.
    let prepares = || {
        let labels = [("function", "norunc"), ("action", "prepare")];
        agent.metrics().unwrap().sum("headstart_decisions_total", &labels)
    };
    let (begin, first) = (Instant::now(), prepares());
    cli::eventually("two more attempts", LIMIT, || Ok((prepares() >= first + 2.0).then_some(()))).unwrap();
    let most = 4.0 + begin.elapsed().as_secs_f64() / 0.1;
    assert!(prepares() <= most, "{} attempts in {:?}", prepares(), begin.elapsed());
    assert_eq!(agent.functions().unwrap()[0]["prepared"], 0);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn the_next_agent_sweeps_the_containers_of_a_killed_one() {
    killed("oci");
}

#[test]
fn the_next_agent_sweeps_the_processes_of_a_killed_one() {
    killed("process");
}

fn killed(runtime: &str) {
    if !ready() {
        return;
    }
    let (name, idle) = (lab::unique("running"), lab::unique("parked"));
    let running = fixture::function("plain", runtime, "").unwrap();
    let parked = fixture::function("plain", runtime, "").unwrap();
    let setup = AgentSetup::default().config(&running.text(&name, &[])).config(&parked.text(&idle, &[]));
    let killed = setup.start().unwrap();
    let watch = LeakWatch::default().name(&name).name(&idle).runc(killed.state_dir());
    let watch = watch.name(&killed.state_dir().display().to_string());
    running.rest(&killed, &name).unwrap();
    parked.rest(&killed, &idle).unwrap();
    assert_eq!(get(&running, "/").body, fixture::ALIVE);
    killed
        .wait_function(&name, "ready, with another parked", LIMIT, |function| {
            function["state"] == "ready" && function["prepared"] == 1
        })
        .unwrap();
    signal(&killed, Signal::SIGKILL);
    let left = watch.snapshot().unwrap();
    assert!(!cgroups(&left).is_empty(), "a running instance at least: {left:?}");

    // The same configuration file, so the same state directory, ports and admin address.
    let config = killed.config().display().to_string();
    let mut next = lab::ChildProcess::spawn(
        std::process::Command::new(lab::binary().unwrap()).args(["run", "--config", &config]),
    )
    .unwrap();
    let swept = next.wait_line("removed what an earlier agent left", LIMIT).unwrap();
    assert!(swept.contains("swept="), "{swept}");
    let ready = cli::eventually("the next agent is ready", LIMIT / 3, || {
        let reply = client::get(killed.admin(), "/readyz", LIMIT)?;
        anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
        Ok(Some(()))
    });
    ready.unwrap_or_else(|error| panic!("{error:#}\n{}", next.log()));
    for function in [&running, &parked] {
        assert_eq!(get(function, "/").body, fixture::ALIVE);
    }
    // What is there now is the next agent's own.
    let kept = cgroups(&watch.snapshot().unwrap());
    let both: Vec<_> = cgroups(&left).into_iter().filter(|item| kept.contains(item)).collect();
    assert_eq!(both, Vec::<String>::new());
    assert!(next.stop(Signal::SIGTERM, LIMIT).unwrap().success());
    assert_eq!(watch.leaked_since(&Snapshot::default(), LIMIT).unwrap(), Vec::<String>::new());
}

/// The service manager removes the state directory when the unit has failed.
#[test]
fn the_next_agent_ends_instances_whose_files_are_gone() {
    if !ready() {
        return;
    }
    for runtime in ["oci", "process"] {
        let name = lab::unique("orphan");
        let function = fixture::function("plain", runtime, "").unwrap();
        let agent = AgentSetup::default().config(&function.text(&name, &[])).start().unwrap();
        let watch = LeakWatch::default().name(&name).runc(agent.state_dir());
        assert_eq!(get(&function, "/").body, fixture::ALIVE);
        let state_dir = agent.state_dir().to_owned();
        let killed = agent.kill().unwrap();
        let orphans = cgroups(&watch.snapshot().unwrap());
        fs::remove_dir_all(&state_dir).unwrap();
        // It still has the port.
        assert_eq!(get(&function, "/").body, fixture::ALIVE);
        let next = killed.start().unwrap();
        next.wait_log("removed what an earlier agent left", LIMIT).unwrap();
        assert_eq!(get(&function, "/").body, fixture::ALIVE);
        let now = cgroups(&watch.snapshot().unwrap());
        assert!(orphans.iter().all(|orphan| !now.contains(orphan)), "{orphans:?}\n{now:?}");
        // `uninstall` finds them, too.
        let killed = next.kill().unwrap();
        fs::remove_dir_all(&state_dir).unwrap();
        killed.uninstall().unwrap();
        assert_eq!(watch.leaked_since(&Snapshot::default(), LIMIT).unwrap(), Vec::<String>::new());
    }
}

#[test]
fn containers_of_a_function_that_is_no_longer_configured_are_swept_too() {
    if !ready() {
        return;
    }
    let name = lab::unique("dropped");
    let function = fixture::function("plain", RUNTIME, "").unwrap();
    let killed = AgentSetup::default().config(&function.text(&name, &[])).start().unwrap();
    let watch = LeakWatch::default().name(&name).runc(killed.state_dir());
    function.rest(&killed, &name).unwrap();
    signal(&killed, Signal::SIGKILL);
    assert!(!cgroups(&watch.snapshot().unwrap()).is_empty());

    let text = fs::read_to_string(killed.config()).unwrap();
    let (agent, _) = text.split_once("[[function]]").unwrap();
    let files = Scratch::new("next").unwrap();
    let mut next = cli::run(&files, agent).unwrap();
    next.wait_line("headstart is up", LIMIT).unwrap();
    let left = watch.leaked_since(&Snapshot::default(), LIMIT / 6).unwrap();
    assert_eq!(left, Vec::<String>::new());
    assert!(next.stop(Signal::SIGTERM, LIMIT).unwrap().success());
}

/// The cgroups in a snapshot: each instance has one in every hierarchy, under its own name.
fn cgroups(snapshot: &Snapshot) -> Vec<String> {
    snapshot.beyond(&Snapshot::default()).into_iter().filter(|item| item.starts_with("cgroup")).collect()
}

fn get(function: &TestFunction, path: &str) -> HttpReply {
    client::get(function.local(), path, LIMIT).unwrap()
}

fn wake(agent: &RunningAgent, name: &str) {
    let reply = agent.ask("POST", &format!("/api/v1/functions/{name}/wake")).unwrap();
    assert_eq!(reply.status, 202, "{}", reply.body);
}

/// Connects and says nothing: demand for as long as it is kept.
fn client_that_waits(function: &TestFunction) -> std::net::TcpStream {
    std::net::TcpStream::connect_timeout(&function.local(), LIMIT).unwrap()
}

/// What a client is told that asks for nothing special.
fn told(mut client: std::net::TcpStream) -> String {
    use std::io::{Read as _, Write as _};
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    text
}

/// What the API shows as the function's last error, once there is one.
fn wait_error(agent: &RunningAgent, name: &str) -> String {
    let shown =
        agent.wait_function(name, "in error", LIMIT / 3, |function| !function["last_error"].is_null());
    shown.unwrap()["last_error"].as_str().unwrap().to_owned()
}

/// The newest timeline of a function.
fn newest(agent: &RunningAgent, name: &str) -> Value {
    let starts = agent.starts().unwrap();
    starts.as_array().unwrap().iter().rfind(|start| start["function"] == name).unwrap().clone()
}

/// Asks the agent to end and waits for its last line; its files stay until it is dropped.
fn end(agent: &RunningAgent) {
    signal(agent, Signal::SIGTERM);
    agent.wait_log(": stopped", LIMIT).unwrap();
}

fn signal(agent: &RunningAgent, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), signal).unwrap();
    if signal == Signal::SIGKILL {
        let status = format!("/proc/{}/status", agent.id());
        cli::eventually("its end", LIMIT, || {
            let text = fs::read_to_string(&status).unwrap_or_default();
            // What it had open is closed when its last thread has ended.
            let threads = fs::read_dir(format!("/proc/{}/task", agent.id())).map_or(0, Iterator::count);
            Ok((text.is_empty() || (text.contains("State:\tZ") && threads <= 1)).then_some(()))
        })
        .unwrap();
    }
}

/// The one child of the agent that runs the fixture, and is not a parked container.
fn container_of(agent: &RunningAgent) -> u32 {
    containers_of(agent)[0]
}

fn containers_of(agent: &RunningAgent) -> Vec<u32> {
    let id = agent.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let running = children.split_whitespace().filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim() == "hostile"
    });
    running.map(|pid| pid.parse().unwrap()).collect()
}

/// The user of a process, and those of its user namespace: first inside, first outside, and how many.
fn namespace_of(pid: u32) -> (u32, Vec<[u32; 3]>) {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let numbers =
        |text: &str| text.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<u32>>();
    let status = read("status");
    let user = numbers(status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap())[0];
    let users: Vec<_> = read("uid_map").lines().map(|line| numbers(line).try_into().unwrap()).collect();
    let groups: Vec<[u32; 3]> =
        read("gid_map").lines().map(|line| numbers(line).try_into().unwrap()).collect();
    assert_eq!(users, groups);
    (user, users)
}

/// A limit of the cgroup in `text`, which is a `/proc/PID/cgroup`: in version 2 or 1.
fn limit(text: &str, controller: &str, [v2, v1]: [&str; 2]) -> String {
    let line = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            controllers.split(',').any(|name| name == wanted).then(|| parts.next())?
        })
    };
    let top = Path::new("/sys/fs/cgroup");
    let file = match line(controller) {
        Some(path) => top.join(controller).join(path.trim_start_matches('/')).join(v1),
        None => top.join(line("").unwrap().trim_start_matches('/')).join(v2),
    };
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
}
