//! What counts as a change, for an agent that reads its file again and for one that takes over instances.

use std::collections::BTreeSet;

use headstart_config::Config;

/// A function and its backends, each key on a line of its own.
const BEFORE: &str = r#"
[[backend]]
name = "db"
kind = "postgres"
address = "10.0.0.5:5432"
user = "app"
database = "orders"
password_file = "/etc/db"
application_name = "headstart"
tls = { server_name = "db", ca_file = "/etc/ca" }
pool = { max = 8 }

[[backend]]
name = "cache"
kind = "tcp"
address = "unix:/run/cache"

[[function]]
name = "orders"
id = 1
listen = "[::]:81"
require_auth = false
runtime = "oci"
rootfs = "/srv/orders"
command = ["/orders", "--quiet"]
env = { A = "x", B = "y" }
backends = ["db", "cache"]
prepared = 1
memory = "128MiB"
pids = 64
init_timeout = "30s"
stop_grace = "10s"
backlog = 1024
retry_max = "30s"
concurrency = "unlimited"
min_ready = 0
max_instances = 16
queue_timeout = "30s"
overload = "http-503"
standby = 0
freeze_after = false
stop_after = "15m"
freeze_backends = "keep"
backend_sockets = false
backend_ports = {}
tls_hand_over = false
start_attempts = 3
cooldown = "30s"

[syn]
key_file = "/etc/keys"

[[front]]
name = "public"
listen = "[::]:80"
"#;

const LAMBDA: &str = r#"concurrency = "unlimited"
min_ready = 0
max_instances = 16
queue_timeout = "30s"
overload = "http-503"
standby = 0
freeze_after = false
stop_after = "15m"
freeze_backends = "keep"
backend_sockets = false"#;

const PORT: &str = "backend_sockets = false";

const NO_SOCKETS: &str = "backend_sockets = false\nbackend_ports = {}";

/// What instances depend on: a line, and another in its place.
const COUNTS: [(&str, &str); 50] = [
    ("name = \"orders\"", "name = \"sales\""),
    ("runtime = \"oci\"\nrootfs = \"/srv/orders\"", "runtime = \"process\""),
    ("runtime = \"oci\"\nrootfs = \"/srv/orders\"", "runtime = \"docker\"\nimage = \"/srv/orders\""),
    ("rootfs = \"/srv/orders\"", "rootfs = \"/srv/order\""),
    ("command = [\"/orders\", \"--quiet\"]", "command = [\"/orders\", \"--quie\", \"t\"]"),
    ("env = { A = \"x\", B = \"y\" }", "env = { A = \"x\", B = \"z\" }"),
    ("env = { A = \"x\", B = \"y\" }", "env = { A = \"x\", C = \"y\" }"),
    ("backends = [\"db\", \"cache\"]", "backends = [\"db\"]"),
    ("backends = [\"db\", \"cache\"]", "backends = [\"cache\", \"db\"]"),
    ("memory = \"128MiB\"", "memory = \"129MiB\""),
    ("pids = 64", "pids = 65"),
    ("pids = 64", "pids = 64\ncpu = \"0.5\""),
    ("pids = 64", "pids = 64\ncpu_weight = 10"),
    ("pids = 64", "pids = 64\nio_weight = 10"),
    ("pids = 64", "pids = 64\nmounts = [{ source = \"/a\", target = \"/b\" }]"),
    ("pids = 64", "pids = 64\nmounts = [{ source = \"/a\", target = \"/c\" }]"),
    ("pids = 64", "pids = 64\nmounts = [{ source = \"/a\", target = \"/b\", read_only = false }]"),
    ("pids = 64", "pids = 64\nsecrets = [{ file = \"/a\", name = \"b\" }]"),
    ("pids = 64", "pids = 64\nsecrets = [{ file = \"/a\", name = \"c\" }]"),
    ("concurrency = \"unlimited\"", "concurrency = 1"),
    ("freeze_backends = \"keep\"", "freeze_backends = \"return\""),
    ("backend_sockets = false", "backend_sockets = true"),
    (NO_SOCKETS, "backend_sockets = true\nbackend_ports = { db = 5432 }"),
    (NO_SOCKETS, "backend_sockets = true\nbackend_ports = { db = 5433 }"),
    (NO_SOCKETS, "backend_sockets = true\nbackend_ports = { cache = 5432 }"),
    ("tls_hand_over = false", "tls_hand_over = true"),
    (PORT, "backend_sockets = true\ncontract = \"port\"\nport = 80"),
    (PORT, "backend_sockets = true\ncontract = \"port\"\nport = 81"),
    (PORT, "backend_sockets = true\ncontract = \"listen-fds\""),
    (PORT, "backend_sockets = true\ncontract = \"listen-fds\"\nstop_signal = \"SIGQUIT\""),
    (LAMBDA, "backend_sockets = true\nconcurrency = 1\ncontract = \"lambda\"\ntimeout = \"3s\""),
    (LAMBDA, "backend_sockets = true\nconcurrency = 1\ncontract = \"lambda\"\ntimeout = \"4s\""),
    (LAMBDA, "backend_sockets = true\nconcurrency = 1\ncontract = \"lambda\"\nhandler = \"app.handler\""),
    ("pids = 64", "pids = 64\nworkdir = \"/srv\""),
    ("pids = 64", "pids = 64\nwritable = \"1MiB\""),
    ("pids = 64", "pids = 64\nwritable = \"2MiB\""),
    ("address = \"10.0.0.5:5432\"", "address = \"10.0.0.5:543\""),
    ("kind = \"tcp\"", "kind = \"postgres\"\nuser = \"u\""),
    ("user = \"app\"", "user = \"root\""),
    ("database = \"orders\"", "database = \"order\""),
    ("password_file = \"/etc/db\"", "password_file = \"/etc/bd\""),
    ("password_file = \"/etc/db\"", ""),
    ("application_name = \"headstart\"", ""),
    ("application_name = \"headstart\"", "application_name = \"headstart\"\nwarm_up = [\"select 1\"]"),
    ("application_name = \"headstart\"", "application_name = \"headstart\"\nwarm_up = [\"select 2\"]"),
    ("tls = { server_name = \"db\", ca_file = \"/etc/ca\" }", ""),
    ("tls = { server_name = \"db\", ca_file = \"/etc/ca\" }", "tls = true"),
    ("server_name = \"db\"", "server_name = \"bd\""),
    ("ca_file = \"/etc/ca\"", "cert_file = \"/etc/ca\", key_file = \"/etc/key\""),
    ("freeze_after = false", "freeze_after = \"1s\"\nhibernate_after = \"2s\""),
];

