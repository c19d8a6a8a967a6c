//! `inject`: sessions are born with an instance and die with it, secrets stay in the agent, and a
//! function that breaks the protocol harms only itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use headstart_integration_tests::lab::client::{self, HttpReply};
use headstart_integration_tests::lab::leaks::LeakWatch;
use headstart_integration_tests::lab::site::{LIMIT, TestFunction};
use headstart_integration_tests::lab::{
    AgentSetup, ChildProcess, PostgresServer, PostgresSetup, RunningAgent, Scratch, cli, fixture, free_port,
    privilege,
};
use serde_json::Value;

const RUNTIME: &str = "oci";
const MIN_IDLE: usize = 2;
const POOL: &str = "{ min_idle = 2, max = 8, wait = \"200ms\", backoff_max = \"100ms\" }";

/// Connections of the application's user that the server knows of.
const SESSIONS: &str = "select count(*) from pg_stat_activity where usename = 'app'";

fn ready() -> bool {
    privilege::require_root("containers and PostgreSQL")
        && privilege::require_tools(&["runc", "/usr/lib/postgresql"])
}

#[test]
fn a_session_belongs_to_one_instance_and_goes_with_it() {
    if !ready() {
        return;
    }
    let postgres = PostgresServer::on_loopback().unwrap();
    let function = TestFunction::example("orders", RUNTIME).unwrap();
    let setup = AgentSetup::default().config(&backend(&postgres, &postgres.password_file().unwrap()));
    let agent = setup.config(&function.text("orders", &["orders-db"])).start().unwrap();
    wait_sessions(&postgres, MIN_IDLE);

    let mut sessions = Vec::new();
    for _ in 0..2 {
        function.rest(&agent, "orders").unwrap();
        let first = session(&function);
        assert_eq!(session(&function), first, "an instance keeps its session");
        // The one that is held, and the pool that was filled up again.
        wait_sessions(&postgres, MIN_IDLE + 1);
        assert_eq!(
            postgres.sql(&format!("select usename from pg_stat_activity where pid = {first}")).unwrap(),
            "app"
        );
        sessions.push(first);
        agent.stop_function("orders").unwrap();
        wait_sessions(&postgres, MIN_IDLE);
    }
    assert_ne!(sessions[0], sessions[1], "a session is never handed on");
    assert!(agent.stop().unwrap().success());
    wait_sessions(&postgres, 0);
}

/// What speaks TLS: the agent, or the function or its kernel in a session that the agent began.
#[test]
fn a_session_travels_in_tls_and_ends_with_its_instance() {
    if !ready() {
        return;
    }
    let postgres = PostgresSetup::default().tls().start().unwrap();
    for handed_over in [false, true] {
        let mut function = TestFunction::example("orders", RUNTIME).unwrap();
        function.keys = format!("tls_hand_over = {handed_over}\n");
        let backend = backend(&postgres, &postgres.password_file().unwrap());
        let tls = format!("tls = {{ ca_file = {:?} }}\n", postgres.ca_file());
        let setup = AgentSetup::default().config(&format!("{backend}{tls}"));
        let agent = setup.config(&function.text("orders", &["orders-db"])).start().unwrap();
        wait_sessions(&postgres, MIN_IDLE);
        function.rest(&agent, "orders").unwrap();
        let first = session(&function);
        assert_eq!(session(&function), first);
        let encrypted = format!("select count(*) from pg_stat_ssl where ssl and pid = {first}");
        assert_eq!(postgres.admin_sql(&encrypted).unwrap(), "1");
        let protocols = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp").unwrap();
        let in_kernel = handed_over && protocols.contains("tls");
        let who = format!("tls_handed_over={handed_over} tls_in_kernel={in_kernel}");
        agent.wait_log(&who, LIMIT).unwrap();
        wait_sessions(&postgres, MIN_IDLE + 1);
        agent.stop_function("orders").unwrap();
        wait_sessions(&postgres, MIN_IDLE);
        assert!(agent.stop().unwrap().success());
        wait_sessions(&postgres, 0);
    }
}

