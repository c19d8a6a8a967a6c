//! How many instances a function has, when they rest, and what happens when there are not enough.

use std::time::Duration;

use headstart_config::{Config, Contract, FreezeBackends, Function, Overload, Runtime};

use crate::{GOOD, check};

fn function(keys: &str) -> Function {
    Config::parse("h.toml", &format!("[[function]]\n{GOOD}{keys}")).unwrap().functions.remove(0)
}

#[test]
fn every_key_has_a_default() {
    let f = function("");
    assert_eq!((f.concurrency, f.min_ready, f.max_instances), (None, 0, 16));
    assert_eq!((f.queue_timeout, f.overload), (Duration::from_secs(30), Overload::Http503));
    assert_eq!((f.freeze_after, f.stop_after), (None, Some(Duration::from_mins(15))));
    assert_eq!((f.hibernate_after, f.standby), (None, 0));
    assert_eq!(f.freeze_backends, FreezeBackends::Keep);
    assert_eq!((f.start_attempts, f.cooldown), (3, Duration::from_secs(30)));
}

#[test]
fn every_key_is_read() {
    let f = function(
        "concurrency = 65535\nmin_ready = 64\nmax_instances = 1000\nqueue_timeout = \"1h\"\n\
         overload = \"reset\"\nfreeze_after = \"10ms\"\nstop_after = \"24h\"\n\
         freeze_backends = \"return\"\nstart_attempts = 10\ncooldown = \"100ms\"",
    );
    assert_eq!((f.concurrency, f.min_ready, f.max_instances), (Some(65_535), 64, 1_000));
    assert_eq!((f.queue_timeout, f.overload), (Duration::from_hours(1), Overload::Reset));
    let (freeze_after, stop_after) = (Duration::from_millis(10), Duration::from_hours(24));
    assert_eq!((f.freeze_after, f.stop_after), (Some(freeze_after), Some(stop_after)));
    assert_eq!(f.freeze_backends, FreezeBackends::Return);
    assert_eq!((f.start_attempts, f.cooldown), (10, Duration::from_millis(100)));
    assert_eq!(function("freeze_after = \"1s\"\nstandby = 16").standby, 16);
    let sleeps = function("freeze_after = \"1s\"\nhibernate_after = \"1m\"");
    assert_eq!(sleeps.hibernate_after, Some(Duration::from_mins(1)));
    assert_eq!(function("hibernate_after = false").hibernate_after, None);

    assert_eq!(function("concurrency = \"unlimited\"").concurrency, None);
    assert_eq!(function("concurrency = 1").concurrency, Some(1));
    assert_eq!(function("max_instances = 0").max_instances, 0);
    let never = function("freeze_after = false\nstop_after = false");
    assert_eq!((never.freeze_after, never.stop_after), (None, None));
}

#[test]
fn a_handler_of_lambda_has_keys_and_a_default_of_its_own() {
    let f = function("contract = \"lambda\"");
    assert_eq!(f.contract, Contract::Lambda { timeout: Duration::from_secs(3) });
    assert_eq!((f.handler, f.concurrency), (None, Some(1)));
    let f = function("contract = \"lambda\"\nhandler = \"app.handler\"\ntimeout = \"15m\"\nconcurrency = 64");
    assert_eq!(f.contract, Contract::Lambda { timeout: Duration::from_mins(15) });
    assert_eq!((f.handler.as_deref(), f.concurrency), (Some("app.handler"), Some(64)));
}

#[test]
fn keys_of_lambda_that_make_no_sense_are_refused() {
    let refused = |keys: &str, expected: &[&str]| check(&format!("[[function]]\n{GOOD}{keys}"), expected);
    refused(
        "handler = \"app.handler\"\ntimeout = \"3s\"",
        &[
            "6: function.f.handler: belongs to contract = \"lambda\"",
            "7: function.f.timeout: belongs to contract = \"lambda\"",
        ],
    );
    refused(
        "contract = \"lambda\"\nhandler = \"app handler\"\ntimeout = \"16m\"\nconcurrency = \"unlimited\"\nport = 1",
        &[
            "7: function.f.handler: must be 1 to 128 characters without blanks, as in \"app.handler\"",
            "8: function.f.timeout: must be 100ms to 15m",
            "9: function.f.concurrency: must be a whole number, not a string",
            "10: function.f.port: belongs to contract = \"port\"",
        ],
    );
    let db = "[[backend]]\nname = \"db\"\nkind = \"tcp\"\naddress = \"h:1\"\n";
    let sockets =
        "backends = [\"db\"]\nbackend_sockets = true\nbackend_ports = { db = 9001 }\ncontract = \"lambda\"\n";
    check(
        &format!("{db}[[function]]\n{GOOD}{sockets}"),
        &["12: function.f.backend_ports: cannot have 9001, which is the port of the Runtime API"],
    );
}