/// What only the agent's decisions depend on.
const DOES_NOT_COUNT: [(&str, &str); 20] = [
    ("id = 1", "id = 2"),
    ("listen = \"[::]:81\"", "listen = \"[::]:82\""),
    ("require_auth = false", "require_auth = false\nhosts = [\"a.example\"]"),
    ("require_auth = false", "require_auth = false\nhosts = [\"a.example\"]\npaths = [\"/a\"]"),
    ("require_auth = false", "require_auth = \"wake\""),
    ("prepared = 1", "prepared = 2"),
    ("init_timeout = \"30s\"", "init_timeout = \"31s\""),
    ("stop_grace = \"10s\"", "stop_grace = \"11s\""),
    ("backlog = 1024", "backlog = 1023"),
    ("retry_max = \"30s\"", "retry_max = \"31s\""),
    ("min_ready = 0", "min_ready = 1"),
    ("max_instances = 16", "max_instances = 0"),
    ("queue_timeout = \"30s\"", "queue_timeout = \"31s\""),
    ("overload = \"http-503\"", "overload = \"http-429\""),
    ("freeze_after = false", "freeze_after = \"1s\""),
    ("standby = 0\nfreeze_after = false", "standby = 1\nfreeze_after = \"1s\""),
    ("stop_after = \"15m\"", "stop_after = false"),
    ("start_attempts = 3", "start_attempts = 4"),
    ("cooldown = \"30s\"", "cooldown = \"31s\""),
    ("pool = { max = 8 }", "pool = { max = 9 }"),
];

/// What says the same in other words, or elsewhere.
const SAME: [(&str, &str); 5] = [
    ("\n[[backend]]\nname = \"db\"", "# A comment.\n\n\n[[backend]]\nname = \"db\""),
    ("memory = \"128MiB\"", ""),
    ("stop_after = \"15m\"", "stop_after = \"900s\""),
    ("env = { A = \"x\", B = \"y\" }", "env = { B = \"y\", A = \"x\" }"),
    ("id = 1\nlisten = \"[::]:81\"", "listen = \"[::]:81\"\nid = 1"),
];