/// The function has the keys of its own session as they are, and not what others are made of.
#[test]
fn traffic_secrets_stay_in_the_agent() {
    if !ready() {
        return;
    }
    let files = Scratch::new("openssl").unwrap();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(files.path().join("cert.pem"), certified.cert.pem()).unwrap();
    fs::write(files.path().join("key.pem"), certified.signing_key.serialize_pem()).unwrap();
    let port = free_port().unwrap().port();
    // It answers each line with its letters in reverse order.
    let mut server = Command::new("openssl");
    server.args([
        "s_server",
        "-rev",
        "-tls1_3",
        "-cert",
        "cert.pem",
        "-key",
        "key.pem",
        "-keylogfile",
        "secrets",
    ]);
    server.args(["-accept", &format!("127.0.0.1:{port}")]).current_dir(files.path());
    let _server = ChildProcess::spawn(&mut server).unwrap();

    let mut function = TestFunction::example("echo", RUNTIME).unwrap();
    function.keys = "tls_hand_over = true\n".to_owned();
    let backend = format!(
        "[[backend]]\nname = \"upstream\"\nkind = \"tls\"\naddress = \"127.0.0.1:{port}\"\n\
         tls = {{ ca_file = {:?}, server_name = \"localhost\" }}\npool = {{ min_idle = 1, max = 1 }}\n",
        files.path().join("cert.pem")
    );
    let setup = AgentSetup::default().config(&backend).config(&function.text("echo", &["upstream"]));
    let agent = setup.variable("RUST_LOG", "trace").start().unwrap();
    function.rest(&agent, "echo").unwrap();
    let mut client = TcpStream::connect(function.local()).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(b"stressed\n").unwrap();
    let mut answer = [0; 9];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"desserts\n");
    agent.wait_log("tls_handed_over=true", LIMIT).unwrap();

    let secrets: Vec<(String, Vec<u8>)> = fs::read_to_string(files.path().join("secrets"))
        .unwrap()
        .lines()
        .filter(|line| line.contains("_TRAFFIC_SECRET_0 "))
        .map(|line| (line.to_owned(), hex::decode(line.rsplit(' ').next().unwrap()).unwrap()))
        .collect();
    assert_eq!(secrets.len(), 2, "one of each side");
    let process = children(agent.id()).into_iter().find(|process| {
        fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim() == "echo")
    });
    let process = process.expect("the function is a child of the agent");
    for (line, secret) in &secrets {
        assert!(remembers(agent.id(), secret), "the agent keeps {line}");
        assert!(!remembers(process, secret), "the function has {line}");
        let text = line.rsplit(' ').next().unwrap();
        assert_hidden(&agent, &[text]);
    }
    drop(client);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_database_may_come_later_than_the_agent() {
    if !ready() {
        return;
    }
    let mut postgres = PostgresServer::on_loopback().unwrap();
    let setup = AgentSetup::default().config(&backend(&postgres, &postgres.password_file().unwrap()));
    postgres.stop().unwrap();
    let function = TestFunction::example("orders", RUNTIME).unwrap();
    let agent = setup.config(&function.text("orders", &["orders-db"])).start().unwrap();
    assert_eq!(agent.ask("GET", "/readyz").unwrap().status, 200);
    let shown = wait_backend(&agent, "an error", |backend| !backend["last_error"].is_null());
    assert_eq!(shown["idle"], 0, "{shown}");
    let error = shown["last_error"].as_str().unwrap();
    assert!(error.contains("orders-db") && error.contains(&postgres.address().to_string()), "{error}");

    postgres.start().unwrap();
    let shown = wait_backend(&agent, "a full pool", |backend| backend["idle"] == MIN_IDLE);
    assert!(shown["last_error"].is_null(), "{shown}");
    session(&function);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_wrong_password_is_reported_without_being_shown() {
    if !ready() {
        return;
    }
    const WRONG: &str = "wr0ng-battery-staple";
    let postgres = PostgresServer::on_loopback().unwrap();
    let files = Scratch::new("wrong").unwrap();
    let password = files.path().join("password");
    fs::write(&password, WRONG).unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let function = TestFunction::example("orders", RUNTIME).unwrap();
    let setup = AgentSetup::default().config(&backend(&postgres, &password)).variable("RUST_LOG", "debug");
    let agent = setup.config(&function.text("orders", &["orders-db"])).start().unwrap();

    let shown = wait_backend(&agent, "an error", |backend| !backend["last_error"].is_null());
    let error = shown["last_error"].as_str().unwrap();
    assert!(error.contains("password authentication failed"), "{error}");
    assert!(error.contains("orders-db"), "{error}");
    let line = agent.wait_log("password authentication failed", LIMIT).unwrap();
    assert!(line.contains("orders-db") && line.contains("WARN"), "{line}");
    // A function that is started all the same is told, and tells.
    function.rest(&agent, "orders").unwrap();
    assert_eq!(agent.ask("POST", "/api/v1/functions/orders/wake").unwrap().status, 202);
    agent.wait_log("no connection for an instance", LIMIT).unwrap();
    assert_hidden(&agent, &[WRONG, PostgresServer::PASSWORD]);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn the_password_appears_nowhere() {
    if !ready() {
        return;
    }
    let postgres = PostgresServer::on_loopback().unwrap();
    let function = TestFunction::example("orders", RUNTIME).unwrap();
    let setup = AgentSetup::default().config(&backend(&postgres, &postgres.password_file().unwrap()));
    let setup = setup.config(&function.text("orders", &["orders-db"])).variable("RUST_LOG", "trace");
    let agent = setup.start().unwrap();
    function.rest(&agent, "orders").unwrap();
    session(&function);
    let state = agent.wait_state("orders", "ready", LIMIT).unwrap();
    assert_eq!(state["instances"], 1);

    assert_hidden(&agent, &[PostgresServer::PASSWORD]);
    // Nor does the function know it.
    let mut functions = 0;
    for process in children(agent.id()) {
        // The agent's own helpers come and go while this reads.
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        if name.trim() == "orders" {
            functions += 1;
            assert_unknown_to(process, PostgresServer::PASSWORD);
            assert!(remembers(process, b"orders"), "its own name is in its memory");
            assert!(!remembers(process, PostgresServer::PASSWORD.as_bytes()), "memory of {process}");
        }
    }
    assert_eq!(functions, 1, "the function is a child of the agent");
    assert_unknown_to(agent.id(), PostgresServer::PASSWORD);
    assert!(agent.stop().unwrap().success());
}

/// A mode of the fixture, and the reason under which the agent refuses it. Where the kernel keeps descriptors away from the
/// agent (Linux 6.16), the fixture breaks the order instead.
const ATTACKS: [&str; 8] =
    ["header", "oversized", "version", "body", "out_of_order", "descriptors", "not_configured", "too_many"];

#[test]
fn a_container_that_breaks_the_protocol_harms_only_itself() {
    attacks("oci");
}

#[test]
fn a_process_that_breaks_the_protocol_harms_only_itself() {
    attacks("process");
}

/// From Linux 6.16 on functions cannot send descriptors to the agent.
fn kernel_keeps_descriptors_away() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(16))
}

