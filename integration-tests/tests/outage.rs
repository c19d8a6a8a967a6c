//! A short outage of what a start needs costs no client that would wait longer.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use headstart_injector::{Address, BackendKind, BackendSpec, Pool, PoolSettings, TlsMode};
use headstart_integration_tests::lab::client::{self, HttpReply};
use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    AgentSetup, ChildProcess, Link, Namespace, PostgresServer, RunningAgent, Scratch, binary, cli, fixture,
    free_port, privilege, unique,
};

const RUNTIME: &str = "oci";
const CLIENTS: usize = 16;

/// Three failures in a row began a cool-down once.
const ATTEMPTS: u64 = 4;

#[test]
fn clients_wait_while_their_database_restarts() {
    if !ready(&["/usr/lib/postgresql"]) {
        return;
    }
    let mut postgres = PostgresServer::on_loopback().unwrap();
    let mut function = TestFunction::example("orders", RUNTIME).unwrap();
    "cooldown = \"1h\"\n".clone_into(&mut function.keys);
    let password = postgres.password_file().unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let (address, user, database) = (postgres.address(), PostgresServer::USER, PostgresServer::DATABASE);
    let backend = format!(
        "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{address}\"\nuser = \"{user}\"\n\
         database = \"{database}\"\npassword_file = {password:?}\npool = {{ min_idle = 2, max = 32 }}\n"
    );
    let setup = AgentSetup::default().config(&backend);
    let agent = setup.config(&function.text("orders", &["orders-db"])).start().unwrap();
    function.rest(&agent, "orders").unwrap();

    postgres.stop().unwrap();
    let waiting = clients(&function);
    wait_failures(&agent, "orders", "backend");
    let said = cli::headstart(&["explain", "--admin", &agent.admin().to_string(), "orders"]).unwrap().all;
    assert!(
        said.contains("a backend of it cannot be reached") || said.contains("orders is starting"),
        "{said}"
    );
    postgres.start().unwrap();
    all_served(waiting);
    assert_eq!(agent.functions().unwrap()[0]["state"], "ready");
    assert!(agent.stop().unwrap().success());
}

/// A host that is gone says nothing: neither a reset nor an error of the network.
#[tokio::test]
async fn a_connection_to_a_host_that_vanished_ends() {
    if !privilege::require_root("network namespaces") {
        return;
    }
    let namespace = Namespace::new("database").unwrap();
    let link = Link::connect(&namespace).unwrap();
    let server = namespace.enter(|| TcpListener::bind(link.peer(0))).unwrap().unwrap();
    let address = Address::Tcp(server.local_addr().unwrap().to_string());
    let pool = PoolSettings { peer_timeout: Duration::from_secs(2), min_idle: 1, ..PoolSettings::default() };
    let (name, kind) = ("db".to_owned(), BackendKind::Tcp);
    let pool = Pool::spawn(BackendSpec { name, kind, address, tls: None, pool });
    let lease = pool.lease().await.unwrap().hand_over(TlsMode::Relay).unwrap();
    let mut connection = TcpStream::from(lease.fd);
    connection.set_nonblocking(false).unwrap();
    connection.set_read_timeout(Some(LIMIT)).unwrap();
    drop(pool);

    namespace.run(Command::new("ip").args(["link", "set", link.peer_if(), "down"])).unwrap();
    connection.write_all(b"a query").unwrap();
    let error = connection.read(&mut [0]).unwrap_err();
    assert!(error.kind() != ErrorKind::WouldBlock, "it waits for ever");
    drop(server);
}

/// Its clients need not wait for all of `queue_timeout`, which is 30 s.
#[test]
fn a_function_that_always_crashes_is_answered_soon() {
    if !ready(&[]) {
        return;
    }
    let function = fixture::function("exit", RUNTIME, "").unwrap();
    let agent = AgentSetup::default().config(&function.text("crashes", &[])).start().unwrap();
    function.rest(&agent, "crashes").unwrap();
    let begun = Instant::now();
    let answer = client::get(function.local(), "/", LIMIT).unwrap();
    assert_eq!(answer.status, 503);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    println!("answered after {:?}", begun.elapsed());
    let shown = agent.functions().unwrap();
    assert_eq!(shown[0]["failure"], "function", "{shown}");
    assert!(agent.stop().unwrap().success());
}

