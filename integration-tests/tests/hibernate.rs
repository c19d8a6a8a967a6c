//! Instances whose memory is in swap while they are idle.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    self, AgentSetup, Manager, PostgresServer, PostgresSetup, Rootfs, RunningAgent, Swap, build_static, cli,
    client, fixture, free_port, privilege, unique,
};
use serde_json::Value;

const NAME: &str = "sleeper";

/// Times with which an instance is hibernated soon.
const SOON: &str = "freeze_after = \"10ms\"\nhibernate_after = \"20ms\"\n";

/// Cycles of sleep and request.
const CYCLES: usize = 50;

/// Swap is the whole machine's: the test without any runs alone.
static SWAP: RwLock<()> = RwLock::new(());

/// Swap for the tests that run side by side: when one of several devices is removed, the kernel reads back what is on it, also of
/// the instances of others.
fn swap() -> Arc<Swap> {
    static SHARED: Mutex<Weak<Swap>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let swap = Arc::new(Swap::add(1 << 30).unwrap());
        *shared = Arc::downgrade(&swap);
        swap
    })
}

fn ready() -> bool {
    privilege::require_root("containers")
        && privilege::require_tools(&["runc", "python3", "/usr/lib/postgresql"])
}

fn get(address: SocketAddr, path: &str) -> Value {
    let reply = client::get(address, path, LIMIT).unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    serde_json::from_str(&reply.body).unwrap_or_default()
}

#[test]
fn without_swap_an_instance_stays_frozen_and_says_why() {
    let _alone = SWAP.write().unwrap();
    if !ready() {
        return;
    }
    if Swap::is_there().unwrap() {
        eprintln!("SKIPPED: this machine has swap");
        return;
    }
    let function = fixture::steady("process", SOON).unwrap();
    let agent = AgentSetup::default().config(&function.text(NAME, &[])).start().unwrap();
    function.rest(&agent, NAME).unwrap();
    get(function.local(), "/");
    let failed = |function: &Value| function["running"][0]["reason"] == "hibernate_failed";
    let shown = agent.wait_function(NAME, "not hibernated", LIMIT, failed).unwrap();
    assert_eq!(shown["state"], "frozen");
    let socket = agent.admin_socket();
    let said = cli::headstart(&["explain", NAME, "--admin", socket.to_str().unwrap()]).unwrap().stdout;
    assert!(said.contains("stays frozen: this node has no swap"), "{said}");
    get(function.local(), "/");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn any_function_sleeps_and_wakes() {
    let _shared = SWAP.read().unwrap();
    if !ready() {
        return;
    }
    let _swap = swap();
    let init = build_static("headstart-init", "headstart-init").unwrap();
    let server = build_static("headstart-lab-functions", "unchanged").unwrap();
    let port = format!("contract = \"port\"\nport = 8080\nenv = {{ MODE = \"workers\" }}\n{SOON}");
    let unchanged = |runtime: &str| TestFunction {
        port: free_port().unwrap().port(),
        prepared: 1,
        kind: FunctionKind::of(runtime, Rootfs::with_binary("unchanged", &server).unwrap()).unwrap(),
        keys: port.clone(),
    };
    let steady = |runtime: &str| fixture::steady(runtime, SOON).unwrap();
    for function in [steady("oci"), steady("process"), unchanged("oci"), unchanged("process")] {
        let setup = AgentSetup::default().setting("init", &format!("{init:?}"));
        let agent = setup.config(&function.text(NAME, &[])).start().unwrap();
        function.rest(&agent, NAME).unwrap();
        for _ in 0..3 {
            assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().status, 200);
            let shown = agent.wait_state(NAME, "hibernated", LIMIT).unwrap();
            assert!(shown["running"][0]["memory"]["swapped_bytes"].as_u64().unwrap() > 0, "{shown}");
        }
        // It is asked to stop, and hears it.
        function.cool(&agent, NAME).unwrap();
        let starts = agent.metrics().unwrap().sum("headstart_coldstarts_total", &[("outcome", "ready")]);
        assert!((starts - 1.0).abs() < f64::EPSILON, "{starts} starts");
        assert!(agent.stop().unwrap().success());
    }
}

/// The program and the module, where a process without privileges can read them. Removed on drop.
struct Program(PathBuf);