fn attacks(runtime: &str) {
    if !ready() {
        return;
    }
    let postgres = PostgresServer::on_loopback().unwrap();
    let password = postgres.password_file().unwrap();
    // What the attackers make the pool open beyond its usual size is closed when it is this old.
    let orders = backend(&postgres, &password).replace("max = 8", "max = 8, ttl = \"1s\"");
    let secrets = orders.replace("orders-db", "secrets");
    let neighbour = TestFunction::example("orders", runtime).unwrap();
    let mut setup = AgentSetup::default()
        .config(&orders)
        .config(&secrets)
        .config(&neighbour.text("neighbour", &["orders-db"]));
    let mut hostile = Vec::new();
    for mode in ATTACKS {
        let function = fixture::function(mode, runtime, "").unwrap();
        setup = setup.config(&function.text(&mode.replace('_', "-"), &["orders-db"]));
        hostile.push((mode, function));
    }
    let agent = setup.start().unwrap();
    for (mode, function) in &hostile {
        function.rest(&agent, &mode.replace('_', "-")).unwrap();
    }
    neighbour.rest(&agent, "neighbour").unwrap();
    let own = session(&neighbour);
    wait_backend(&agent, "a full pool", |backend| backend["idle"] == MIN_IDLE && backend["leased"] == 1);
    let parked = |function: &Value| function["state"] == "ready" && function["prepared"] == 1;
    agent.wait_function("neighbour", "ready, with another parked", LIMIT, parked).unwrap();
    let descriptors = LeakWatch::default().process(agent.id());
    let before = descriptors.snapshot().unwrap();

    let mut reasons = Vec::new();
    for (mode, function) in &hostile {
        let name = mode.replace('_', "-");
        let kept_away = *mode == "descriptors" && kernel_keeps_descriptors_away();
        let reason = if kept_away { "out_of_order" } else { mode };
        reasons.push(reason);
        let times = reasons.iter().filter(|other| **other == reason).count();
        let wake = agent.ask("POST", &format!("/api/v1/functions/{name}/wake")).unwrap();
        assert_eq!(wake.status, 202, "{mode}: {}", wake.body);
        // Before it was ready: the instance is ended, and that start has failed.
        let refused = cli::eventually("a line about it", LIMIT, || {
            let log = agent.log();
            let mut lines = log.lines().filter(|line| line.contains("control socket closed"));
            Ok(lines.find(|line| line.contains(&format!("\"{name}\""))).map(str::to_owned))
        });
        let refused = refused.unwrap_or_else(|error| panic!("{mode}: {error:#}\n{}", agent.log()));
        assert!(refused.contains("WARN") && refused.contains(&format!("reason=\"{reason}\"")), "{refused}");
        assert_eq!(session(&neighbour), own, "{mode}");
        function.rest(&agent, &name).unwrap();
        let metrics = agent.metrics().unwrap();
        assert_eq!(
            metrics.get("headstart_inject_refused_total", &[("reason", reason)]),
            Some(times as f64),
            "{mode}"
        );
        let failed = [("function", &*name), ("outcome", "failed")];
        assert_eq!(metrics.get("headstart_coldstarts_total", &failed), Some(1.0), "{mode}");
        assert_eq!(session(&neighbour), own, "{mode}");
    }

    // What they took is given back, on both sides.
    wait_backend(&agent, "a full pool", |backend| backend["idle"] == MIN_IDLE && backend["leased"] == 1);
    wait_sessions(&postgres, MIN_IDLE * 2 + 1);
    assert_eq!(descriptors.leaked_since(&before, LIMIT).unwrap(), Vec::<String>::new());
    // A neighbour that has to start is served too.
    neighbour.cool(&agent, "neighbour").unwrap();
    assert_ne!(session(&neighbour), own);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn an_instance_that_breaks_the_protocol_while_it_serves_loses_only_its_control_socket() {
    if !ready() {
        return;
    }
    let function = fixture::function("late", RUNTIME, "").unwrap();
    let agent = AgentSetup::default().config(&function.text("late", &[])).start().unwrap();
    function.rest(&agent, "late").unwrap();
    assert_eq!(get(&function, "/").body, fixture::ALIVE);
    let line = agent.wait_log("control socket closed", LIMIT).unwrap();
    assert!(line.contains("reason=\"header\""), "{line}");
    assert_eq!(get(&function, "/").body, fixture::ALIVE);
    assert_eq!(agent.wait_state("late", "ready", LIMIT).unwrap()["instances"], 1);
    function.cool(&agent, "late").unwrap();
    assert!(agent.stop().unwrap().success());
}

/// The backend `orders-db`.
fn backend(postgres: &PostgresServer, password: &Path) -> String {
    format!(
        "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\n\
         database = \"{}\"\npassword_file = {password:?}\npool = {POOL}\n",
        postgres.address(),
        PostgresServer::USER,
        PostgresServer::DATABASE,
    )
}

fn get(function: &TestFunction, path: &str) -> HttpReply {
    client::get(function.local(), path, LIMIT).unwrap()
}

/// The server process behind the function's session.
fn session(function: &TestFunction) -> i64 {
    let reply = get(function, "/");
    assert_eq!(reply.status, 200, "{}", reply.body);
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(body["answer"], 42, "{body}");
    body["backend_pid"].as_i64().unwrap()
}

/// Waits until the server has exactly so many sessions of the application's user.
fn wait_sessions(postgres: &PostgresServer, wanted: usize) {
    let mut last = String::new();
    let seen = cli::eventually("the sessions of the server", LIMIT, || {
        last = postgres.admin_sql(SESSIONS)?;
        Ok((last == wanted.to_string()).then_some(()))
    });
    seen.unwrap_or_else(|error| panic!("{last} instead of {wanted}: {error:#}"));
}

/// Waits until `orders-db` is as wanted, and returns how the API shows it.
fn wait_backend(agent: &RunningAgent, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let seen = cli::eventually(what, LIMIT, || {
        let all: Value = serde_json::from_str(&agent.ask("GET", "/api/v1/backends")?.body)?;
        last = all[0].clone();
        assert_eq!(last["backend"], "orders-db");
        Ok(wanted(&last).then(|| last.clone()))
    });
    seen.unwrap_or_else(|error| panic!("{error:#}: {last}\n{}", agent.log()))
}

/// Neither the log nor any page shows one of the secrets.
fn assert_hidden(agent: &RunningAgent, secrets: &[&str]) {
    let mut shown = vec![("the log".to_owned(), agent.log())];
    for path in ["/metrics", "/readyz", "/healthz", "/api/v1/backends", "/api/v1/functions", "/api/v1/starts"]
    {
        shown.push((path.to_owned(), agent.ask("GET", path).unwrap().body));
    }
    for (place, text) in shown {
        assert!(!text.is_empty(), "{place} is empty");
        for secret in secrets {
            assert!(!text.contains(secret), "{place} shows {secret}");
        }
    }
}

fn assert_unknown_to(process: u32, secret: &str) {
    for file in ["environ", "cmdline"] {
        let bytes = fs::read(format!("/proc/{process}/{file}")).unwrap();
        assert!(!bytes.is_empty() || file == "environ", "{file} of {process} can be read");
        assert!(!String::from_utf8_lossy(&bytes).contains(secret), "{file} of {process}");
    }
}

/// Whether these bytes are anywhere in the memory of a process that it can read itself (proc(5), `maps` and `mem`).
fn remembers(process: u32, secret: &[u8]) -> bool {
    let memory = fs::File::open(format!("/proc/{process}/mem")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let address = |hexadecimal| u64::from_str_radix(hexadecimal, 16).unwrap();
    maps.lines().any(|line| {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        let (start, end) = range.split_once('-').unwrap();
        let mut bytes = vec![0; usize::try_from(address(end) - address(start)).unwrap()];
        // The kernel's own pages cannot be read through `mem`.
        rights.starts_with('r')
            && !line.ends_with("[vvar]")
            && memory.read_exact_at(&mut bytes, address(start)).is_ok()
            && bytes.windows(secret.len()).any(|window| window == secret)
    })
}

/// The processes directly below `parent`.
fn children(parent: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .unwrap()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}