/// A runtime that says why it makes no container, as long as a file is there.
#[test]
fn clients_wait_while_no_container_can_be_made() {
    if !ready(&[]) {
        return;
    }
    let files = Scratch::new("runtime").unwrap();
    let (program, broken) = (files.path().join("runc"), files.path().join("broken"));
    // A container is there all the same, and cannot be removed.
    let script = format!(
        "#!/bin/sh\nif [ -e {broken:?} ]; then\n\
           case \"$*\" in\n\
             *' create '*) runc \"$@\"; echo out of order >&2; exit 1;;\n\
             *' delete '*) exit 1;;\n\
           esac\n\
         fi\n\
         exec runc \"$@\"\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let patient = fixture::function("plain", RUNTIME, "cooldown = \"1h\"\nretry_max = \"1s\"").unwrap();
    let hasty =
        fixture::function("plain", RUNTIME, "queue_timeout = \"100ms\"\nretry_max = \"400ms\"").unwrap();
    let setup = AgentSetup::default().setting("runc", &format!("{program:?}"));
    let setup = setup.config(&patient.text("patient", &[])).config(&hasty.text("hasty", &[]));
    let agent = setup.start().unwrap();
    patient.rest(&agent, "patient").unwrap();
    hasty.rest(&agent, "hasty").unwrap();
    fs::write(&broken, "").unwrap();
    for (function, name) in [(&patient, "patient"), (&hasty, "hasty")] {
        assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().status, 200, "the prepared one");
        agent.stop_function(name).unwrap();
    }

    let waiting = clients(&patient);
    wait_failures(&agent, "patient", "node");
    let unready = agent.ask("GET", "/readyz").unwrap();
    assert_eq!(unready.status, 503);
    let said = "patient: the container could not be made: out of order\n";
    assert!(unready.body.contains(said), "{}", unready.body);
    let answer = client::get(hasty.local(), "/", LIMIT).unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.body, "the function cannot start: its node cannot make a container\n");
    fs::remove_file(&broken).unwrap();
    all_served(waiting);
    cli::eventually("it is ready", LIMIT, || Ok((agent.ask("GET", "/readyz")?.status == 200).then_some(())))
        .unwrap();
    let bundles = agent.state_dir().join("oci");
    cli::eventually("nothing left of the failed ones", LIMIT, || {
        let functions = agent.functions()?;
        let count = |key| functions.as_array().into_iter().flatten().filter_map(move |one| one[key].as_u64());
        let known: u64 = ["prepared", "preparing", "instances", "removing"].into_iter().flat_map(count).sum();
        Ok((fs::read_dir(&bundles)?.count() as u64 == known).then_some(()))
    })
    .unwrap();
    assert!(agent.stop().unwrap().success());
}

fn ready(tools: &[&str]) -> bool {
    privilege::require_root("containers")
        && privilege::require_tools(&["runc"])
        && privilege::require_tools(tools)
}

/// Clients that ask once each, and wait.
fn clients(function: &TestFunction) -> Vec<JoinHandle<HttpReply>> {
    let address = function.local();
    (0..CLIENTS).map(|_| thread::spawn(move || client::get(address, "/", LIMIT).unwrap())).collect()
}

fn wait_failures(agent: &RunningAgent, name: &str, cause: &str) {
    let failed = agent.wait_function(name, "failing", LIMIT, |function| {
        function["failure"] == cause && function["failed_starts"].as_u64() >= Some(ATTEMPTS)
    });
    failed.unwrap();
}

fn all_served(clients: Vec<JoinHandle<HttpReply>>) {
    for client in clients {
        let reply = client.join().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
}

#[test]
fn a_port_that_was_busy_is_served_once_it_is_free() {
    if !ready(&[]) {
        return;
    }
    let function = fixture::function("plain", RUNTIME, "").unwrap();
    let squatter = TcpListener::bind(("0.0.0.0", function.port)).unwrap();
    let agent = AgentSetup::default().config(&function.text("late", &[])).start_unready().unwrap();
    let unready = agent.ask("GET", "/readyz").unwrap();
    assert!(unready.status == 503 && unready.body.contains("is in use"), "{}", unready.body);
    drop(squatter);
    agent.wait_log("served now", LIMIT).unwrap();
    function.rest(&agent, "late").unwrap();
    assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().body, fixture::ALIVE);
    assert_eq!(agent.ask("GET", "/readyz").unwrap().status, 200);
    assert_eq!(agent.log().matches("not served").count(), 1, "said once");
    assert!(agent.stop().unwrap().success());
}

/// With too few descriptors it would neither serve nor end.
#[test]
fn an_agent_refuses_to_start_with_fewer_descriptors_than_it_needs() {
    let files = Scratch::new("descriptors").unwrap();
    let (config, admin) = (files.path().join("few.toml"), free_port().unwrap());
    let text = format!(
        "[agent]\nadmin = \"{admin}\"\nstate_dir = {:?}\n[syn]\nlookup = false\npin_dir = \"/sys/fs/bpf/{}\"\n\
         [[function]]\nname = \"one\"\nlisten = \"127.0.0.1:0\"\nruntime = \"process\"\ncommand = [\"/bin/true\"]\n",
        files.path().join("state").display().to_string(),
        unique("pins"),
    );
    fs::write(&config, text.replace("127.0.0.1:0", &free_port().unwrap().to_string())).unwrap();
    let run = format!("ulimit -n 64; exec {:?} run --config {config:?}", binary().unwrap());
    let mut agent = ChildProcess::spawn(Command::new("bash").args(["-c", &run])).unwrap();
    assert_eq!(agent.wait(LIMIT).unwrap().code(), Some(1), "{}", agent.log());
    let said = agent.log();
    assert!(said.contains("descriptors, and 64 are allowed: raise the limit"), "{said}");
}
