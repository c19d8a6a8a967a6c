//! The agent as its unit runs it, on a distribution with its own systemd and cgroup v2. `make test-vm` boots one and runs
//! these there, one after another; elsewhere they are skipped.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use headstart_integration_tests::lab::client::{self, HttpReply};
use nix::errno::Errno;

use headstart_integration_tests::lab::{Scratch, binary, build_static, cli, run_within};

/// Everything is emulated, and some ten times slower than elsewhere.
const LIMIT: Duration = Duration::from_secs(90);
const CONFIG: &str = "/etc/headstart/headstart.toml";
const FILES: &str = "/var/lib/headstart";
/// Makes the interface that is watched, with a client beyond it.
const LINK: &str = "ip link show hs0 >/dev/null 2>&1 && exit
    ip netns add client && ip link add hs0 type veth peer name hs1 netns client
    ip address add 192.0.2.1/24 dev hs0 && ip link set hs0 up
    ip -n client address add 192.0.2.2/24 dev hs1 && ip -n client link set hs1 up";
/// Runs a command there.
const FROM_CLIENT: &str = "ip netns exec client";
const CGROUPS: &str = "/sys/fs/cgroup/system.slice/headstart-functions.service";
/// Where the docs say how to install the agent, and how to remove it.
const DOCS: &str = include_str!("../../docs/operating.md");
const SECTION: &str = "## Install on a node\n";

/// The agent as the docs install it. A drop ends all of it, whatever state it is in.
struct Stock;

impl Stock {
    /// Installs and starts it with these functions.
    fn install(functions: &str) -> Option<Self> {
        if std::env::var_os("HEADSTART_STOCK").is_none() {
            eprintln!("skipped: `make test-vm` runs this on a system with systemd");
            return None;
        }
        for program in ["steady", "hostile", "unchanged"] {
            let rootfs = Path::new(FILES).join(program);
            fs::create_dir_all(&rootfs).unwrap();
            let built = build_static("headstart-lab-functions", program).unwrap();
            fs::copy(built, rootfs.join(program)).unwrap();
        }
        shell(LINK);
        // What an operator has at hand.
        let files = Scratch::new("stock").unwrap();
        let here = files.path();
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
        for unit in ["headstart.service", "headstart-functions.service"] {
            fs::copy(config.join(unit), here.join(unit)).unwrap();
        }
        fs::copy(binary().unwrap(), here.join("headstart")).unwrap();
        for program in ["headstart-init", "headstart-lambda"] {
            fs::copy(build_static(program, program).unwrap(), here.join(program)).unwrap();
        }
        fs::write(here.join("headstart.toml"), configuration(functions)).unwrap();
        let stock = Self;
        shell(&format!("cd {} && {}", here.display(), commands(0)));
        Some(stock)
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "{}",
                shell("journalctl --no-pager -o cat -u headstart -u headstart-functions | tail -60")
            );
        }
        shell("systemctl stop headstart headstart-functions || true; systemctl reset-failed || true");
        shell("rm -rf /run/headstart /sys/fs/bpf/headstart /etc/systemd/system/headstart.service.d");
    }
}

/// A block of commands of the docs: the first installs, the second removes.
fn commands(block: usize) -> &'static str {
    let (_, section) = DOCS.split_once(SECTION).unwrap();
    section.split("```sh\n").nth(block + 1).unwrap().split("```").next().unwrap()
}

fn configuration(functions: &str) -> String {
    format!(
        "[agent]\ninterfaces = [\"hs0\"]\ncgroup_parent = \"/system.slice/headstart-functions.service\"\n\n{functions}"
    )
}

/// A function of the fixture `program`, in an OCI container, with one parked.
fn function(name: &str, port: u16, program: &str, keys: &str) -> String {
    format!(
        "[[function]]\nname = {name:?}\nlisten = \"0.0.0.0:{port}\"\nprepared = 1\nruntime = \"oci\"\n\
         rootfs = \"{FILES}/{program}\"\ncommand = [\"/{program}\"]\n{keys}\n"
    )
}

/// Of `[agent]`: each function has users, and each container a user namespace.
const USERS: &str = "uids = \"1900000000-1900065535\"\n";