#[test]
fn shares_are_read() {
    let f = function("");
    assert_eq!((f.cpu_millis, f.cpu_weight, f.io_weight), (None, None, None));
    for (text, millis) in [("0.5", 500), ("0.01", 10), ("2", 2000), ("1.025", 1025), ("1024", 1_024_000)] {
        assert_eq!(function(&format!("cpu = {text:?}")).cpu_millis, Some(millis));
    }
    let f = function("cpu_weight = 1\nio_weight = 10000");
    assert_eq!((f.cpu_weight, f.io_weight), (Some(1), Some(10_000)));
}

#[test]
fn each_function_has_a_user_of_its_own() {
    let read = |names: &[&str], uids: &str| {
        let mut text = format!("[agent]\nuids = {uids:?}\n");
        for (number, name) in names.iter().enumerate() {
            let port = 1000 + number;
            text += &format!(
                "[[function]]\nname = {name:?}\nlisten = \"[::]:{port}\"\nruntime = \"process\"\ncommand = [\"/f\"]\n"
            );
        }
        Config::parse("h.toml", &text)
    };
    let all: Vec<_> = (0..2000).map(|number| format!("f{number}")).collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    let config = read(&all, "100000-119999").unwrap();
    let users: std::collections::HashSet<_> = config.functions.iter().map(|function| function.user).collect();
    assert_eq!(users.len(), all.len());
    assert!(users.iter().all(|user| (100_000..120_000).contains(user)));
    let (few, other) =
        (read(&["f1", "f2"], "100000-165535").unwrap(), read(&["f2"], "100000-165535").unwrap());
    assert_eq!(few.functions[1].user, other.functions[0].user, "whatever others there are");
    assert_eq!(function("").user, 65_534);
    let moved = read(&["f2"], "200000-265535").unwrap();
    assert_ne!(few.fingerprint(&few.functions[1]), moved.fingerprint(&moved.functions[0]));
    for wrong in ["", "100000", "0-65535", "65535-100000", "100000-119998", "5-3", "100000-4294967295", "a-b"]
    {
        let said = read(&[], wrong).unwrap_err().to_string();
        assert_eq!(
            said,
            "h.toml:2: agent.uids: must be a range of at least 20000 users from 65536 on, as in \"1900000000-1900065535\""
        );
    }
    read(&[], "65536-85535").unwrap();
}

#[test]
fn containers_have_user_namespaces_where_there_are_users() {
    let read = |agent: &str| {
        let function = |name: &str, port, runtime: &str| {
            format!(
                "[[function]]\nname = {name:?}\nlisten = \"[::]:{port}\"\ncommand = [\"/f\"]\n{runtime}\n"
            )
        };
        let oci = "runtime = \"oci\"\nrootfs = \"/r\"";
        let functions =
            [function("a", 1, oci), function("b", 2, oci), function("c", 3, "runtime = \"process\"")];
        Config::parse("h.toml", &format!("[agent]\n{agent}\n{}", functions.concat()))
    };
    let (uids, off) = ("uids = \"100000-165535\"", "\nuser_namespaces = false");
    let config = read(uids).unwrap();
    let of = |name: &str| config.function(name).map(|f| (f.user, f.namespace_root)).unwrap();
    let ((a, a_root), (b, b_root), (c, c_root)) = (of("a"), of("b"), of("c"));
    let used: std::collections::HashSet<_> = [Some(a), a_root, Some(b), b_root, Some(c)].into();
    assert!(used.len() == 5 && !used.contains(&None) && c_root.is_none(), "{used:?}");
    let without = read(&format!("{uids}{off}")).unwrap();
    let a_without = without.function("a").unwrap();
    assert_eq!((a_without.user, a_without.namespace_root), (a, None));
    assert_ne!(without.fingerprint(a_without), config.fingerprint(config.function("a").unwrap()));
    assert_eq!(read("").unwrap().functions[0].namespace_root, None);
    assert_eq!(
        read("user_namespaces = true").unwrap_err().to_string(),
        "h.toml:2: agent.user_namespaces: needs `uids`, from which each function gets its users"
    );
}

