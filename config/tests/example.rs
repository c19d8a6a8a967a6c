//! The files that are installed beside the binary agree with the parser.

use std::collections::{BTreeMap, BTreeSet};

use headstart_config::{Config, DockerNetwork, Interfaces, MAX_FUNCTIONS, RequireAuth, Runtime};

const EXAMPLE: &str = include_str!("../headstart.example.toml");
const DASHBOARD: &str = include_str!("../dashboards/coldstart.json");
const SERVICE: &str = include_str!("../headstart.service");

/// The metrics of the design, which the dashboard may use.
const METRICS: [&str; 15] = [
    "headstart_syn_packets_total",
    "headstart_syn_events_total",
    "headstart_syn_suppressed_total",
    "headstart_syn_lost_total",
    "headstart_decisions_total",
    "headstart_coldstart_stage_seconds",
    "headstart_coldstart_seconds",
    "headstart_coldstart_hidden_seconds",
    "headstart_coldstart_exposed_seconds",
    "headstart_coldstarts_total",
    "headstart_starts_unused_total",
    "headstart_inject_seconds",
    "headstart_pool_connections",
    "headstart_pool_fallbacks_total",
    "headstart_instances",
];

#[test]
fn the_example_has_no_problem() {
    let config = Config::parse("headstart.example.toml", EXAMPLE).unwrap();
    assert_eq!(config.agent.interfaces, Interfaces::Named(vec!["eth0".to_owned()]));
    assert_eq!(config.backends.len(), 2);
    assert_eq!(config.function("orders").unwrap().memory_bytes, 128 << 20);
    let docker = Runtime::Docker {
        image: "thumbnails:1".to_owned(),
        network: DockerNetwork::None,
        user: "65534:65534".to_owned(),
    };
    assert_eq!(config.function("thumbnails").unwrap().runtime, docker);
}

/// Asks the parser for the keys of each section by a key that is far from all of them.
#[test]
fn the_example_has_every_key_that_the_parser_knows() {
    let probe = "0 = 0\n[agent]\n0 = 0\n[syn]\n0 = 0\nevents = { 0 = 0 }\n\
                 starts = { 0 = 0, function = { 0 = 0 }, global = { 0 = 0 }, allow = { 0 = 0 } }\n\
                 [[backend]]\n0 = 0\npool = { 0 = 0 }\ntls = { 0 = 0 }\n[[function]]\n0 = 0\nmounts = [{ 0 = 0 }]\nsecrets = [{ 0 = 0 }]\n[[front]]\n0 = 0\n";
    let errors = Config::parse("probe", probe).unwrap_err();
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for problem in errors.problems() {
        if let Some(keys) = problem.message.strip_prefix("unknown key; the keys here are ") {
            let section = problem.key.trim_end_matches('0').replace("[0]", "");
            known.insert(section, keys.split(", ").map(str::to_owned).collect());
        }
    }

    let mut written: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    collect("", &EXAMPLE.parse().unwrap(), &mut written);
    written.remove("function.env.").expect("the keys under env are the user's own");
    assert_eq!(known, written);
}

/// The keys of every table in `table`, by section as `backend.pool.`.
fn collect(section: &str, table: &toml::Table, keys: &mut BTreeMap<String, BTreeSet<String>>) {
    for (key, value) in table {
        keys.entry(section.to_owned()).or_default().insert(key.clone());
        let inner = format!("{section}{key}.");
        let tables = value.as_array().map(Vec::as_slice).unwrap_or(std::slice::from_ref(value));
        for table in tables.iter().filter_map(toml::Value::as_table) {
            collect(&inner, table, keys);
        }
    }
}

