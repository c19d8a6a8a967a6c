//! Wrong files, and the exact list of problems of each: `line: key: message`.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use headstart_config::backend::{Mysql, Redis};
use headstart_config::{Config, MAX_BACKENDS, MAX_FUNCTIONS, Protocol, Runtime, Tls};
use proptest::prelude::*;

mod files;
mod front;
mod lifecycle;
mod syn;

/// A function that has no problem, for files whose mistakes are elsewhere.
const GOOD: &str = "name = \"f\"\nlisten = \"[::]:81\"\nruntime = \"process\"\ncommand = [\"/f\"]\n";

fn problems(text: &str) -> Vec<String> {
    match Config::parse("h.toml", text) {
        Ok(_) => Vec::new(),
        Err(errors) => {
            errors.to_string().lines().map(|line| line.strip_prefix("h.toml:").unwrap().to_owned()).collect()
        }
    }
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    assert_eq!(problems(text), expected, "{text}");
}

#[test]
fn all_mistakes_of_a_file_are_reported_at_once() {
    let text = r#"
[agent]
admim = "127.0.0.1:9464"

[[backend]]
name = "db"
kind = "postgres"
address = "10.0.0.5"
pool = { max = 8, ttl = 10 }

[[function]]
name = "orders"
listen = "0.0.0.0:0"
runtime = "oci"
network = "none"
command = ["/orders"]
backends = [
    "db",
    "bd",
]
"#;
    check(
        text,
        &[
            "3: agent.admim: unknown key, did you mean \"admin\"?",
            "5: backend.db.user: is required by kind = \"postgres\"",
            "8: backend.db.address: must be \"host:port\", \"[ipv6]:port\" or \"unix:/path\"",
            "9: backend.db.pool.ttl: has no unit: must be a whole number with a unit (ms, s, m, h), as in \"10s\"",
            "11: function.orders.rootfs: is required by runtime = \"oci\", or image",
            "13: function.orders.listen: must have a port other than 0: clients need to know it",
            "15: function.orders.network: belongs to runtime = \"docker\", and this function is \"oci\"",
            "19: function.orders.backends[1]: there is no backend \"bd\"",
        ],
    );
}

#[test]
fn syntax() {
    check("[agent]\nlog = json\n", &["2: column 7: string values must be quoted, expected literal string"]);
    check("[agent]\n[agent]\n", &["2: column 2: duplicate key"]);
    check("a = \"", &["1: column 6: invalid basic string, expected `\"`"]);
}

#[test]
fn sections() {
    check("agent = 1", &["1: agent: must be a table, as [agent], not an integer"]);
    check("[[agent]]", &["1: agent: must be written once, as [agent]"]);
    check("[backend]", &["1: backend: must be written as [[backend]], with two brackets"]);
    check("function = [1]", &["1: function[0]: must be a table, as [[function]], not an integer"]);
    check("[[functions]]", &["1: functions: unknown key, did you mean \"function\"?"]);
    check("x = 1", &["1: x: unknown key; the keys here are agent, backend, front, function, syn"]);
    check(
        "\"a b\\n\" = 1",
        &["1: \"a b\\n\": unknown key; the keys here are agent, backend, front, function, syn"],
    );
    let many = "[[backend]]\n".repeat(MAX_BACKENDS + 1);
    check(&many, &["1: backend: must be at most 256 sections, not 257"]);
}

#[test]
fn agent() {
    let long = format!("state_dir = \"/{}\"", "s".repeat(200));
    let cases = [
        ("interfaces = \"eth0\"", "interfaces: must be a list, not a string"),
        ("interfaces = [\"auto\", \"eth0\"]", "interfaces[0]: \"auto\" must stand alone, as in [\"auto\"]"),
        ("interfaces = [\"eth0\", \"eth0\"]", "interfaces[1]: \"eth0\" is listed twice"),
        (
            "interfaces = [\"a/b\"]",
            "interfaces[0]: must be the name of a network interface, 1 to 15 characters",
        ),
        ("admin = 9464", "admin: must be a string, not an integer"),
        (
            "admin = \":9464\"",
            "admin: must be an IP address and a port, as in \"0.0.0.0:8081\" or \"[::]:8081\"",
        ),
        ("state_dir = \"run\"", "state_dir: must be an absolute path"),
        (&long, "state_dir: must have at most 200 bytes: cgroups are named after it"),
        (
            "runc = \"./runc\"",
            "runc: must be an absolute path, or a name without \"/\" that is looked up in PATH",
        ),
        ("data_threads = 0", "data_threads: must be 1 to 256"),
        ("log = \"jsn\"", "log: unknown value \"jsn\", did you mean \"json\"?"),
        ("log = \"xml\"", "log: unknown value \"xml\"; must be \"text\" or \"json\""),
        ("log = \"a\\u0000\"", "log: must not contain a NUL character"),
    ];
    for (text, message) in cases {
        check(&format!("[agent]\n{text}"), &[&format!("2: agent.{message}")]);
    }
}

