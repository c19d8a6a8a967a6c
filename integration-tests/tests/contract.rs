//! Programs that know nothing of Headstart: `contract = "port"` and `"listen-fds"`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use headstart_integration_tests::lab::client::{self, HttpReply};
use headstart_integration_tests::lab::node::get_from;
use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    AgentSetup, ChildProcess, Namespace, Rootfs, RunningAgent, Scratch, binary, build_static, fixture,
    free_port, privilege, unique,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const NAME: &str = "unchanged";

const PORT: &str = "contract = \"port\"\nport = 8080\n";

/// A server that knows nothing of Headstart. `keys` are further keys of its section.
fn unchanged(mode: &str, runtime: &str, keys: &str) -> TestFunction {
    let binary = build_static("headstart-lab-functions", NAME).unwrap();
    let kind = FunctionKind::of(runtime, Rootfs::with_binary(NAME, &binary).unwrap()).unwrap();
    let keys = format!("env = {{ MODE = {mode:?} }}\nstop_grace = \"500ms\"\n{keys}\n");
    TestFunction { port: free_port().unwrap().port(), prepared: 1, kind, keys }
}

fn setup() -> AgentSetup {
    let init = build_static("headstart-init", "headstart-init").unwrap();
    AgentSetup::default().setting("init", &format!("{init:?}"))
}

fn ready() -> bool {
    privilege::require_root("containers") && privilege::require_tools(&["runc", "dockerd"])
}

/// An agent with this function, at rest.
fn serving(function: &TestFunction) -> RunningAgent {
    serving_named(function, NAME)
}

fn serving_named(function: &TestFunction, name: &str) -> RunningAgent {
    let mut setup = setup();
    if let FunctionKind::Docker { docker, .. } = &function.kind {
        setup = setup.docker(docker);
    }
    let agent = setup.config(&function.text(name, &[])).start().unwrap();
    function.rest(&agent, name).unwrap();
    agent
}

fn get(function: &TestFunction, path: &str) -> HttpReply {
    client::get(function.local(), path, LIMIT).unwrap()
}

/// A request that is sent as far as its last line: its connection is open until it is finished.
struct HeldRequest(TcpStream);

impl HeldRequest {
    fn begin(function: &TestFunction) -> Self {
        let mut client = TcpStream::connect(function.local()).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: unchanged\r\n").unwrap();
        Self(client)
    }

    /// The instance is not left frozen: it answers.
    fn finish(mut self) {
        self.0.write_all(b"\r\n").unwrap();
        let mut status = [0; 12];
        self.0.read_exact(&mut status).unwrap();
        assert_eq!(status, *b"HTTP/1.1 200");
    }
}

fn open(function: &Value) -> Vec<u64> {
    let running = function["running"].as_array().unwrap().iter();
    running.filter_map(|instance| instance["open"].as_u64()).collect()
}

/// Cold, warm, counted, frozen, thawed, stopped.
fn lives(function: &TestFunction) {
    let agent = serving(function);
    lives_at(function, &agent);
    assert!(agent.stop().unwrap().success());
}

fn lives_at(function: &TestFunction, agent: &RunningAgent) {
    assert_eq!(get(function, "/").status, 200, "cold");
    assert_eq!(get(function, "/").status, 200, "warm");
    let held = HeldRequest::begin(function);
    agent.wait_function(NAME, "busy", LIMIT, |function| open(function) == [1]).unwrap();
    agent.operate(NAME, "freeze").unwrap();
    held.finish();
    agent.wait_function(NAME, "free", LIMIT, |function| open(function) == [0]).unwrap();
    agent.operate(NAME, "freeze").unwrap();
    agent.wait_state(NAME, "frozen", LIMIT).unwrap();
    assert_eq!(get(function, "/").status, 200, "thawed");
    let starts = agent.metrics().unwrap().sum("headstart_coldstarts_total", &[("outcome", "ready")]);
    assert!((starts - 1.0).abs() < f64::EPSILON, "{starts} starts");
    let one = agent.functions().unwrap();
    assert!(one[0]["last_error"].is_null(), "{one}");
    function.cool(agent, NAME).unwrap();
    assert_eq!(get(function, "/").status, 200, "cold again");
}

#[test]
fn a_server_unchanged_lives_like_a_function() {
    if !ready() {
        return;
    }
    for runtime in ["oci", "process"] {
        for mode in ["events", "blocks", "workers", "again"] {
            println!("{mode} in {runtime}");
            lives(&unchanged(mode, runtime, PORT));
        }
    }
    for mode in ["events", "blocks"] {
        println!("{mode} in docker");
        lives(&unchanged(mode, "docker", PORT));
    }
}