#[test]
fn what_the_example_calls_a_default_is_one() {
    let config = Config::parse("example", EXAMPLE).unwrap();
    let (orders, echo) = (config.function("orders").unwrap(), config.function("echo").unwrap());
    let defaults = |f: &headstart_config::Function| {
        (f.prepared, f.memory_bytes, f.pids, f.init_timeout, f.stop_grace, f.backlog, f.retry_max)
    };
    assert_eq!(defaults(orders), defaults(echo));
    let scale = |f: &headstart_config::Function| {
        (f.concurrency, f.min_ready, f.max_instances, f.queue_timeout, f.overload)
    };
    assert_eq!(scale(orders), scale(echo));
    let rest = |f: &headstart_config::Function| {
        (f.freeze_after, f.stop_after, f.freeze_backends, f.start_attempts, f.cooldown)
    };
    assert_eq!(rest(orders), rest(echo));
    let backends =
        |f: &headstart_config::Function| (f.backend_sockets, f.backend_ports.clone(), f.tls_hand_over);
    assert_eq!(backends(orders), backends(echo));
    let default = headstart_config::Pool::default();
    let pool = headstart_config::Pool { server_max: Some(90), max_per_function: Some(16), ..default };
    assert_eq!(config.backend("orders-db").unwrap().pool, pool);

    assert_eq!((orders.require_auth, echo.id, echo.require_auth), (RequireAuth::No, None, RequireAuth::No));

    let empty = Config::parse("empty", "").unwrap();
    let (syn, written) = (empty.syn, &config.syn);
    assert_eq!((&syn.pin_dir, syn.lookup), (&written.pin_dir, written.lookup));
    assert_eq!((syn.knock_opens, syn.unused_after), (written.knock_opens, written.unused_after));
    assert_eq!((syn.events, syn.starts), (written.events, written.starts));

    let empty = empty.agent;
    assert_eq!(empty.interfaces, Interfaces::Named(Vec::new()));
    assert_eq!((empty.admin, empty.log), (config.agent.admin, config.agent.log));
    assert_eq!((empty.state_dir, empty.runc), (config.agent.state_dir, config.agent.runc));
    assert_eq!(empty.docker_socket, config.agent.docker_socket);
    assert_eq!((empty.data_threads >= 1, config.agent.data_threads), (true, 1));
}

#[test]
fn the_dashboard_uses_metrics_that_exist() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let mut used = BTreeSet::new();
    for expression in targets.map(|target| target["expr"].as_str().unwrap()) {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names = words.filter(|word| word.starts_with("headstart_"));
        used.extend(
            names.map(|name| ["_bucket", "_sum", "_count"].iter().fold(name, |n, s| n.trim_end_matches(s))),
        );
    }
    let unknown: Vec<_> = used.iter().filter(|name| !METRICS.contains(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    for needed in [
        "headstart_coldstart_stage_seconds",
        "headstart_coldstart_hidden_seconds",
        "headstart_pool_connections",
    ] {
        assert!(used.contains(needed), "{needed} has no panel");
    }
    let mut ids: Vec<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), panels.len(), "panel ids are unique");
}

#[test]
fn the_service_runs_the_agent() {
    for line in [
        "ExecStart=/usr/local/bin/headstart run --config /etc/headstart/headstart.toml",
        "LimitMEMLOCK=infinity",
        "ExecReload=/usr/local/bin/headstart reload --admin /run/headstart/admin.sock",
        "Type=notify",
        "NotifyAccess=main",
        "KillMode=process",
        "Restart=on-failure",
        "WatchdogSec=10s",
    ] {
        assert!(SERVICE.lines().any(|other| other == line), "{line}");
    }
    // Whatever a line says of the mount table or of capabilities must leave the pinned programs writable, and
    // root's powers to those who need them.
    let names = SERVICE.lines().filter_map(|line| Some(line.split_once('=')?.0));
    for absent in ["AmbientCapabilities", "ProtectKernelTunables", "PrivateUsers", "DynamicUser"] {
        assert!(!names.clone().any(|name| name == absent), "{absent}");
    }
    let stored = SERVICE.lines().find_map(|line| line.strip_prefix("FileDescriptorStoreMax=")).unwrap();
    assert!(
        stored.parse::<usize>().unwrap() >= 3 * MAX_FUNCTIONS,
        "one socket for each function, and two descriptors for an instance of it"
    );
}