#[test]
fn backends() {
    let cases = [
        (
            "name = \"B\"",
            "[0].name: must be 1 to 63 of a-z, 0-9 and \"-\", and begin with a letter or a digit",
        ),
        (
            "name = \"-b\"",
            "[0].name: must be 1 to 63 of a-z, 0-9 and \"-\", and begin with a letter or a digit",
        ),
        (
            "name = \"b\"\nuser = \"u\"",
            ".b.user: belongs to kind = \"postgres\" or \"redis\" or \"mysql\", and this backend is \"tcp\"",
        ),
        ("name = \"b\"\npassword = \"hunter2\"", ".b.password: unknown key, did you mean \"password_file\"?"),
        ("name = \"b\"\npool = 3", ".b.pool: must be a table, as pool = { max = 64 }, not an integer"),
        ("name = \"b\"\npool = { max = 0 }", ".b.pool.max: must be 1 to 10000"),
        (
            "name = \"b\"\npool = { size = \"dynamic\" }",
            ".b.pool.size: unknown value \"dynamic\"; must be \"fixed\" or \"auto\"",
        ),
        (
            "name = \"b\"\npool = { on_release = \"recycle\" }",
            ".b.pool.on_release: can be \"recycle\" only with kind = \"postgres\" or \"redis\" or \"mysql\"",
        ),
        (
            "name = \"b\"\npool = { server_max = 63 }",
            ".b.pool.server_max: must not be less than max, which is 64",
        ),
        (
            "name = \"b\"\npool = { max_per_function = 65 }",
            ".b.pool.max_per_function: must be at most max, which is 64",
        ),
        ("name = \"b\"\npool = { min_idle = 65 }", ".b.pool.min_idle: must be at most max, which is 64"),
        (
            "name = \"b\"\npool = { ttl = \"9d\" }",
            ".b.pool.ttl: must be a whole number with a unit (ms, s, m, h), as in \"10s\"",
        ),
        (
            "name = \"b\"\npool = { ttl = \"90\" }",
            ".b.pool.ttl: has no unit: must be a whole number with a unit (ms, s, m, h), as in \"10s\"",
        ),
        ("name = \"b\"\npool = { ttl = \"48h\" }", ".b.pool.ttl: must be 1s to 24h"),
        ("name = \"b\"\npool = { max = \"3\" }", ".b.pool.max: must be a whole number, not a string"),
        ("name = \"b\"\ntls = true", ".b.tls: is for other kinds: with TLS this one is \"tls\""),
        (
            "name = \"b\"\ntls = 1",
            ".b.tls: must be true, false or a table, as tls = { ca_file = \"/etc/headstart/ca.pem\" }, not an integer",
        ),
    ];
    for (text, message) in cases {
        let line = 3 + text.lines().count();
        let file = format!("[[backend]]\nkind = \"tcp\"\naddress = \"a:1\"\n{text}");
        check(&file, &[&format!("{line}: backend{message}")]);
    }
    check(
        "[[backend]]",
        &[
            "1: backend[0].name: is required",
            "1: backend[0].kind: is required: \"tcp\", \"tls\", \"postgres\", \"redis\" or \"mysql\"",
            "1: backend[0].address: is required",
        ],
    );
    let twice = "[[backend]]\nname = \"b\"\nkind = \"tcp\"\naddress = \"a:1\"\n".repeat(2);
    check(&twice, &["6: backend[1].name: \"b\" is already the backend on line 1"]);
}

const CPU: &str = "cpu: must be a number of processors from \"0.01\" to \"1024\", with at most three decimals, as in \"0.5\"";