fn steady() -> String {
    function("steady", 8081, "steady", "")
}

/// The output of a script that succeeds.
fn shell(script: &str) -> String {
    run_within(LIMIT, Command::new("/bin/sh").args(["-ec", script])).unwrap()
}

fn get(port: u16) -> HttpReply {
    client::get(SocketAddr::from(([127, 0, 0, 1], port)), "/", LIMIT).unwrap()
}

fn unit(property: &str) -> String {
    shell(&format!("systemctl show -P {property} headstart")).trim().to_owned()
}

fn wait_unit(what: &str, wanted: impl Fn() -> bool) {
    cli::eventually(what, LIMIT, || Ok(wanted().then_some(()))).unwrap();
}

/// The cgroups of a function's instances.
fn instances(name: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(format!("{CGROUPS}/run:headstart")).into_iter().flatten().flatten();
    let own = all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{name}-")));
    own.map(|entry| entry.path()).collect()
}

/// What the API says of a function.
fn status(name: &str) -> serde_json::Value {
    let text = shell("curl -s http://127.0.0.1:9464/api/v1/functions");
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    all.into_iter().find(|function| function["name"] == name).unwrap()
}

fn wait_state(name: &str, state: &str) {
    let is_there = || Ok((status(name)["state"] == state).then_some(()));
    cli::eventually(&format!("{name} is {state}"), LIMIT, is_there).unwrap();
}

/// The cgroup of the function's one running instance.
fn running_cgroup(name: &str) -> PathBuf {
    let status = status(name);
    Path::new(CGROUPS).join("run:headstart").join(status["running"][0]["name"].as_str().unwrap())
}

/// The processes of the function's one running instance.
fn running(name: &str) -> String {
    fs::read_to_string(running_cgroup(name).join("cgroup.procs")).unwrap()
}

/// Asks the function over and over while `disturb` runs. Every request must be answered.
fn asked_during(port: u16, disturb: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let asked = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) || asked == 0 {
                assert_eq!(get(port).status, 200);
                asked += 1;
            }
            asked
        });
        disturb();
        stop.store(true, Ordering::Relaxed);
        client.join().unwrap()
    });
    assert!(asked > 0);
}

#[test]
fn a_cold_start_a_freeze_and_limits_below_the_unit() {
    let hog = function("hog", 8082, "hostile", "env = { MODE = \"hog\" }\nmemory = \"16MiB\"");
    let Some(_stock) = Stock::install(&format!("{}\n{hog}", steady())) else { return };
    assert_eq!(unit("ActiveState"), "active");
    assert_eq!(get(8081).status, 200);
    wait_state("steady", "ready");

    let cgroup = running_cgroup("steady");
    for file in ["memory.max", "pids.max"] {
        assert_ne!(fs::read_to_string(cgroup.join(file)).unwrap().trim(), "max", "{file}");
    }
    assert!(!Path::new("/sys/fs/cgroup/headstart").exists(), "nothing beside the units");

    shell("headstart freeze steady");
    wait_state("steady", "frozen");
    assert_eq!(get(8081).status, 200);
    wait_state("steady", "ready");

    // The kernel kills it; the unit, and everything beside it, runs on.
    let reply = client::get(SocketAddr::from(([127, 0, 0, 1], 8082)), "/", LIMIT).unwrap();
    assert_ne!(reply.status, 200);
    let error = status("hog")["last_error"].to_string();
    assert!(error.contains("out of memory"), "{error}");
    assert_eq!(unit("ActiveState"), "active");
    assert_eq!(get(8081).status, 200);
}

