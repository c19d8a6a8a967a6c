//! The admin address and the command line: what an operator sees.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use headstart_integration_tests::lab::client::{self, HttpReply};
use headstart_integration_tests::lab::leaks::{LeakWatch, Snapshot};
use headstart_integration_tests::lab::site::{LIMIT, STAGES, TOTALS, TestFunction};
use headstart_integration_tests::lab::{
    self, AgentSetup, Link, Namespace, PostgresServer, RunningAgent, Scratch, cli, fixture, free_port,
    privilege,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const RUNTIME: &str = "oci";

/// Every metric, as DESIGN.md promises them. A counter of what did not happen is there too, with 0:
/// an alert on what is absent never fires.
const METRICS: [(&str, &str); 19] = [
    ("headstart_syn_events_total", "counter"),
    ("headstart_syn_suppressed_total", "counter"),
    ("headstart_syn_lost_total", "counter"),
    ("headstart_syn_packets_total", "counter"),
    ("headstart_syn_sensor", "gauge"),
    ("headstart_syn_budget_spent_total", "counter"),
    ("headstart_decisions_total", "counter"),
    ("headstart_coldstart_stage_seconds", "histogram"),
    ("headstart_coldstart_seconds", "histogram"),
    ("headstart_coldstart_hidden_seconds", "histogram"),
    ("headstart_coldstart_exposed_seconds", "histogram"),
    ("headstart_coldstarts_total", "counter"),
    ("headstart_starts_unused_total", "counter"),
    ("headstart_inject_seconds", "histogram"),
    ("headstart_inject_refused_total", "counter"),
    ("headstart_pool_connections", "gauge"),
    ("headstart_pool_fallbacks_total", "counter"),
    ("headstart_pool_discards_total", "counter"),
    ("headstart_instances", "gauge"),
];

fn ready() -> bool {
    privilege::require_root("containers") && privilege::require_tools(&["runc"])
}

#[test]
fn the_pages_tell_of_a_cold_start() {
    if !ready() || !privilege::require_tools(&["/usr/lib/postgresql"]) {
        return;
    }
    let postgres = PostgresServer::on_loopback().unwrap();
    let function = TestFunction::example("orders", RUNTIME).unwrap();
    let agent = AgentSetup::default()
        .config(&backend(&postgres))
        .config(&function.text("orders", &["orders-db"]))
        .start()
        .unwrap();
    function.rest(&agent, "orders").unwrap();
    assert_eq!(page(&agent, "/healthz"), "ok\n");
    assert_eq!(page(&agent, "/readyz"), "ready\n");
    assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().status, 200);

    let start = cli::eventually("a complete timeline", LIMIT, || {
        let starts = agent.starts()?;
        let starts = starts.as_array().unwrap();
        assert!((1..=256).contains(&starts.len()), "{} timelines", starts.len());
        Ok(starts.last().filter(|start| !start["stages"]["first_response"].is_null()).cloned())
    })
    .unwrap();
    let stage = |name: &str| start["stages"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {start}"));
    let names: Vec<_> = STAGES.into_iter().chain(TOTALS).collect();
    let mut own: Vec<_> = start["stages"].as_object().unwrap().keys().map(String::as_str).collect();
    own.sort_by_key(|own| names.iter().position(|name| name == own));
    assert_eq!(own, names, "demo and benches name them as timelines do");
    for name in names {
        assert!((0.0..10.0).contains(&stage(name)), "{name}: {start}");
    }
    let sum: f64 = STAGES[..6].iter().map(|name| stage(name)).sum();
    assert!((sum - stage("total")).abs() < 1e-6, "the stages add up: {start}");
    assert_eq!(
        (&start["function"], &start["runtime"], &start["outcome"]),
        (&"orders".into(), &RUNTIME.into(), &"ready".into())
    );
    let line = agent.wait_log("cold start", LIMIT).unwrap();
    for name in STAGES {
        assert!(line.contains(&format!("{name}_ms=")), "{line}");
    }

    let metrics = agent.metrics().unwrap();
    for stage in STAGES {
        let labels = [("function", "orders"), ("runtime", RUNTIME), ("stage", stage)];
        assert_eq!(metrics.get("headstart_coldstart_stage_seconds_count", &labels), Some(1.0), "{stage}");
    }
    for state in ["idle", "connecting", "leased"] {
        let labels = [("backend", "orders-db"), ("state", state)];
        assert!(metrics.get("headstart_pool_connections", &labels).is_some(), "{state}");
    }
    assert_eq!(metrics.get("headstart_inject_seconds_count", &[("backend", "orders-db")]), Some(1.0));
    let buckets = metrics.find("headstart_coldstart_seconds_bucket", &[]);
    let bounds: Vec<_> = buckets.map(|bucket| bucket.labels["le"].clone()).collect();
    assert_eq!((bounds.first().unwrap().as_str(), bounds.last().unwrap().as_str()), ("0.00005", "+Inf"));
    assert!(bounds.contains(&"30".to_owned()), "{bounds:?}");

    let table = cli::headstart(&["status", "--admin", &agent.admin().to_string()]).unwrap();
    assert_eq!(table.code, Some(0), "{}", table.all);
    for word in ["FUNCTION", "STATE", "orders", RUNTIME, "ready", &function.port.to_string()] {
        assert!(table.stdout.contains(word), "{}", table.stdout);
    }
    let json = cli::headstart(&["status", "--json", "--admin", &agent.admin().to_string()]).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&json.stdout).unwrap()[0]["name"], "orders");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn every_promised_metric_is_there_after_one_cold_start() {
    if !ready() || !privilege::require_tools(&["ip"]) {
        return;
    }
    let site = Namespace::new("client").unwrap();
    let link = Link::connect(&site).unwrap();
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = backend.local_addr().unwrap();
    let backend = format!("[[backend]]\nname = \"upstream\"\nkind = \"tcp\"\naddress = \"{address}\"\n");
    let function = fixture::function("plain", RUNTIME, "").unwrap();
    let setup = AgentSetup::default().interface(link.host_if()).config(&backend);
    let agent = setup.config(&function.text("plain", &["upstream"])).start().unwrap();
    function.rest(&agent, "plain").unwrap();
    let target = link.host(function.port);
    assert_eq!(site.enter(|| client::get(target, "/", LIMIT)).unwrap().unwrap().status, 200);

    let text = page(&agent, "/metrics");
    let lacks: Vec<_> = METRICS
        .iter()
        .filter_map(|(name, kind)| Some(format!("{name}: {}", lack(&text, name, kind)?)))
        .collect();
    assert_eq!(lacks, Vec::<String>::new());
    assert!(agent.stop().unwrap().success());
}