#[test]
fn functions() {
    let cases = [
        ("rootfs = \"/\"", "rootfs: belongs to runtime = \"oci\", and this function is \"process\""),
        ("network = \"none\"", "network: belongs to runtime = \"docker\", and this function is \"process\""),
        ("cpu = \"0.009\"", CPU),
        ("cpu = \"0.0005\"", CPU),
        ("cpu = \"1025\"", CPU),
        ("cpu = \"-1\"", CPU),
        ("cpu = \"1.\"", CPU),
        ("cpu = 0.5", "cpu: must be a string, not a float"),
        ("cpu_weight = 0", "cpu_weight: must be 1 to 10000"),
        ("io_weight = 10001", "io_weight: must be 1 to 10000"),
        (
            "env = { \"A-B\" = \"\" }",
            "env.A-B: the name must be letters, digits and \"_\", and not begin with a digit",
        ),
        ("env = { A = 1 }", "env.A: must be a string, not an integer"),
        (
            "env = { HEADSTART_X = \"\" }",
            "env.HEADSTART_X: names that begin with HEADSTART_ are set by the agent",
        ),
        ("backends = [\"b\"]", "backends[0]: there is no backend \"b\""),
        ("backends = [true]", "backends[0]: must be a string, not a boolean"),
        ("prepared = 65", "prepared: must be 0 to 64"),
        ("prepared = -1", "prepared: must be 0 to 64"),
        (
            "memory = 128",
            "memory: has no unit: must be a whole number with a unit (KiB, MiB, GiB), as in \"64MiB\"",
        ),
        ("memory = \"128MB\"", "memory: must be a whole number with a unit (KiB, MiB, GiB), as in \"64MiB\""),
        ("memory = \"1MiB\"", "memory: must be 6MiB to 1024GiB"),
        ("backlog = 65536", "backlog: must be 1 to 65535"),
        ("stop_grace = \"1h\"", "stop_grace: must be 0ms to 10m"),
        ("comand = [\"/f\"]", "comand: unknown key, did you mean \"command\"?"),
    ];
    for (text, message) in cases {
        check(&format!("[[function]]\n{GOOD}{text}"), &[&format!("6: function.f.{message}")]);
    }
    let many: Vec<_> = (0..17).map(|i| format!("\"b{i}\"")).collect();
    let many = format!("[[function]]\n{GOOD}backends = [{}]", many.join(", "));
    check(&many, &["6: function.f.backends: must be at most 16 names, not 17"]);
    let runtimes = Runtime::WORDS.map(|word| format!("{word:?}"));
    let (last, others) = runtimes.split_last().unwrap();
    check(
        "[[function]]\nlisten = \"localhost:80\"",
        &[
            "1: function[0].name: is required",
            &format!("1: function[0].runtime: is required: {} or {last}", others.join(", ")),
            "2: function[0].listen: must be an IP address and a port, as in \"0.0.0.0:8081\" or \"[::]:8081\"",
        ],
    );
}

#[test]
fn commands() {
    let cases = [
        ("process", "[]", Some("must not be empty")),
        ("process", "[\"f\"]", Some("must begin with the absolute path of a program")),
        ("process", "\"/f\"", Some("must be a list, not a string")),
        ("process", "[\"/f\", \"\"]", None),
        ("docker", "[]", None),
        ("docker", "[\"f\"]", None),
    ];
    for (runtime, command, message) in cases {
        let image = if runtime == "docker" { "image = \"i\"" } else { "" };
        let text = format!(
            "[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = {runtime:?}\ncommand = {command}\n{image}"
        );
        let expected: Vec<_> = message.map(|m| format!("5: function.f.command: {m}")).into_iter().collect();
        assert_eq!(problems(&text), expected, "{text}");
    }
}

#[test]
fn addresses_that_overlap() {
    let clash = |first: &str, second: &str| {
        let function = |name, listen| {
            format!(
                "[[function]]\nname = {name:?}\nlisten = {listen:?}\nruntime = \"process\"\ncommand = [\"/f\"]\n"
            )
        };
        let problems = problems(&(function("a", first) + &function("b", second)));
        let hint = if first == second {
            ": of the functions that share an address, all but one need an id"
        } else {
            ""
        };
        let expected =
            format!("8: function.b.listen: overlaps with {first} of function \"a\" on line 3{hint}");
        assert!(problems.is_empty() || problems == [expected.as_str()], "{problems:?}");
        !problems.is_empty()
    };
    for (first, second, expected) in [
        ("127.0.0.1:80", "127.0.0.1:80", true),
        ("127.0.0.1:80", "127.0.0.1:81", false),
        ("127.0.0.1:80", "127.0.0.2:80", false),
        ("0.0.0.0:80", "127.0.0.2:80", true),
        ("0.0.0.0:80", "[::1]:80", false),
        ("[::]:80", "127.0.0.1:80", true),
        ("[::]:80", "0.0.0.0:80", true),
        ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
    ] {
        assert_eq!(clash(first, second), expected, "{first} {second}");
        assert_eq!(clash(second, first), expected, "{second} {first}");
    }
    let admin = format!("[agent]\nadmin = \"127.0.0.1:81\"\n[[function]]\n{GOOD}");
    check(&admin, &["5: function.f.listen: overlaps with agent.admin"]);
}