/// Loads and runs each eBPF program: a client beyond a veth pair wakes one function by its SYN, and one by a knock.
/// Seccomp notifications, the counts of the kernel and cgroup v2's freezer, on this kernel.
#[test]
fn a_server_that_knows_nothing_of_headstart_is_served() {
    let keys = "env = { MODE = \"blocks\" }\ncontract = \"port\"\nport = 8080\n";
    let processes =
        "runtime = \"process\"\ncommand = [\"/var/lib/headstart/unchanged/unchanged\"]\nprepared = 1\n";
    let process = format!("[[function]]\nname = \"bare\"\nlisten = \"0.0.0.0:8083\"\n{processes}{keys}");
    let container = function("server", 8082, "unchanged", keys);
    let Some(_stock) = Stock::install(&format!("{USERS}{container}{process}")) else { return };
    for (name, port) in [("server", 8082), ("bare", 8083)] {
        assert_eq!(get(port).status, 200, "{name} cold");
        assert_eq!(get(port).status, 200, "{name} warm");
        let free = || Ok((status(name)["running"][0]["open"] == 0).then_some(()));
        cli::eventually(&format!("{name} has no client"), LIMIT, free).unwrap();
        shell(&format!("headstart freeze {name}"));
        wait_state(name, "frozen");
        assert_eq!(get(port).status, 200, "{name} thawed");
        shell(&format!("headstart stop {name}"));
        wait_state(name, "cold");
        assert_eq!(get(port).status, 200, "{name} cold again");
    }
    // The init and its program.
    for pid in running("server").lines() {
        let user = shell(&format!("awk '/^Uid:/ {{ print $2 }}' /proc/{pid}/status"));
        let user: u32 = user.trim().parse().unwrap();
        assert!((1_900_000_000..=1_900_065_535).contains(&user), "{user}");
        let map = shell(&format!("awk '{{ print $1, $2, $3 }}' /proc/{pid}/uid_map"));
        assert_eq!(map, format!("0 {} 1\n{user} {user} 1\n", user - 1));
    }
}

#[test]
fn the_kernel_takes_every_program() {
    let keys = "/etc/headstart/keys";
    let syn = format!("[syn]\nkey_file = {keys:?}\nknock_port = 8089\n");
    let closed = function("closed", 8084, "steady", "id = 7\nrequire_auth = \"connect\"");
    shell(&format!("install -D -m 600 /dev/null {keys} && echo 1 {} >{keys}", "5a".repeat(16)));
    let Some(_stock) = Stock::install(&format!("{syn}\n{}\n{closed}", steady())) else { return };
    wait_metric("headstart_syn_sensor{interface=\"hs0\"");
    shell(&format!("{FROM_CLIENT} curl -sf -m 60 http://192.0.2.1:8081/"));
    let starts = shell("curl -s http://127.0.0.1:9464/api/v1/starts");
    assert!(starts.contains("\"trigger\":\"syn\""), "{starts}");

    // The program on the interface refuses it there, the filter of the listener elsewhere.
    for (from, to, metric) in [
        (FROM_CLIENT, "192.0.2.1", "headstart_syn_packets_total{kind=\"refused\"}"),
        ("", "127.0.0.1", "headstart_gate_refused_total"),
    ] {
        let refused = shell(&format!("{from} curl -s -m 2 http://{to}:8084/ || echo refused"));
        assert_eq!(refused, "refused\n");
        wait_metric(metric);
    }
    shell(&format!("{FROM_CLIENT} headstart knock --to 192.0.2.1:8089 --function 7 --key-file {keys}"));
    shell(&format!("{FROM_CLIENT} curl -sf -m 60 http://192.0.2.1:8084/"));
}

fn wait_metric(start: &str) {
    let counts = |line: &str| line.starts_with(start) && !line.ends_with(" 0");
    wait_unit(start, || shell("curl -s http://127.0.0.1:9464/metrics").lines().any(counts));
}

#[test]
fn a_restart_a_crash_a_hang_and_a_reload_lose_no_request() {
    let steady = || USERS.to_owned() + &steady();
    let Some(_stock) = Stock::install(&steady()) else { return };
    assert_eq!(get(8081).status, 200);
    asked_during(8081, || _ = shell("systemctl restart headstart"));

    wait_state("steady", "ready");
    let (agent, instance) = (unit("MainPID"), running("steady"));
    // In this order: the unit may still be active because of the earlier one.
    let is_replaced = |agent: &str| unit("MainPID") != agent && unit("ActiveState") == "active";
    asked_during(8081, || {
        shell(&format!("kill -KILL {agent}"));
        wait_unit("systemd starts the next agent after a crash", || is_replaced(&agent));
    });
    assert_eq!(running("steady"), instance, "it was taken over");

    let agent = unit("MainPID");
    asked_during(8081, || {
        shell(&format!("kill -STOP {agent}"));
        wait_unit("systemd starts the next agent after a hang", || is_replaced(&agent));
    });
    assert_eq!(running("steady"), instance, "it was taken over");

    let more = function("more", 8083, "steady", "");
    fs::write(CONFIG, configuration(&format!("{}\n{more}", steady()))).unwrap();
    asked_during(8081, || _ = shell("systemctl reload headstart"));
    assert_eq!(get(8083).status, 200);
}