#[test]
fn foreign_requests_and_mistakes_are_refused() {
    if !ready() {
        return;
    }
    let agent = AgentSetup::default().start().unwrap();
    let with = |header: &str| {
        let head = format!("GET /api/v1/functions HTTP/1.1\r\n{header}\r\nconnection: close\r\n\r\n");
        status_of(agent.admin(), &head)
    };
    assert_eq!(with(&format!("host: {}", agent.admin())), 200);
    assert_eq!(with(&format!("host: {}\r\norigin: http://{}", agent.admin(), agent.admin())), 403);
    assert_eq!(with(&format!("host: {}\r\norigin: null", agent.admin())), 403);
    assert_eq!(with("host: rebound.example:9464"), 403);

    let ask = |method, path| -> HttpReply { agent.ask(method, path).unwrap() };
    let unknown = ask("POST", "/api/v1/functions/nobody/wake");
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("nobody"), "{}", unknown.body);
    assert_eq!(ask("POST", "/api/v1/functions/nobody/stop").status, 404);
    assert_eq!(ask("GET", "/nothing").status, 404);
    assert_eq!(
        ask("GET", "/api/v1/functions/nobody/wake").status,
        405,
        "a page that is only looked at starts nothing"
    );
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_port_in_use_is_named_and_costs_only_its_function() {
    if !ready() {
        return;
    }
    let (taken, free) = (fixture::function("plain", RUNTIME, ""), fixture::function("plain", RUNTIME, ""));
    let (taken, free) = (taken.unwrap(), free.unwrap());
    let _squatter = TcpListener::bind(("0.0.0.0", taken.port)).unwrap();
    let files = Scratch::new("agent").unwrap();
    let admin = free_port().unwrap();
    let sections = taken.text("taken", &[]) + &free.text("free", &[]);
    let mut agent = cli::run(&files, &config(&files, admin, &sections)).unwrap();
    agent.wait_line("headstart is up", LIMIT).unwrap();

    let unready = client::get(admin, "/readyz", LIMIT).unwrap();
    assert_eq!(unready.status, 503);
    for word in ["taken: ", &taken.port.to_string(), "in use"] {
        assert!(unready.body.contains(word), "{}", unready.body);
    }
    assert!(!unready.body.contains("free"), "{}", unready.body);
    let shown: Value =
        serde_json::from_str(&client::get(admin, "/api/v1/functions", LIMIT).unwrap().body).unwrap();
    let row = shown.as_array().unwrap().iter().find(|row| row["name"] == "taken").unwrap().clone();
    assert_eq!(row["state"], "unavailable", "{row}");
    assert!(row["reason"].as_str().unwrap().contains("in use"), "{row}");
    let table = cli::headstart(&["status", "--admin", &admin.to_string()]).unwrap();
    assert!(table.stdout.contains("unavailable") && table.stdout.contains("in use"), "{}", table.stdout);
    let socket = files.path().join("state/admin.sock");
    let woken = client::request_at(&socket, "POST", "/api/v1/functions/taken/wake", LIMIT).unwrap();
    assert_eq!(woken.status, 404, "{}", woken.body);
    assert_eq!(client::get(free.local(), "/", LIMIT).unwrap().body, fixture::ALIVE);
    assert!(agent.stop(Signal::SIGTERM, LIMIT).unwrap().success());
}