#[test]
fn redis() {
    let base = "[[backend]]\nname = \"b\"\nkind = \"redis\"\naddress = \"h:1\"\n";
    for (text, message) in [
        ("database = \"0\"", "5: backend.b.database: must be a whole number, not a string"),
        ("database = 65536", "5: backend.b.database: must be 0 to 65535"),
        (
            "password_file = \"/p\"\nuser = \"a b\"",
            "6: backend.b.user: must be 1 to 128 printable ASCII characters without spaces",
        ),
        ("user = \"app\"", "1: backend.b.password_file: is required with a user"),
        (
            "application_name = \"x\"",
            "5: backend.b.application_name: belongs to kind = \"postgres\", and this backend is \"redis\"",
        ),
    ] {
        check(&format!("{base}{text}"), &[message]);
    }
    let read = |text: &str| Config::parse("h.toml", &format!("{base}{text}")).unwrap().backends.remove(0);
    assert_eq!(read("").protocol, Protocol::Redis(Redis::default()));
    let every = read("user = \"app\"\npassword_file = \"/p\"\ndatabase = 3\ntls = true");
    let redis = Redis { user: Some("app".into()), database: 3, password_file: Some("/p".into()) };
    assert_eq!((every.protocol, every.tls), (Protocol::Redis(redis), Some(Tls::default())));
}

#[test]
fn warm_up() {
    let base = "[[backend]]\nname = \"b\"\nkind = \"postgres\"\nuser = \"u\"\naddress = \"h:1\"\n";
    let many = format!("warm_up = [{}]", "\"select 1\", ".repeat(33));
    for (text, message) in [
        ("warm_up = \"select 1\"", "6: backend.b.warm_up: must be a list, not a string"),
        (many.as_str(), "6: backend.b.warm_up: must be at most 32 statements"),
        ("warm_up = [1]", "6: backend.b.warm_up[0]: must be a string, not an integer"),
    ] {
        check(&format!("{base}{text}"), &[message]);
    }
    let cache = base.replace("postgres", "mysql");
    let elsewhere = "belongs to kind = \"postgres\", and this backend is \"mysql\"";
    check(&format!("{cache}warm_up = []"), &[&format!("6: backend.b.warm_up: {elsewhere}")]);
}

#[test]
fn mysql() {
    let base = "[[backend]]\nname = \"b\"\nkind = \"mysql\"\naddress = \"h:1\"\n";
    for (text, message) in [
        ("", "1: backend.b.user: is required by kind = \"mysql\""),
        ("user = \"u\"\ndatabase = 3", "6: backend.b.database: must be a string, not an integer"),
        ("user = \"u\"\npassword_file = \"p\"", "6: backend.b.password_file: must be an absolute path"),
    ] {
        check(&format!("{base}{text}"), &[message]);
    }
    let read = |text: &str| Config::parse("h.toml", &format!("{base}{text}")).unwrap().backends.remove(0);
    let mysql = |database: Option<&str>, password_file: Option<&str>| {
        let (database, password_file) = (database.map(str::to_owned), password_file.map(Into::into));
        Protocol::Mysql(Mysql { user: "u".into(), database, password_file })
    };
    assert_eq!(read("user = \"u\"").protocol, mysql(None, None));
    let every = read("user = \"u\"\npassword_file = \"/p\"\ndatabase = \"d\"\ntls = true");
    assert_eq!((every.protocol, every.tls), (mysql(Some("d"), Some("/p")), Some(Tls::default())));
}