/// The agent's cgroup is its unit's, and that of the functions another.
#[test]
fn the_sockets_that_a_function_holds_lead_nowhere_else() {
    let plain = function("plain", 8085, "hostile", "env = { MODE = \"plain\" }");
    let Some(_stock) = Stock::install(&plain) else { return };
    let ask = |path: &str| client::get(SocketAddr::from(([127, 0, 0, 1], 8085)), path, LIMIT).unwrap().body;
    let refused = [(); 3].map(|()| Errno::EPERM.to_string()).join(", ");
    let is_held = || {
        assert_eq!(ask("/keep"), "kept");
        // The admin address: of the node, and for every local user.
        let said = ask("/elsewhere/127.0.0.1:9464");
        assert!(!said.is_empty() && said.lines().all(|line| line == refused), "{said}");
    };
    is_held();
    let (agent, instance) = (unit("MainPID"), running("plain"));
    shell(&format!("kill -KILL {agent}"));
    wait_unit("systemd starts the next agent", || {
        unit("MainPID") != agent && unit("ActiveState") == "active"
    });
    assert_eq!(running("plain"), instance, "it was taken over");
    is_held();
    let doctor = shell("headstart doctor");
    assert!(doctor.lines().any(|line| line.starts_with("ok       guard ")), "{doctor}");
}

#[test]
fn after_a_unit_that_failed_the_next_start_serves_and_leaves_nothing() {
    for directory_is_lost in [false, true] {
        let Some(_stock) = Stock::install(&steady()) else { return };
        assert_eq!(get(8081).status, 200);
        wait_state("steady", "ready");
        let orphans = instances("steady");
        fs::write(CONFIG, "[agent]\nno_such_key = 1\n").unwrap();
        shell(&format!("kill -KILL {}", unit("MainPID")));
        wait_unit("the unit fails", || unit("ActiveState") == "failed");
        assert_eq!(get(8081).status, 200, "the instance serves on");

        if directory_is_lost {
            fs::remove_dir_all("/run/headstart").unwrap();
        }
        fs::write(CONFIG, configuration(&steady())).unwrap();
        shell("systemctl start headstart");
        assert_eq!(get(8081).status, 200);
        let is_left = |orphan: &PathBuf| orphan.exists();
        wait_unit("the earlier instances are gone", || !orphans.iter().any(is_left));
    }
}

#[test]
fn a_long_grace_period_gets_the_time_it_needs() {
    // It ignores SIGTERM.
    let keys = "env = { MODE = \"stubborn\" }\nstop_grace = \"8s\"";
    let Some(_stock) = Stock::install(&function("stubborn", 8081, "hostile", keys)) else { return };
    shell(
        "mkdir -p /etc/systemd/system/headstart.service.d &&
         printf '[Service]\\nTimeoutStopSec=3s\\n' >/etc/systemd/system/headstart.service.d/short.conf &&
         systemctl daemon-reload",
    );
    assert_eq!(get(8081).status, 200);
    let begun = Instant::now();
    shell("systemctl stop headstart");
    assert!(begun.elapsed() >= Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(unit("Result"), "success", "systemd did not kill the agent");
    assert_eq!(instances("stubborn"), Vec::<PathBuf>::new());
}

#[test]
fn what_the_docs_say_removes_everything() {
    let Some(_stock) = Stock::install(&steady()) else { return };
    assert_eq!(get(8081).status, 200);
    shell(commands(1));
    for path in [CGROUPS, "/run/headstart", "/sys/fs/bpf/headstart", "/usr/local/bin/headstart"] {
        assert!(!Path::new(path).exists(), "{path}");
    }
    assert_eq!(shell("grep -lx steady /proc/[0-9]*/comm 2>/dev/null || true"), "");
}