#[test]
fn half_a_request_does_not_keep_the_agent_from_exiting() {
    if !ready() {
        return;
    }
    let agent = AgentSetup::default().start().unwrap();
    let mut half = TcpStream::connect(agent.admin()).unwrap();
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost: loc").unwrap();
    // It is accepted before this one.
    assert_eq!(page(&agent, "/healthz"), "ok\n");
    let from = Instant::now();
    assert!(agent.stop().unwrap().success());
    assert!(from.elapsed().as_secs() < 5, "{:?}", from.elapsed());
}

#[test]
fn an_agent_does_not_start_where_another_one_is() {
    if !ready() {
        return;
    }
    let agent = AgentSetup::default().start().unwrap();
    let files = Scratch::new("second").unwrap();
    // The same admin address.
    let mut second = cli::run(&files, &config(&files, agent.admin(), "")).unwrap();
    assert_eq!(second.wait(LIMIT).unwrap().code(), Some(1));
    let log = second.log();
    assert!(log.contains(&agent.admin().to_string()) && log.contains("choose another `admin`"), "{log}");
    // The same state directory.
    let text = config(&files, free_port().unwrap(), "")
        .replace(&files.path().join("state").display().to_string(), &agent.state_dir().display().to_string());
    let mut second = cli::run(&files, &text).unwrap();
    assert_eq!(second.wait(LIMIT).unwrap().code(), Some(1));
    let log = second.log();
    assert!(log.contains("another agent runs") && log.contains("state_dir"), "{log}");
    assert_eq!(page(&agent, "/readyz"), "ready\n");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn commands_say_what_is_wrong() {
    if !ready() {
        return;
    }
    let nobody = free_port().unwrap().to_string();
    let status = cli::headstart(&["status", "--admin", &nobody]).unwrap();
    assert_eq!((status.code, &*status.stdout), (Some(1), ""), "{}", status.all);
    assert!(status.all.contains(&nobody) && status.all.contains("is it running"), "{}", status.all);

    let files = Scratch::new("config").unwrap();
    let file = files.path().join("bad.toml");
    fs::write(
        &file,
        "[agent]\nadmim = \"127.0.0.1:1\"\n\n[[function]]\nname = \"Orders\"\nlisten = \"0.0.0.0:0\"\nruntime = \"oci\"\n",
    )
    .unwrap();
    let path = file.display().to_string();
    for command in ["check", "run"] {
        let said = cli::headstart(&[command, "--config", &path]).unwrap();
        assert_eq!(said.code, Some(2), "{command}: {}", said.all);
        for (line, key) in [(2, "agent.admim"), (5, "name"), (6, "listen"), (4, "rootfs"), (4, "command")] {
            let place = format!("{path}:{line}: ");
            let found = said.all.lines().any(|said| said.starts_with(&place) && said.contains(key));
            assert!(found, "{command} names {key} on line {line}:\n{}", said.all);
        }
    }
    // What only the host can tell.
    fs::write(
        &file,
        "[agent]\ninterfaces = [\"headstart-none\"]\n\n[[function]]\nname = \"orders\"\nlisten = \"0.0.0.0:8081\"\n\
         runtime = \"oci\"\nrootfs = \"/nowhere\"\ncommand = [\"/orders\"]\n",
    )
    .unwrap();
    let said = cli::headstart(&["check", "--config", &path]).unwrap();
    assert_eq!(said.code, Some(2), "{}", said.all);
    for (line, word) in [(2, "headstart-none"), (8, "/nowhere")] {
        let place = format!("{path}:{line}: ");
        assert!(said.all.lines().any(|said| said.starts_with(&place) && said.contains(word)), "{}", said.all);
    }
    fs::write(&file, "[agent]\n").unwrap();
    let said = cli::headstart(&["check", "--config", &path]).unwrap();
    assert_eq!(said.code, Some(0), "{}", said.all);
    let said = cli::headstart(&["run", "--config", "/nowhere.toml"]).unwrap();
    assert_eq!(said.code, Some(2), "{}", said.all);
    assert!(said.all.contains("/nowhere.toml"), "{}", said.all);
    assert_eq!(cli::headstart(&["walk"]).unwrap().code, Some(2));
}

#[test]
fn the_doctor_looks_at_everything() {
    if !ready() {
        return;
    }
    let said = cli::headstart(&["doctor"]).unwrap();
    assert_eq!(said.code, Some(0), "{}", said.all);
    for what in ["kernel", "xdp", "runc", "docker", "cgroups", "init"] {
        let line = said.stdout.lines().find(|line| line.split_whitespace().nth(1) == Some(what));
        let line = line.unwrap_or_else(|| panic!("no {what}:\n{}", said.stdout));
        assert!(line.starts_with("ok") || line.starts_with("missing"), "{line}");
    }
    assert!(said.stdout.contains("ok       xdp") && said.stdout.contains("ok       runc"), "{}", said.stdout);
}

/// Again and again, because the order in which the last tasks end is a matter of chance.
const ENDS: usize = 8;

#[test]
fn sigterm_ends_the_agent_and_all_it_made() {
    ends(|agent, name, function| {
        function.rest(agent, name).unwrap();
        assert_eq!(client::get(function.local(), "/", LIMIT).unwrap().status, 200);
    });
}

#[test]
fn sigterm_while_a_container_is_being_made_leaves_none() {
    ends(|_, _, _| {});
}

/// Starts an agent with one function, and ends it after `meanwhile`.
fn ends(meanwhile: impl Fn(&RunningAgent, &str, &TestFunction)) {
    if !ready() {
        return;
    }
    for _ in 0..ENDS {
        let name = lab::unique("ends");
        let function = fixture::function("plain", RUNTIME, "").unwrap();
        let agent = AgentSetup::default().config(&function.text(&name, &[])).start().unwrap();
        let watch = LeakWatch::default().name(&name).runc(agent.state_dir());
        let watch = watch.name(&agent.state_dir().display().to_string());
        meanwhile(&agent, &name, &function);

        let asked = Instant::now();
        kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), Signal::SIGTERM).unwrap();
        agent.wait_log(": stopped", LIMIT).unwrap();
        let log = agent.log();
        assert!(!log.contains("not everything stopped in time"), "{:?}: {log}", asked.elapsed());
        assert_eq!(watch.leaked_since(&Snapshot::default(), LIMIT / 6).unwrap(), Vec::<String>::new());
        let (admin, port) = (agent.admin(), function.port);
        assert_eq!(agent.stop().unwrap().code(), Some(0));
        assert!(TcpListener::bind(admin).is_ok() && TcpListener::bind(("0.0.0.0", port)).is_ok());
    }
}