#[test]
fn docker_gives_no_function_the_network_or_the_user_of_the_node() {
    let docker = |keys: &str| {
        let text = format!(
            "[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = \"docker\"\nimage = \"i\"\n{keys}"
        );
        Config::parse("h.toml", &text).map(|mut config| config.functions.remove(0).runtime)
    };
    let refused = |keys: &str| docker(keys).unwrap_err().to_string();
    let user = |keys: &str| match docker(keys).unwrap() {
        Runtime::Docker { user, .. } => user,
        other => panic!("{other:?}"),
    };
    assert_eq!(user(""), "65534:65534");
    for name in ["app", "1000", "app:www-data", "1000:0"] {
        assert_eq!(user(&format!("user = {name:?}")), name);
    }
    for name in ["", ":", "a:", ":b", "a b", "-a"] {
        assert!(refused(&format!("user = {name:?}")).contains("as in \"65534:65534\" or \"app\""), "{name}");
    }
    let said = refused("network = \"host\"");
    assert!(said.contains("the node's own network") && said.contains("docker network create"), "{said}");
}

#[test]
fn words_are_those_of_the_file() {
    for overload in [Overload::Http503, Overload::Http429, Overload::Reset] {
        assert_eq!(function(&format!("overload = \"{}\"", overload.as_str())).overload, overload);
    }
    for kept in [FreezeBackends::Keep, FreezeBackends::Return] {
        let read = function(&format!("freeze_backends = \"{}\"", kept.as_str())).freeze_backends;
        assert_eq!(read, kept);
    }
}

#[test]
fn keys() {
    let concurrency = "concurrency: must be 1 to 65535 or \"unlimited\"";
    let idle = "must be false or a whole number with a unit (ms, s, m, h), as in \"10s\"";
    let cases = [
        ("concurrency = 0", concurrency.to_owned()),
        ("concurrency = 65536", concurrency.to_owned()),
        ("concurrency = \"unlimted\"", concurrency.to_owned()),
        ("concurrency = \"7\"", concurrency.to_owned()),
        ("concurrency = false", concurrency.to_owned()),
        ("min_ready = 65", "min_ready: must be 0 to 64".to_owned()),
        ("min_ready = \"1\"", "min_ready: must be a whole number, not a string".to_owned()),
        ("max_instances = 1001", "max_instances: must be 0 to 1000".to_owned()),
        ("max_instances = -1", "max_instances: must be 0 to 1000".to_owned()),
        ("queue_timeout = \"99ms\"", "queue_timeout: must be 100ms to 1h".to_owned()),
        ("queue_timeout = \"2h\"", "queue_timeout: must be 100ms to 1h".to_owned()),
        (
            "overload = \"http-530\"",
            "overload: unknown value \"http-530\", did you mean \"http-503\"?".to_owned(),
        ),
        (
            "overload = \"drop\"",
            "overload: unknown value \"drop\"; must be \"http-503\" or \"http-429\" or \"reset\"".to_owned(),
        ),
        ("overload = 503", "overload: must be a string, not an integer".to_owned()),
        ("freeze_after = true", format!("freeze_after: {idle}, not a boolean")),
        ("freeze_after = 0", format!("freeze_after: has no unit: {idle}")),
        ("freeze_after = \"9ms\"", "freeze_after: must be false or 10ms to 24h".to_owned()),
        ("hibernate_after = true", format!("hibernate_after: {idle}, not a boolean")),
        (
            "hibernate_after = \"1m\"",
            "hibernate_after: needs freeze_after: only a frozen instance can be hibernated".to_owned(),
        ),
        ("stop_after = \"false\"", format!("stop_after: {idle}")),
        ("stop_after = \"900\"", format!("stop_after: has no unit: {idle}")),
        ("stop_after = \"25h\"", "stop_after: must be false or 10ms to 24h".to_owned()),
        (
            "freeze_backends = \"close\"",
            "freeze_backends: unknown value \"close\"; must be \"keep\" or \"return\"".to_owned(),
        ),
        ("start_attempts = 0", "start_attempts: must be 1 to 10".to_owned()),
        ("start_attempts = 11", "start_attempts: must be 1 to 10".to_owned()),
        ("cooldown = \"2h\"", "cooldown: must be 100ms to 1h".to_owned()),
        ("max_instance = 3", "max_instance: unknown key, did you mean \"max_instances\"?".to_owned()),
    ];
    for (text, message) in cases {
        check(&format!("[[function]]\n{GOOD}{text}"), &[&format!("6: function.f.{message}")]);
    }
}

