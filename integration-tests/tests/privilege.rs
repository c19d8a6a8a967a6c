//! Least privilege: what an agent keeps once it serves, and that this is enough.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread;

use headstart_integration_tests::lab::client::{self, LineClient};
use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    AgentSetup, DockerDaemon, Link, Manager, Namespace, binary, cli, privilege, usage,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::Value;

/// What no serving agent keeps: numbers of capabilities(7), `include/uapi/linux/capability.h`.
const DROPPED: [(&str, u32); 17] = [
    ("CAP_LINUX_IMMUTABLE", 9),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_NET_RAW", 13),
    ("CAP_IPC_LOCK", 14),
    ("CAP_IPC_OWNER", 15),
    ("CAP_SYS_MODULE", 16),
    ("CAP_SYS_RAWIO", 17),
    ("CAP_SYS_BOOT", 22),
    ("CAP_SYS_TIME", 25),
    ("CAP_AUDIT_WRITE", 29),
    ("CAP_AUDIT_CONTROL", 30),
    ("CAP_MAC_OVERRIDE", 32),
    ("CAP_MAC_ADMIN", 33),
    ("CAP_SYSLOG", 34),
    ("CAP_AUDIT_READ", 37),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// The user and the group of a process without privileges.
const NOBODY: u32 = 65534;

/// Needed for interfaces and containers only.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_NICE: u32 = 23;

#[test]
fn only_root_changes_something() {
    if !privilege::require_root("a state directory of its own") {
        return;
    }
    let agent = AgentSetup::default().start().unwrap();
    let (address, socket) = (agent.admin().to_string(), agent.admin_socket());
    for path in ["/api/v1/reload", "/api/v1/functions/orders/stop", "/nothing"] {
        let refused = client::request(agent.admin(), "POST", path, "", LIMIT).unwrap();
        assert_eq!(refused.status, 403, "{path}: {}", refused.body);
        assert!(refused.body.contains(socket.to_str().unwrap()), "{}", refused.body);
    }
    assert_eq!(client::request(agent.admin(), "DELETE", "/", "", LIMIT).unwrap().status, 403);
    assert_eq!(agent.ask("POST", "/api/v1/reload").unwrap().status, 200);
    assert_eq!(client::request_at(&socket, "GET", "/readyz", LIMIT).unwrap().status, 200);

    // Commands find the socket; another user reads, and is told who may do more.
    for admin in [&address, socket.to_str().unwrap()] {
        let said = cli::headstart(&["reload", "--admin", admin]).unwrap();
        assert_eq!(said.code, Some(0), "{}", said.all);
    }
    assert_eq!(as_nobody(&["status", "--admin", &address]).0, Some(0));
    let refused = as_nobody(&["reload", "--admin", &address]);
    assert!(refused.0 == Some(1) && refused.1.contains("run this command as root"), "{refused:?}");

    // Also if everyone can open the file. A descriptor, because other users do not reach the scratch directory.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let directory = fs::File::open(agent.state_dir()).unwrap();
    fcntl(&directory, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let socket = format!("/proc/self/fd/{}/admin.sock", directory.as_raw_fd());
    let refused = as_nobody(&["reload", "--admin", &socket]);
    assert!(refused.0 == Some(1) && refused.1.contains("run `headstart` as root"), "{refused:?}");
    assert_eq!(as_nobody(&["status", "--admin", &socket]).0, Some(0), "reading is not refused");
    assert!(agent.stop().unwrap().success());
}

/// Exit code and words of a command that user 65534 runs.
fn as_nobody(arguments: &[&str]) -> (Option<i32>, String) {
    // By a descriptor, because other users may not reach the directory of the program.
    let program = fs::File::open(binary().unwrap()).unwrap();
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    let output = command.args(arguments).uid(NOBODY).gid(NOBODY).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn no_thread_of_a_serving_agent_keeps_what_it_no_longer_needs_and_functions_start_all_the_same() {
    if !ready() {
        return;
    }
    let client = Namespace::new("client").unwrap();
    let link = Link::connect(&client).unwrap();
    let docker = DockerDaemon::shared().unwrap();
    let upstream = echo();
    // An example with a backend, as it needs no inherited control socket, which Docker cannot pass on.
    let functions = ["oci", "process", "docker"].map(|runtime| {
        let name = format!("privilege-{runtime}-{}", std::process::id());
        (name, TestFunction::example("echo", runtime).unwrap())
    });
    let mut setup = AgentSetup::default()
        .interface(link.host_if())
        .docker(&docker)
        .config(&format!("[[backend]]\nname = \"upstream\"\nkind = \"tcp\"\naddress = \"{upstream}\"\n"));
    for (name, function) in &functions {
        setup = setup.config(&function.text(name, &["upstream"]));
    }
    let agent = setup.start().unwrap();
    agent.wait_log("headstart is up", LIMIT).unwrap();
    // Twice: what was parked may have been made with more than what is left.
    for _ in 0..2 {
        assert_dropped(agent.id(), &DROPPED);
        for (name, function) in &functions {
            function.rest(&agent, name).unwrap();
            let target = link.host(function.port);
            let answer = client.enter(|| LineClient::connect(target, LIMIT)?.ask("hello")).unwrap();
            let answer = answer.unwrap_or_else(|failure| panic!("{name}: {failure}\n{}", agent.log()));
            assert_eq!(answer, "hello", "{name}");
            function.cool(&agent, name).unwrap();
        }
    }
    assert!(agent.stop().unwrap().success());
}

#[test]
fn an_agent_without_containers_and_interfaces_keeps_no_power_over_the_host() {
    if !ready() {
        return;
    }
    let agent = AgentSetup::default().start().unwrap();
    agent.wait_log("headstart is up", LIMIT).unwrap();
    let mut dropped = DROPPED.to_vec();
    dropped.extend([
        ("CAP_SYS_ADMIN", CAP_SYS_ADMIN),
        ("CAP_NET_ADMIN", CAP_NET_ADMIN),
        ("CAP_SYS_NICE", CAP_SYS_NICE),
    ]);
    assert_dropped(agent.id(), &dropped);
    assert!(agent.stop().unwrap().success());
}

/// A look-up of a name starts a thread, and a thread begins with the capabilities of the one that starts it. Taking over a
/// Docker instance waits for the daemon, and a pool that was spawned before looked its server up meanwhile: that thread
/// kept everything.
#[test]
fn an_agent_that_takes_over_an_instance_and_looks_up_a_name_has_no_thread_that_keeps_more() {
    if !ready() {
        return;
    }
    let (docker, manager) = (DockerDaemon::shared().unwrap(), Manager::new().unwrap());
    let port = echo().port();
    let name = format!("privilege-adopted-{}", std::process::id());
    let function = TestFunction::example("echo", "docker").unwrap();
    let agent = AgentSetup::default()
        .docker(&docker)
        .manager(&manager)
        .config(&format!(
            "[[backend]]\nname = \"upstream\"\nkind = \"tcp\"\naddress = \"localhost:{port}\"\n"
        ))
        .config(&function.text(&name, &["upstream"]))
        .start()
        .unwrap();
    function.rest(&agent, &name).unwrap();
    agent.operate(&name, "wake").unwrap();
    agent.wait_state(&name, "ready", LIMIT).unwrap();
    // An instance may report before the daemon lists it as running, and the next agent takes over only what runs.
    let running = ["ps", "-q", "--filter", "status=running", "--filter", &format!("name={name}")];
    let started = || Ok(Some(docker.run(&running)?).filter(|listed| !listed.trim().is_empty()));
    cli::eventually("the daemon has started it", LIMIT, started).unwrap();

    let next = agent.kill().unwrap().start().unwrap();
    next.wait_log("headstart is up", LIMIT).unwrap();
    next.wait_idle("upstream", 1, LIMIT).unwrap();
    let mut dropped = DROPPED.to_vec();
    dropped.extend([("CAP_SYS_ADMIN", CAP_SYS_ADMIN), ("CAP_NET_ADMIN", CAP_NET_ADMIN)]);
    assert_dropped(next.id(), &dropped);
    assert!(!next.log().contains("keep their privileges"), "{}", next.log());
    let adopted = |function: &Value| function["running"][0]["reason"] == "adopted";
    next.wait_function(&name, "taken over", LIMIT, adopted).unwrap();
    assert!(next.stop().unwrap().success());
}

fn ready() -> bool {
    privilege::require_root("namespaces, XDP and containers")
        && privilege::require_tools(&["ip", "runc", "dockerd"])
}

/// A server that says every line again, until the process ends.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                    if writeln!(&stream, "{line}").is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Asserts that no set of any thread has one of these.
fn assert_dropped(process: u32, dropped: &[(&str, u32)]) {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let mut threads = 0;
    for task in tasks {
        // A thread of a pool may end meanwhile.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        threads += 1;
        for (set, bits) in usage::capabilities(&status).unwrap() {
            for (name, number) in dropped {
                assert_eq!(bits >> number & 1, 0, "{} has {name} in {set}", task.path().display());
            }
        }
    }
    assert!(threads >= 1);
}