fn read(text: &str) -> Config {
    Config::parse("h.toml", text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

fn after((line, other): (&str, &str)) -> Config {
    assert_eq!(BEFORE.matches(line).count(), 1, "{line}");
    read(&BEFORE.replace(line, other))
}

fn fingerprint(config: &Config) -> String {
    config.fingerprint(&config.functions[0])
}

#[test]
fn fingerprints_change_with_what_instances_depend_on() {
    let mut seen = BTreeSet::from([fingerprint(&read(BEFORE))]);
    for change in COUNTS {
        assert!(seen.insert(fingerprint(&after(change))), "{change:?}");
    }
    for change in DOES_NOT_COUNT.into_iter().chain(SAME) {
        assert_eq!(fingerprint(&after(change)), fingerprint(&read(BEFORE)), "{change:?}");
    }
}

/// Where this fails, agents no longer know the instances of earlier ones.
#[test]
fn fingerprints_are_those_of_earlier_versions() {
    let without_tls = ("tls = { server_name = \"db\", ca_file = \"/etc/ca\" }\n", "");
    assert_eq!(
        fingerprint(&after(without_tls)),
        "def5f68103de2033e09b23c60d00b39d439ca5bf7a3bb19d752f01845d5accee"
    );
}

/// Asks the parser for the keys of a function by a key that is far from all of them.
#[test]
fn every_key_of_a_function_is_on_one_side() {
    let errors = Config::parse("h.toml", "[[function]]\n0 = 0").unwrap_err();
    let unknown = errors
        .problems()
        .iter()
        .find_map(|problem| problem.message.strip_prefix("unknown key; the keys here are "));
    let known = unknown.unwrap().split(", ");
    let changed: BTreeSet<_> = COUNTS
        .into_iter()
        .chain(DOES_NOT_COUNT)
        .flat_map(|(before, after)| before.lines().chain(after.lines()))
        .filter_map(|line| Some(line.split_once(" = ")?.0))
        .collect();
    let missing: Vec<_> = known.filter(|key| !changed.contains(key)).collect();
    assert_eq!(missing, ["network"], "it belongs to another runtime, and has a test of its own");
}

#[test]
fn fingerprints_change_with_the_keys_of_docker() {
    let docker = |keys: &str| {
        let runtime = format!("runtime = \"docker\"\nimage = \"i\"\n{keys}");
        fingerprint(&after(("runtime = \"oci\"\nrootfs = \"/srv/orders\"", &runtime)))
    };
    let other = ["", "network = \"bridge\"", "user = \"app\""].map(docker);
    assert_eq!(BTreeSet::from(other).len(), 3);
}

#[test]
fn sections_that_say_the_same_are_the_same() {
    let before = read(BEFORE);
    for change in SAME {
        let after = after(change);
        assert!(before.functions[0].is_same(&after.functions[0]), "{change:?}");
        assert!(before.backends[0].is_same(&after.backends[0]), "{change:?}");
        assert!(before.agent == after.agent && before.syn == after.syn, "{change:?}");
    }
    for change in COUNTS.into_iter().chain(DOES_NOT_COUNT) {
        let after = after(change);
        let same = |i: usize| before.backends[i].is_same(&after.backends[i]);
        let functions = before.functions[0].is_same(&after.functions[0]);
        assert_eq!([functions, same(0), same(1)].iter().filter(|same| !**same).count(), 1, "{change:?}");
        assert!(before.agent == after.agent && before.syn == after.syn, "{change:?}");
    }
    assert_ne!(before.syn, after(("key_file = \"/etc/keys\"", "lookup = true")).syn);
    assert_ne!(before.agent, after(("[syn]", "[agent]\nlog = \"json\"\n[syn]")).agent);
}

/// Lengths keep apart what would be the same bytes one after another.
#[test]
fn settings_do_not_run_into_each_other() {
    let command = "command = [\"/orders\", \"--quiet\"]";
    let words =
        ["[\"/ab\", \"c\"]", "[\"/a\", \"bc\"]", "[\"/abc\"]", "[\"/abc\", \"\"]", "[\"/a\", \"b\", \"c\"]"];
    let all: BTreeSet<_> =
        words.iter().map(|words| fingerprint(&after((command, &format!("command = {words}"))))).collect();
    assert_eq!(all.len(), words.len());
}

/// Only a file that is loaded has anything to compare with.
#[test]
fn files_that_instances_begin_with_count_where_they_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for file in ["r1/app", "r1/app.py", "r2/app", "r2/app.py", "volume/data", "other/data", "secret"] {
        std::fs::create_dir_all(path(file).parent().unwrap()).unwrap();
        std::fs::write(path(file), "1").unwrap();
    }
    let link = |to: &str, name: &str| {
        let _ = std::fs::remove_file(path(name));
        std::os::unix::fs::symlink(to, path(name)).unwrap();
    };
    link("r1", "current");
    link("volume", "data");
    let text = "[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = \"oci\"\nrootfs = \"D/current\"\n\
                command = [\"/app\", \"/app.py\"]\nmounts = [{ source = \"D/data\", target = \"/data\" }]\n\
                secrets = [{ file = \"D/secret\", name = \"s\" }]\n";
    let file = path("h.toml");
    std::fs::write(&file, text.replace("D/", &format!("{}/", dir.path().display()))).unwrap();
    let load = || Config::load(&file).unwrap();
    let mut before = load();
    let mut seen = BTreeSet::from([fingerprint(&before)]);
    let replace = |name: &str| {
        std::fs::write(path("new"), "1").unwrap();
        std::fs::rename(path("new"), path(name)).unwrap();
    };
    let changes: [(&str, &dyn Fn()); 6] = [
        ("the rootfs", &|| link("r2", "current")),
        ("the program", &|| replace("r2/app")),
        ("the script, in place", &|| std::fs::write(path("r2/app.py"), "22").unwrap()),
        ("the mount", &|| link("other", "data")),
        ("the secret", &|| replace("secret")),
        ("nothing is left", &|| std::fs::remove_file(path("current")).unwrap()),
    ];
    for (what, change) in changes {
        change();
        let after = load();
        assert!(!after.functions[0].is_same(&before.functions[0]), "{what}");
        assert!(seen.insert(fingerprint(&after)), "{what}");
        // What is written to a volume is seen by instances that run.
        std::fs::write(path("other/data"), what).unwrap();
        let again = load();
        assert!(again.functions[0].is_same(&after.functions[0]), "{what}");
        assert_eq!(fingerprint(&again), fingerprint(&after), "{what}");
        before = again;
    }
}