#[test]
fn tls() {
    let postgres = "name = \"b\"\nkind = \"postgres\"\nuser = \"u\"\naddress = \"h:1\"\n";
    let bare = "name = \"b\"\nkind = \"tls\"\naddress = \"h:1\"\n";
    let nine = format!("tls = {{ alpn = {:?} }}", ["x"; 9]);
    for (backend, text, message) in [
        (postgres, "tls = { ca_file = \"ca.pem\" }", "tls.ca_file: must be an absolute path"),
        (postgres, "tls = { server_name = \"\" }", "tls.server_name: must not be empty"),
        (postgres, "tls = { cert_file = \"/c\" }", "tls.key_file: is required: the private key of cert_file"),
        (postgres, "tls = { key_file = \"/c\" }", "tls.cert_file: is required: the certificate of key_file"),
        (postgres, "tls = { alpn = [\"x\"] }", "tls.alpn: belongs to kind = \"tls\""),
        (
            postgres,
            "tls = { verify = false }",
            "tls.verify: unknown key; the keys here are alpn, ca_file, cert_file, direct, key_file, server_name",
        ),
        (bare, "tls = false", "tls: cannot be false with kind = \"tls\": without TLS the kind is \"tcp\""),
        (bare, "tls = { direct = true }", "tls.direct: belongs to kind = \"postgres\""),
        (bare, "tls = { alpn = [\"\"] }", "tls.alpn[0]: must be 1 to 255 bytes"),
        (bare, &nine, "tls.alpn: must be at most 8 names"),
    ] {
        let line = 2 + backend.lines().count();
        check(&format!("[[backend]]\n{backend}{text}"), &[&format!("{line}: backend.b.{message}")]);
    }
    for kind in ["kind = \"tls\"", "kind = \"postgres\"\nuser = \"u\"\ntls = true"] {
        let text = format!("[[backend]]\nname = \"b\"\naddress = \"unix:/s\"\n{kind}");
        check(&text, &["3: backend.b.address: is a unix socket, which no network carries: remove `tls`"]);
    }
    let read =
        |text: &str| Config::parse("h.toml", &format!("[[backend]]\n{text}")).unwrap().backends.remove(0).tls;
    assert_eq!(read(postgres), None);
    assert_eq!(read(&format!("{postgres}tls = false")), None);
    assert_eq!(read(bare), Some(Tls::default()));
    assert_eq!(read(&format!("{postgres}tls = true")), Some(Tls::default()));
    let every = "tls = { ca_file = \"/a\", server_name = \"n\", cert_file = \"/c\", key_file = \"/k\", alpn = [\"x\"] }";
    let tls = read(&format!("{bare}{every}")).unwrap();
    assert_eq!((tls.ca_file, tls.server_name), (Some("/a".into()), Some("n".to_owned())));
    assert_eq!((tls.client, tls.alpn), (Some(("/c".into(), "/k".into())), vec!["x".to_owned()]));
}

#[test]
fn one_mistake_is_one_problem() {
    // The backend is broken, so its user is not told that it does not exist.
    let text = format!("[[backend]]\nname = \"db\"\n[[function]]\n{GOOD}backends = [\"db\", \"db\"]");
    check(
        &text,
        &[
            "1: backend.db.kind: is required: \"tcp\", \"tls\", \"postgres\", \"redis\" or \"mysql\"",
            "1: backend.db.address: is required",
            "8: function.f.backends[1]: \"db\" is listed twice",
        ],
    );
    // The runtime is not known, so no key is of another one.
    check(
        "[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = \"dokcer\"\nimage = \"i\"\nrootfs = \"/\"",
        &["4: function.f.runtime: unknown value \"dokcer\", did you mean \"docker\"?"],
    );
}

#[test]
fn secrets_are_not_shown() {
    let text = format!(
        "[[backend]]\nname = \"b\"\nkind = \"tcp\"\naddress = \"postgres://u:hunter2@h/d\"\npassword = \"hunter2\"\n\
         [[function]]\n{GOOD}env = {{ TOKEN = [\"hunter2\"], \"A B\" = \"hunter2\" }}"
    );
    let problems = problems(&text).join("\n");
    assert_eq!(problems.lines().count(), 4);
    assert!(!problems.contains("hunter2"), "{problems}");
    let config =
        Config::parse("h.toml", &format!("[[function]]\n{GOOD}env = {{ TOKEN = \"hunter2\" }}")).unwrap();
    assert!(format!("{config:?}").contains("TOKEN"));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn the_largest_file_is_read() {
    let functions = |count: usize| -> String {
        let function = |i: usize| {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(i).unwrap());
            format!("[[function]]\n{GOOD}")
                .replace("\"f\"", &format!("\"f{i}\""))
                .replace("[::]", &address.to_string())
        };
        (0..count).map(function).collect()
    };
    assert_eq!(Config::parse("h.toml", &functions(MAX_FUNCTIONS)).unwrap().functions.len(), MAX_FUNCTIONS);
    check(&functions(MAX_FUNCTIONS + 1), &["1: function: must be at most 10000 sections, not 10001"]);
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.toml");
    let message = || Config::load(&path).unwrap_err().to_string().replace(&path.display().to_string(), "F");
    assert_eq!(message(), "F: cannot be read: No such file or directory (os error 2)");
    std::fs::write(&path, b"a\n\xff").unwrap();
    assert_eq!(message(), "F: is not UTF-8 (line 2)");
    std::fs::write(&path, "[agent]\nx = 1").unwrap();
    assert!(
        message()
            .starts_with("F:2: agent.x: unknown key; the keys here are admin, cgroup_parent, data_threads, ")
    );
}