/// The init reads the program's memory and descriptors, and neither is root there.
#[test]
fn a_server_unchanged_lives_in_a_user_namespace() {
    if !ready() {
        return;
    }
    for (mode, contract) in [("workers", PORT), ("inherits", "contract = \"listen-fds\"\n")] {
        let function = unchanged(mode, "oci", contract);
        let setup = setup().setting("uids", "\"100000-165535\"");
        let agent = setup.config(&function.text(NAME, &[])).start().unwrap();
        function.rest(&agent, NAME).unwrap();
        lives_at(&function, &agent);
        assert!(agent.stop().unwrap().success());
    }
}

#[test]
fn a_port_that_needs_a_privilege_is_a_port_like_others() {
    if ready() {
        lives(&unchanged("events", "oci", "contract = \"port\"\nport = 80\n"));
    }
}

#[test]
fn a_server_that_inherits_its_socket_as_from_systemd_lives_like_a_function() {
    if !ready() {
        return;
    }
    for runtime in ["oci", "process", "docker"] {
        lives(&unchanged("inherits", runtime, "contract = \"listen-fds\"\n"));
    }
}

#[test]
fn each_instance_has_the_connections_that_it_has_accepted() {
    if !ready() {
        return;
    }
    for mode in ["events", "blocks"] {
        let function =
            unchanged(mode, "process", &format!("{PORT}concurrency = 1\nmax_instances = 2\nprepared = 1\n"));
        let function = TestFunction { keys: function.keys.replace("prepared = 1\n", ""), ..function };
        let agent = serving(&function);
        let first = HeldRequest::begin(&function);
        agent.wait_function(NAME, "one is busy", LIMIT, |function| open(function) == [1]).unwrap();
        // The first instance accepts as it likes: the second may get the client or not.
        assert_eq!(get(&function, "/").status, 200);
        first.finish();
        agent
            .wait_function(NAME, "all are free", LIMIT, |function| {
                open(function).iter().all(|open| *open == 0)
            })
            .unwrap();
        assert!(agent.stop().unwrap().success());
    }
}

/// The environment that the contract promises.
#[test]
fn the_variables_of_the_contract_are_set_and_the_configuration_has_the_last_word() {
    if !ready() {
        return;
    }
    let script = Script::new(
        "server.py",
        "import http.server, os\n\
         class Handler(http.server.BaseHTTPRequestHandler):\n\
         \x20   def do_GET(self):\n\
         \x20       names = ['PORT', 'K_SERVICE', 'K_REVISION', 'K_CONFIGURATION', 'HOME', 'HEADSTART_CONTROL_FD']\n\
         \x20       body = ' '.join(str(os.environ.get(name)) for name in names).encode()\n\
         \x20       self.send_response(200)\n\
         \x20       self.send_header('content-length', str(len(body)))\n\
         \x20       self.end_headers()\n\
         \x20       self.wfile.write(body)\n\
         http.server.HTTPServer(('', int(os.environ['PORT'])), Handler).serve_forever()\n",
    );
    let port = free_port().unwrap().port();
    let text = format!(
        "[[function]]\nname = \"{NAME}\"\nlisten = \"0.0.0.0:{port}\"\nruntime = \"process\"\n{PORT}\
         env = {{ K_SERVICE = \"mine\" }}\ncommand = [\"/usr/bin/python3\", {:?}]\n",
        script.0
    );
    let agent = setup().config(&text).start().unwrap();
    let body = client::get(([127, 0, 0, 1], port).into(), "/", LIMIT).unwrap().body;
    let words: Vec<_> = body.split(' ').collect();
    assert_eq!((words[0], words[1], words[3], words[4], words[5]), ("8080", "mine", NAME, "/tmp", "None"));
    assert!(words[2].starts_with("unchanged-"), "{body}");
    assert!(agent.stop().unwrap().success());
}

/// A file that a process without privileges can read. Removed on drop.
struct Script(PathBuf);