impl Program {
    fn new() -> Self {
        let program = Self(Path::new("/var/lib").join(unique("sleeper")));
        let package = program.0.join("headstart");
        fs::create_dir_all(&package).unwrap();
        let module = fs::read_dir(lab::workspace().join("runtime-shim/python/src/headstart")).unwrap();
        for file in module.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            fs::copy(&file, package.join(file.file_name().unwrap())).unwrap();
        }
        let source = lab::workspace().join("integration-tests/tests/fixtures/sleeper.py");
        fs::copy(source, program.0.join("sleeper.py")).unwrap();
        program
    }

    /// Its section of the configuration.
    fn text(&self, address: SocketAddr) -> String {
        let directory = self.0.display();
        format!(
            "[[function]]\nname = \"{NAME}\"\nlisten = \"{address}\"\nruntime = \"process\"\n\
             command = [\"/usr/bin/python3\", \"{directory}/sleeper.py\"]\n\
             env = {{ PYTHONPATH = \"{directory}\" }}\nbackends = [\"orders-db\"]\nbackend_sockets = true\n\
             memory = \"256MiB\"\n{SOON}"
        )
    }

    /// What its process has in memory, in bytes, a share of what it shares.
    fn resident(&self) -> u64 {
        let script = self.0.join("sleeper.py").display().to_string();
        let runs = |path: &Path| {
            let words = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
            words.starts_with("/usr/bin/python3") && words.contains(&script)
        };
        let all = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let process = all.into_iter().find(|path| runs(path)).unwrap();
        let rollup = fs::read_to_string(process.join("smaps_rollup")).unwrap();
        let line =
            rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")).unwrap();
        line.parse::<u64>().unwrap() << 10
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn backend(postgres: &PostgresServer) -> String {
    format!(
        "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = \"{}\"\n\
         password_file = {:?}\npool = {{ min_idle = 1, max = 4 }}\n",
        postgres.address(),
        PostgresServer::USER,
        PostgresServer::DATABASE,
        postgres.password_file().unwrap(),
    )
}

#[test]
fn a_python_function_sleeps_without_memory_and_keeps_its_session() {
    let _shared = SWAP.read().unwrap();
    if !ready() {
        return;
    }
    let _swap = swap();
    let (postgres, program, manager) =
        (PostgresSetup::default().start().unwrap(), Program::new(), Manager::new().unwrap());
    let address = free_port().unwrap();
    let setup = AgentSetup::default().manager(&manager).config(&backend(&postgres));
    let agent = setup.config(&program.text(address)).start().unwrap();

    let first = get(address, "/");
    assert_eq!(first["locked"], true, "{first}");
    let awake = program.resident();
    let shown = agent.wait_state(NAME, "hibernated", LIMIT).unwrap();
    let asleep = program.resident();
    println!("{} KiB awake, {} KiB asleep", awake >> 10, asleep >> 10);
    assert!(asleep < awake / 4, "{asleep} of {awake} bytes are left");
    assert!(shown["running"][0]["memory"]["swapped_bytes"].as_u64().unwrap() > 48 << 20, "{shown}");
    let bytes = agent
        .metrics()
        .unwrap()
        .sum("headstart_hibernated_bytes", &[("function", NAME), ("kind", "swapped")]);
    assert!(bytes > f64::from(48 << 20), "{bytes}");

    for cycle in 0..CYCLES {
        assert_eq!(get(address, "/")["backend_pid"], first["backend_pid"], "cycle {cycle}: {}", agent.log());
        agent.wait_state(NAME, "hibernated", LIMIT).unwrap();
    }
    turned_round(&agent, address);
    assert_eq!(get(address, "/")["backend_pid"], first["backend_pid"]);
    let thaws = [("function", NAME), ("state", "hibernated")];
    assert!(agent.metrics().unwrap().sum("headstart_thaw_seconds_count", &thaws) >= 50.0);

    // What was read ahead and not touched is given up again.
    assert_eq!(get(address, "/all")["same"], true);
    for _ in 0..2 {
        agent.wait_state(NAME, "hibernated", LIMIT).unwrap();
        get(address, "/");
    }
    agent.wait_state(NAME, "hibernated", LIMIT).unwrap();
    let kept = memory_of_group();
    assert!(kept < awake / 2, "{kept} of {awake} bytes are in memory");

    // The agent is killed while it sleeps, and in the middle of a page-out.
    let agent = agent.kill().unwrap().start().unwrap();
    while_it_is_written(&agent, address);
    let agent = agent.kill().unwrap().start().unwrap();
    let reply = client::get(address, "/", LIMIT).unwrap();
    assert_eq!(reply.status, 200, "{}", agent.log());
    agent.wait_state(NAME, "hibernated", LIMIT).unwrap();
    assert_eq!(get(address, "/all")["same"], true);
    assert_eq!(
        agent.starts().unwrap().as_array().unwrap().len(),
        0,
        "it is the same instance: {}",
        agent.log()
    );
    assert!(agent.stop().unwrap().success());
}

/// What the instance's cgroup has in memory, in bytes, with what no process maps.
fn memory_of_group() -> u64 {
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = open.pop() {
        let is_group = |path: &Path| path.to_string_lossy().contains(&format!("/{NAME}-"));
        for file in ["memory.usage_in_bytes", "memory.current"].map(|name| directory.join(name)) {
            if is_group(&directory) && file.is_file() {
                return fs::read_to_string(file).unwrap().trim().parse().unwrap();
            }
        }
        let below = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        open.extend(below.filter(|path| path.is_dir() && !path.is_symlink()));
    }
    panic!("no cgroup of {NAME}")
}

/// Returns while the memory of the instance is being written. It is asked for so often until that is seen.
fn while_it_is_written(agent: &RunningAgent, address: SocketAddr) {
    for _ in 0..100 {
        assert_eq!(get(address, "/all")["same"], true);
        let begins =
            |one: &Value| one["running"][0]["state"] == "hibernating" || one["state"] == "hibernated";
        let shown = agent.wait_function(NAME, "being hibernated", LIMIT, begins).unwrap();
        if shown["running"][0]["state"] == "hibernating" {
            return;
        }
    }
    panic!("its memory is written too quickly to see it")
}

/// A client that comes while its memory is being written is served, with the memory as it was.
fn turned_round(agent: &RunningAgent, address: SocketAddr) {
    let thaws = [("function", NAME), ("state", "hibernating")];
    let before = agent.metrics().unwrap().sum("headstart_thaw_seconds_count", &thaws);
    for _ in 0..100 {
        while_it_is_written(agent, address);
        assert_eq!(get(address, "/all")["same"], true);
        if agent.metrics().unwrap().sum("headstart_thaw_seconds_count", &thaws) > before {
            return;
        }
    }
    panic!("none was turned round")
}

#[test]
fn one_that_is_initialised_ahead_is_woken_by_its_first_client() {
    let _shared = SWAP.read().unwrap();
    if !ready() {
        return;
    }
    let _swap = swap();
    let mut function = fixture::steady("process", &format!("{SOON}standby = 1\n")).unwrap();
    function.prepared = 0;
    let agent = AgentSetup::default().config(&function.text(NAME, &[])).start().unwrap();
    agent.wait_state(NAME, "hibernated", LIMIT).unwrap();
    let starts = |agent: &RunningAgent| {
        let (metrics, ready) = (agent.metrics().unwrap(), [("function", NAME), ("outcome", "ready")]);
        let ahead = [("trigger", "provision"), ready[0], ready[1]];
        (metrics.sum("headstart_coldstarts_total", &ready), metrics.sum("headstart_coldstarts_total", &ahead))
    };
    assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().status, 200);
    assert_eq!(starts(&agent), (1.0, 1.0), "its first client has woken it");

    // A new version is initialised while the old one serves.
    function.keys.push_str("env = { VERSION = \"2\" }\n");
    agent.rewrite(&function.text(NAME, &[])).unwrap();
    let said = cli::headstart(&["reload", "--admin", &agent.admin().to_string()]).unwrap();
    assert_eq!(said.code, Some(0), "{}", said.all);
    while starts(&agent) != (2.0, 2.0) {
        assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().status, 200);
    }
    let alone = |one: &Value| one["state"] == "hibernated" && one["instances"] == 1;
    agent.wait_function(NAME, "alone", LIMIT, alone).unwrap();
    assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().status, 200);
    assert_eq!(starts(&agent), (2.0, 2.0));
    assert!(agent.stop().unwrap().success());
}

#[test]
fn on_a_node_without_memory_the_idle_give_up_theirs_and_then_stop() {
    let _shared = SWAP.read().unwrap();
    if !ready() {
        return;
    }
    let _swap = swap();
    let late = "freeze_after = \"10ms\"\nhibernate_after = \"1h\"\nstop_after = \"2h\"\n";
    let mut function = fixture::steady("process", late).unwrap();
    function.prepared = 0;
    let setup = AgentSetup::default().setting("memory_reserve", "\"1024GiB\"");
    let agent = setup.config(&function.text(NAME, &[])).start().unwrap();
    assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().status, 200);
    agent.wait_state(NAME, "cold", LIMIT).unwrap();
    let because = |state: &str| {
        let labels = [("function", NAME), ("state", state), ("reason", "pressure")];
        agent.metrics().unwrap().sum("headstart_instance_transitions_total", &labels)
    };
    assert_eq!(["hibernated", "stopping"].map(because), [1.0, 1.0], "{}", agent.log());
    assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().status, 200);
    assert!(agent.stop().unwrap().success());
}