proptest! {
    #[test]
    fn any_text_is_parsed_without_panic(text in any::<String>()) {
        let _ = Config::parse("h.toml", &text);
    }

    /// Lines that look like the file reach deeper than arbitrary text does.
    #[test]
    fn any_shuffle_of_lines_is_parsed_without_panic(lines in proptest::collection::vec(line(), 0..30)) {
        let text = lines.join("\n");
        let count = |header| lines.iter().filter(|line| *line == header).count();
        match Config::parse("h.toml", &text) {
            Ok(config) => {
                // No section is dropped without a problem.
                prop_assert_eq!(config.backends.len(), count("[[backend]]"));
                prop_assert_eq!(config.functions.len(), count("[[function]]"));
            }
            Err(errors) => {
                let last = text.split('\n').count();
                prop_assert!(errors.problems().iter().all(|p| (1..=last).contains(&p.line)), "{}", errors);
            }
        }
    }
}

fn line() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "name",
        "listen",
        "runtime",
        "kind",
        "address",
        "pool",
        "env",
        "command",
        "backends",
        "memory",
        "user",
        "pool.ttl",
        "tls",
        "tls.ca_file",
        "interfaces",
        "admin",
        "id",
        "require_auth",
        "concurrency",
        "min_ready",
        "standby",
        "max_instances",
        "freeze_after",
        "hibernate_after",
        "stop_after",
        "overload",
        "key_file",
        "knock_port",
        "allow",
        "ignore",
        "starts.global",
    ]);
    let value = prop::sample::select(vec![
        "1",
        "\"a\"",
        "\"5s\"",
        "\"oci\"",
        "\"postgres\"",
        "\"h:1\"",
        "\"[::]:80\"",
        "[]",
        "[\"a\", 1]",
        "{ a = 1 }",
        "{ max = 3, wait = \"1s\" }",
        "false",
        "\"wake\"",
        "\"unlimited\"",
        "\"reset\"",
        "[\"10.0.0.0/8\", \"::/0\"]",
        "1979-05-27",
        "0x10",
        "nan",
        "\"\\u0000é\"",
    ]);
    prop_oneof![
        prop::sample::select(vec![
            "[agent]",
            "[syn]",
            "[[backend]]",
            "[[function]]",
            "[backend.pool]",
            "[function]"
        ])
        .prop_map(str::to_owned),
        (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
    ]
}

/// As execve(2) would say only at the start.
#[test]
fn arguments_and_variables_are_no_longer_than_the_kernel_takes() {
    let too_long = "the kernel takes 131071 bytes of a variable with its name, or of an argument: put it into a file, which \
                    mounts or secrets can show";
    let function = |keys: &str| {
        format!("[[function]]\nname = \"f\"\nlisten = \"[::]:81\"\nruntime = \"process\"\n{keys}\n")
    };
    let long = "x".repeat(131_069);
    check(&function(&format!("command = [\"/f\"]\nenv = {{ A = \"{long}\" }}")), &[]);
    let message = format!("6: function.f.env.A: is too long: {too_long}");
    check(&function(&format!("command = [\"/f\"]\nenv = {{ A = \"{long}x\" }}")), &[&message]);
    check(&function(&format!("command = [\"/f\", \"{long}xx\"]")), &[]);
    let message = format!("5: function.f.command: has a word that is too long: {too_long}");
    check(&function(&format!("command = [\"/f\", \"{long}xxx\"]")), &[&message]);
    let variables: String = (0..9).map(|i| format!("A{i} = \"{long}\"\n")).collect();
    let message = "6: function.f.env: is too long: arguments and variables can have 1 MiB together";
    check(
        &function(&format!("command = [\"/f\"]\n[function.env]\n{}", variables.replace("\"x", "\""))),
        &[message],
    );
}