#[test]
fn no_more_are_ready_than_may_be() {
    let at_most = |most| format!("6: function.f.min_ready: must be at most max_instances, which is {most}");
    check(&format!("[[function]]\n{GOOD}min_ready = 17"), &[&at_most(16)]);
    check(&format!("[[function]]\n{GOOD}min_ready = 4\nmax_instances = 3"), &[&at_most(3)]);
    check(&format!("[[function]]\n{GOOD}min_ready = 1\nmax_instances = 0"), &[&at_most(0)]);
    check(&format!("[[function]]\n{GOOD}min_ready = 3\nmax_instances = 3"), &[]);
    let standby = format!("[[function]]\n{GOOD}standby = 2\n");
    check(
        &format!("{standby}freeze_after = \"1s\"\nmax_instances = 1"),
        &["6: function.f.standby: must be at most max_instances, which is 1"],
    );
    check(
        &standby,
        &["6: function.f.standby: needs freeze_after: instances that never sleep are kept by min_ready"],
    );
    // One mistake is one problem.
    check(
        &format!("[[function]]\n{GOOD}min_ready = 17\nmax_instances = 1001"),
        &["7: function.f.max_instances: must be 0 to 1000"],
    );
}

#[test]
fn instances_are_hibernated_between_freeze_and_stop() {
    let refused = |keys: &str, message: &str| {
        let problem = format!("7: function.f.hibernate_after: {message}");
        check(&format!("[[function]]\n{GOOD}freeze_after = \"10s\"\n{keys}"), &[&problem]);
    };
    refused("hibernate_after = \"10s\"", "must be more than freeze_after, which is 10s");
    refused("hibernate_after = \"15m\"", "must be less than stop_after, which is 15m");
    refused("hibernate_after = \"2s\"", "must be more than freeze_after, which is 10s");
    let docker = GOOD.replace("runtime = \"process\"", "runtime = \"docker\"\nimage = \"f:1\"");
    check(
        &format!("[[function]]\n{docker}freeze_after = \"10s\"\nhibernate_after = \"1m\""),
        &["8: function.f.hibernate_after: needs runtime = \"oci\" or \"process\""],
    );
}

#[test]
fn instances_freeze_before_they_stop() {
    check(
        &format!("[[function]]\n{GOOD}backend_sockets = true\ntls_hand_over = true"),
        &["7: function.f.tls_hand_over: has no use with backend_sockets, where the agent speaks TLS"],
    );
    let less = |stop| format!("6: function.f.freeze_after: must be less than stop_after, which is {stop}");
    check(&format!("[[function]]\n{GOOD}freeze_after = \"15m\""), &[&less("15m")]);
    check(&format!("[[function]]\n{GOOD}freeze_after = \"2s\"\nstop_after = \"1s\""), &[&less("1s")]);
    check(&format!("[[function]]\n{GOOD}freeze_after = \"999ms\"\nstop_after = \"1s\""), &[]);
    check(&format!("[[function]]\n{GOOD}freeze_after = \"24h\"\nstop_after = false"), &[]);
    // One mistake is one problem.
    check(
        &format!("[[function]]\n{GOOD}freeze_after = \"1h\"\nstop_after = \"1ms\""),
        &["7: function.f.stop_after: must be false or 10ms to 24h"],
    );
    check(
        &format!("[[function]]\n{GOOD}freeze_after = \"1d\"\nstop_after = \"1s\""),
        &[
            "6: function.f.freeze_after: must be false or a whole number with a unit (ms, s, m, h), as in \"10s\"",
        ],
    );
}

#[test]
fn ports_lead_to_backends_of_the_function() {
    let db = "[[backend]]\nname = \"db\"\nkind = \"tcp\"\naddress = \"h:1\"\n";
    let other = db.replace("db", "other");
    let ports = |function: &str, keys: &str, problems: &[&str]| {
        check(
            &format!("[[function]]\n{function}backends = [\"db\", \"other\"]\n{keys}\n{db}{other}"),
            problems,
        );
    };
    let oci = GOOD.replace("runtime = \"process\"", "runtime = \"oci\"\nrootfs = \"/r\"");
    let sockets = "backend_sockets = true\n";
    let one = "backend_ports = { db = 5432 }";
    ports(&oci, one, &["8: function.f.backend_ports: needs backend_sockets = true"]);
    let docker =
        GOOD.replace("runtime = \"process\"\ncommand = [\"/f\"]", "runtime = \"docker\"\nimage = \"f:1\"");
    let runtimes = "8: function.f.backend_ports: needs runtime = \"oci\" or \"process\"";
    ports(&docker, &format!("{sockets}{one}"), &[runtimes]);
    ports(
        &oci,
        &format!("{sockets}backend_ports = {{ db = 5432, other = 5432 }}"),
        &["9: function.f.backend_ports.other: 5432 is the port of \"db\""],
    );
    ports(
        &oci,
        &format!("{sockets}backend_ports = {{ db = 80, dc = 5432 }}"),
        &[
            "9: function.f.backend_ports.db: must be 1024 to 65535",
            "9: function.f.backend_ports.dc: is no backend of this function: add it to backends",
        ],
    );
}