impl Script {
    fn new(name: &str, text: &str) -> Self {
        let file = Path::new("/var/lib").join(unique(name));
        fs::write(&file, text).unwrap();
        Self(file)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A container of the daemon is started before its release, also for a program that speaks to the agent itself. So little
/// is left to do then that the daemon, which takes some hundred milliseconds for it, cannot have been asked.
#[test]
fn a_docker_container_runs_before_its_release() {
    if !ready() {
        return;
    }
    let function = fixture::steady("docker", "").unwrap();
    let agent = serving_named(&function, "steady");
    let FunctionKind::Docker { docker, .. } = &function.kind else { panic!("docker") };
    let running = docker.run(&["ps", "-q", "--filter", "label=headstart.function=steady"]).unwrap();
    assert_eq!(running.lines().count(), 1, "it is parked, and runs");
    assert_eq!(get(&function, "/").status, 200);
    let killed = agent.kill().unwrap();
    let next = killed.start().unwrap();
    assert_eq!(get(&function, "/").status, 200, "an earlier agent's containers are in nobody's way");
    assert!(next.stop().unwrap().success());
    let left = docker.run(&["ps", "-aq", "--filter", "label=headstart.function=steady"]).unwrap();
    assert_eq!(left, "");
}

/// What becomes of a program that does not do what its contract says: one message, which says what to do.
#[test]
fn a_program_that_is_no_server_is_told_what_is_wrong() {
    if !ready() {
        return;
    }
    for (mode, message) in [
        ("other-port", "the program has bound port 3000, and `port` of its function is 8080"),
        ("nothing", "the program has not bound port 8080"),
        ("deaf", "the program has bound port 8080 and does not listen"),
        ("background", "run it in the foreground"),
        ("background-ready", "run it in the foreground"),
        ("exits", "no database"),
    ] {
        let function = unchanged(mode, "process", &format!("{PORT}init_timeout = \"500ms\"\n"));
        let agent = serving(&function);
        agent.operate(NAME, "wake").unwrap();
        let told =
            |function: &Value| function["last_error"].as_str().is_some_and(|error| error.contains(message));
        agent.wait_function(NAME, message, LIMIT, told).unwrap();
        assert!(agent.stop().unwrap().success());
    }
}

#[test]
fn a_program_of_contract_headstart_that_says_nothing_is_told_of_the_other_contracts() {
    if !ready() {
        return;
    }
    let function = unchanged("blocks", "process", "");
    let agent = serving(&function);
    agent.operate(NAME, "wake").unwrap();
    let told = |function: &Value| {
        function["last_error"].as_str().is_some_and(|error| error.contains("set contract = \"port\""))
    };
    agent.wait_function(NAME, "told of the contracts", LIMIT, told).unwrap();
    assert!(agent.stop().unwrap().success());
}

/// A program that keeps its init busy harms itself alone.
#[test]
fn a_program_that_misuses_the_contract_harms_no_other_function() {
    if !ready() {
        return;
    }
    for mode in ["binds-for-ever", "many-bind", "ends-listener"] {
        let function = unchanged(mode, "process", PORT);
        let steady = fixture::steady("process", "").unwrap();
        let text = format!("{}{}", function.text(NAME, &[]), steady.text("steady", &[]));
        let agent = setup().config(&text).start().unwrap();
        steady.rest(&agent, "steady").unwrap();
        agent.operate(NAME, "wake").unwrap();
        agent
            .wait_function(NAME, "released", LIMIT, |function| {
                !function["running"].as_array().unwrap().is_empty()
            })
            .unwrap();
        for _ in 0..3 {
            assert_eq!(client::get(steady.local(), "/", LIMIT).unwrap().status, 200);
            steady.cool(&agent, "steady").unwrap();
        }
        if mode != "binds-for-ever" {
            assert_eq!(get(&function, "/").status, 200, "{mode}");
        }
        assert!(agent.stop().unwrap().success());
    }
}

#[test]
fn an_init_that_is_not_installed_is_named() {
    if !ready() {
        return;
    }
    let function = unchanged("events", "process", PORT);
    let agent = AgentSetup::default().setting("init", "\"/nowhere/init\"").config(&function.text(NAME, &[]));
    let agent = agent.start_unready().unwrap();
    let told = |function: &Value| {
        let error = function["last_error"].as_str().unwrap_or_default();
        error.contains("/nowhere/init") && error.contains("`init` in [agent]")
    };
    agent.wait_function(NAME, "told of the init", LIMIT, told).unwrap();
    assert!(agent.stop().unwrap().success());
}

/// The first thing that a newcomer does.
#[test]
fn a_server_is_tried_without_a_file_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let node = Namespace::new("try").unwrap();
    let installed = Scratch::new("installed").unwrap();
    let init = build_static("headstart-init", "headstart-init").unwrap();
    for (file, name) in [(binary().unwrap(), "headstart"), (init, "headstart-init")] {
        fs::copy(file, installed.path().join(name)).unwrap();
    }
    let program = unchanged("events", "process", "");
    let FunctionKind::Process(server) = &program.kind else { panic!("a process") };
    let mut command = Command::new(installed.path().join("headstart"));
    command
        .args(["try", "--listen", "127.0.0.1:8080", "--port", "3000", "--env", "MODE", "--"])
        .arg(server.path());
    command.current_dir("/").env("MODE", "events");
    let mut tried = node.enter(|| ChildProcess::spawn(&mut command).unwrap()).unwrap();
    tried.wait_line("headstart is up", LIMIT).unwrap();
    assert_eq!(get_from(&node, ([127, 0, 0, 1], 8080).into()).unwrap().unwrap().status, 200);
    assert!(tried.stop(Signal::SIGINT, LIMIT).unwrap().success(), "{}", tried.log());
    assert!(tried.log().contains("contract = \"port\""), "{}", tried.log());
    for left in ["/run", "/sys/fs/bpf"] {
        let left = Path::new(left).join(format!("headstart-try-{}", tried.id()));
        assert!(!left.exists(), "{}", left.display());
    }
}