fn page(agent: &RunningAgent, path: &str) -> String {
    let reply = agent.ask("GET", path).unwrap();
    assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    reply.body
}

/// What the text lacks of a metric: its meaning, its kind, or any sample.
fn lack(text: &str, name: &str, kind: &str) -> Option<&'static str> {
    let after = |start: String| text.lines().find_map(|line| line.strip_prefix(&start).map(str::to_owned));
    if after(format!("# HELP {name} ")).is_none_or(|help| help.len() <= 10) {
        return Some("no help");
    }
    if after(format!("# TYPE {name} ")).is_none_or(|shown| shown != kind) {
        return Some("no type, or another one");
    }
    (!text.lines().any(|line| line.starts_with(name))).then_some("no sample")
}

/// The status of the answer to a request that is sent as it is.
fn status_of(address: SocketAddr, head: &str) -> u16 {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

/// A configuration whose state directory is in `files`.
fn config(files: &Scratch, admin: SocketAddr, sections: &str) -> String {
    let state = files.path().join("state");
    format!("[agent]\nadmin = \"{admin}\"\nstate_dir = {state:?}\n\n{sections}")
}

fn backend(postgres: &PostgresServer) -> String {
    format!(
        "[[backend]]\nname = \"orders-db\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = \"{}\"\n\
         password_file = {:?}\npool = {{ min_idle = 2, max = 8 }}\n",
        postgres.address(),
        PostgresServer::USER,
        PostgresServer::DATABASE,
        postgres.password_file().unwrap(),
    )
}
