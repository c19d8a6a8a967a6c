//! Drivers' own tests, in an instance without a network, against the socket that it finds: tests that others
//! wrote find cases that ours miss. They are fetched from PyPI and npm, at a version that is written down here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use headstart_integration_tests::lab::{
    AgentSetup, MariadbServer, PostgresServer, PostgresSetup, RedisServer, client, fixture, free_port,
    privilege, run_within, target_dir, unique, workspace,
};
use serde_json::{Value, json};

const FETCH_LIMIT: Duration = Duration::from_secs(300);
const SUITE_LIMIT: Duration = Duration::from_secs(120);

const PYTEST: &str = "pytest==8.3.4";
const PG8000: &str = "pg8000==1.31.2";
const PG8000_NEEDS: &[&str] = &["pytest-mock==3.14.0", "pytz==2024.2"];

/// A driver's sources, and what its tests need, where a process without privileges can read them. Removed on drop.
struct Suite(PathBuf);

impl Suite {
    /// From PyPI, with its sources: only they have the tests.
    fn new(driver: &str, needs: &[&str]) -> Self {
        Self::cached(driver, |cache| {
            let pip = |words: &[&str]| {
                let mut command = Command::new("/usr/bin/python3");
                command.args(["-m", "pip", "--quiet", "--disable-pip-version-check"]).args(words);
                run_within(FETCH_LIMIT, command.current_dir(cache)).unwrap()
            };
            pip(&[&["install", "--target", "packages", driver], needs].concat());
            let name = driver.split('=').next().unwrap();
            pip(&["download", "--no-deps", "--no-binary", name, "--dest", ".", driver]);
            let archive = format!("{}.tar.gz", driver.replace("==", "-"));
            let mut tar = Command::new("tar");
            tar.args(["-xzf", &archive, "--strip-components=1", "--wildcards", "*/test*"]);
            run_within(FETCH_LIMIT, tar.current_dir(cache)).unwrap();
        })
    }

    /// From npm.
    fn from_npm(driver: &str) -> Self {
        Self::cached(driver, |cache| {
            let mut npm = Command::new("npm");
            npm.args([
                "install",
                "--silent",
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                driver,
                "--prefix",
                ".",
            ]);
            run_within(FETCH_LIMIT, npm.current_dir(cache)).unwrap();
        })
    }

    /// Fetched once for each version.
    fn cached(driver: &str, fetch: impl FnOnce(&Path)) -> Self {
        // Several tests may want the same.
        static FETCH: Mutex<()> = Mutex::new(());
        let _turn = FETCH.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = target_dir().join("drivers").join(driver);
        if !cache.join("complete").exists() {
            let _ = fs::remove_dir_all(&cache);
            fs::create_dir_all(&cache).unwrap();
            fetch(&cache);
            fs::write(cache.join("complete"), "").unwrap();
        }
        let suite = Self(Path::new("/var/lib").join(unique("suite")));
        run_within(FETCH_LIMIT, Command::new("cp").arg("-r").arg(&cache).arg(&suite.0)).unwrap();
        suite
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One driver's tests.
struct Tests<'a> {
    /// The driver, and at which version.
    driver: &'a str,
    /// What they need beside pytest.
    needs: &'a [&'a str],
    /// What sends them to the socket, if they do not find it by themselves.
    plugin: Option<&'a str>,
    /// The files, in the driver's sources.
    files: &'a [&'a str],
    /// Which marks of theirs are wanted.
    marks: &'a str,
    /// What cannot pass, whatever serves it, and why.
    left_out: &'a [(&'a str, &'a str)],
    /// So many pass.
    passed: u32,
}

impl Tests<'_> {
    /// Runs them in an instance that finds `backend` as a socket.
    fn run(&self, backend: &str) {
        let suite = Suite::new(self.driver, &[&[PYTEST], self.needs].concat());
        if let Some(plugin) = self.plugin {
            let file = format!("{plugin}.py");
            fs::copy(workspace().join("integration-tests/tests/drivers").join(&file), suite.0.join(&file))
                .unwrap();
        }
        let root = suite.0.display().to_string();
        let keys = format!(
            "backend_sockets = true\nmemory = \"512MiB\"\n\
             env = {{ PYTHONPATH = \"{root}/packages:{root}\", PYTHONDONTWRITEBYTECODE = \"1\", HOME = \"/tmp\" }}\n"
        );
        let function = fixture::steady("process", &keys).unwrap();
        let text = function.text("suite", &["shared"]);
        let agent = AgentSetup::default().config(backend).config(&text).start().unwrap();
        function.rest(&agent, "suite").unwrap();

        let words = ["/usr/bin/python3", "-m", "pytest", "-p", "no:cacheprovider", "-q", "--rootdir", &root];
        let mut words = words.map(str::to_owned).to_vec();
        words.extend(self.plugin.iter().flat_map(|plugin| ["-p".to_owned(), (*plugin).to_owned()]));
        words.extend(self.files.iter().map(|file| format!("{root}/{file}")));
        let left_out: Vec<_> = self.left_out.iter().map(|(name, _why)| *name).collect();
        let filter = format!("not ({})", left_out.join(" or "));
        words.extend(["-m", self.marks, "-k", &filter].map(str::to_owned));
        let reply =
            client::request(function.local(), "POST", "/run", &words.join("\n"), SUITE_LIMIT).unwrap();
        println!("{}", reply.body);
        let passed = reply.body.lines().rev().find_map(|line| {
            let (before, _) = line.split_once(" passed")?;
            before.rsplit(' ').next()?.parse::<u32>().ok()
        });
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert!(passed >= Some(self.passed), "{passed:?} passed");
        assert!(agent.stop().unwrap().success());
    }
}

#[test]
fn the_tests_of_pg8000_pass() {
    if !able() {
        return;
    }
    let postgres = PostgresSetup::default().tls().start().unwrap();
    Tests {
        driver: PG8000,
        needs: PG8000_NEEDS,
        plugin: Some("pg8000_plugin"),
        files: &["test/legacy", "test/native", "test/dbapi"],
        marks: "",
        left_out: &[
            ("auth", "other ways to log in: that is the agent's"),
            ("benchmarks", "they want a plug-in, and measure the driver"),
            ("database", "databases that are not there, with the server's own error"),
            ("md5", "the same"),
            ("password", "the same, and passwords that are wrong"),
            ("unix", "sockets and hosts that are not there"),
            ("socket", "the same"),
            ("hstore", "an extension that is not installed"),
            ("parameter_statuses", "a superuser, who makes roles"),
        ],
        passed: 610,
    }
    .run(&shared(&postgres));
}

#[test]
fn the_tests_of_redis_py_pass() {
    if !able() {
        return;
    }
    let redis = RedisServer::on_loopback().unwrap();
    let backend = format!(
        "[[backend]]\nname = \"shared\"\nkind = \"redis\"\naddress = \"{}\"\nuser = \"{}\"\npassword_file = {:?}\n\
         pool = {{ min_idle = 4, max = 64 }}\n",
        redis.address(),
        RedisServer::USER,
        redis.password_file().unwrap(),
    );
    Tests {
        driver: "redis==5.2.1",
        needs: &["pytest-asyncio==0.24.0", "packaging==24.2"],
        plugin: Some("redis_plugin"),
        files: &[
            "tests/test_commands.py",
            "tests/test_pipeline.py",
            "tests/test_pubsub.py",
            "tests/test_scripting.py",
            "tests/test_lock.py",
        ],
        marks: "not onlycluster and not redismod",
        left_out: &[
            ("test_module", "the server loads no modules"),
            ("test_auth", "passwords: only the agent has them"),
            ("RedisDown", "a server that is not there"),
            ("test_acl_getuser", "another version of the server"),
            ("test_acl_log", "the same"),
        ],
        passed: 540,
    }
    .run(&backend);
}

#[test]
fn the_tests_of_asyncpg_pass() {
    if !able() {
        return;
    }
    let postgres = PostgresSetup::default().tls().start().unwrap();
    Tests {
        driver: "asyncpg==0.30.0",
        needs: &[],
        plugin: None,
        files: &[
            "tests/test_execute.py",
            "tests/test_prepare.py",
            "tests/test_copy.py",
            "tests/test_transaction.py",
            "tests/test_cursor.py",
            "tests/test_listeners.py",
            "tests/test_cancellation.py",
            "tests/test_timeout.py",
        ],
        marks: "",
        left_out: &[
            ("test_listen_", "they want the database postgres, and are told that it is another one"),
            ("dangling", "the same"),
            (
                "failure_during_writes",
                "a race of the server's error with 4 MB of writes, for which sockets have room",
            ),
        ],
        passed: 110,
    }
    .run(&shared(&postgres));
}

/// Its tests are not in its package: it does here what programs do with it.
#[test]
fn node_postgres_works_unchanged() {
    if !able() || !privilege::require_tools(&["node", "npm"]) {
        return;
    }
    let suite = Suite::from_npm("pg@8.13.1");
    let script = suite.0.join("node_postgres.js");
    fs::copy(workspace().join("integration-tests/tests/drivers/node_postgres.js"), &script).unwrap();
    let postgres = PostgresSetup::default().tls().start().unwrap();
    // Its threads reserve address space, and use little of it.
    let function = fixture::steady("process", "backend_sockets = true\nmemory = \"512MiB\"\n").unwrap();
    let text = function.text("suite", &["shared"]);
    let agent = AgentSetup::default().config(&shared(&postgres)).config(&text).start().unwrap();
    function.rest(&agent, "suite").unwrap();
    let words = format!("node\n{}", script.display());
    let reply = client::request(function.local(), "POST", "/run", &words, SUITE_LIMIT).unwrap();
    assert!(reply.status == 200 && reply.body.contains("all as expected"), "{}", reply.body);
    assert!(agent.stop().unwrap().success());
}

/// Those of the shim in Python, which give a driver the connection itself.
#[test]
fn the_drivers_of_the_python_module_find_themselves_logged_in() {
    if !able() || !privilege::require_tools(&["mariadbd"]) {
        return;
    }
    let suite = Suite::new(PG8000, &[&[PYTEST], PG8000_NEEDS].concat());
    let root = suite.0.display().to_string();
    let module = suite.0.join("module/headstart");
    fs::create_dir_all(module.parent().unwrap()).unwrap();
    let source = workspace().join("runtime-shim/python/src/headstart");
    run_within(FETCH_LIMIT, Command::new("cp").arg("-r").arg(source).arg(&module)).unwrap();
    let script = suite.0.join("helpers.py");
    fs::copy(workspace().join("integration-tests/tests/drivers/helpers.py"), &script).unwrap();

    let (postgres, redis) =
        (PostgresSetup::default().tls().start().unwrap(), RedisServer::on_loopback().unwrap());
    let mariadb = MariadbServer::on_loopback().unwrap();
    let pool = "pool = { min_idle = 1, max = 4 }\n";
    let backends = [
        shared(&postgres).replace("\"shared\"", "\"pg8000\""),
        format!(
            "[[backend]]\nname = \"redis\"\nkind = \"redis\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = 3\n\
             password_file = {:?}\n{pool}",
            redis.address(),
            RedisServer::USER,
            redis.password_file().unwrap(),
        ),
        format!(
            "[[backend]]\nname = \"pymysql\"\nkind = \"mysql\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = \"{}\"\n\
             password_file = {:?}\n{pool}",
            mariadb.address(),
            MariadbServer::USER,
            MariadbServer::DATABASE,
            mariadb.password_file().unwrap(),
        ),
    ];
    let (address, names) = (free_port().unwrap(), "\"pg8000\", \"pymysql\", \"redis\"");
    let function = format!(
        "[[function]]\nname = \"helpers\"\nlisten = \"{address}\"\nruntime = \"process\"\nmemory = \"512MiB\"\n\
         command = [\"/usr/bin/python3\", {script:?}]\nbackends = [{names}]\n\
         env = {{ PYTHONPATH = \"{root}/module:{root}/packages\", BACKENDS = \"pg8000,pymysql,redis\", \
         PYTHONDONTWRITEBYTECODE = \"1\" }}\n"
    );
    let agent = AgentSetup::default().config(&backends.concat()).config(&function).start().unwrap();
    agent.wait_function("helpers", "parked", SUITE_LIMIT, |function| function["prepared"] == 1).unwrap();
    let get = |path: &str| {
        let reply = client::get(address, path, SUITE_LIMIT).unwrap();
        (reply.status, serde_json::from_str::<Value>(&reply.body).unwrap_or_default())
    };
    let (status, first) = get("/");
    assert_eq!(status, 200, "{first}\n{}", agent.log());
    for (name, rest) in [
        ("pg8000", json!([PostgresServer::USER, PostgresServer::DATABASE, 100])),
        ("pymysql", json!([format!("{}@%", MariadbServer::USER), MariadbServer::DATABASE, 100])),
        ("redis", json!([RedisServer::USER, "v", 3])),
    ] {
        assert_eq!(first[name].as_array().unwrap()[1..], rest.as_array().unwrap()[..], "{first}");
    }
    assert_eq!(get("/").1, first, "each keeps its session");
    for name in ["pg8000", "pymysql", "redis"] {
        assert_eq!(get(&format!("/lose/{name}")).0, 200);
    }
    let (status, second) = get("/");
    assert_eq!(status, 200, "{second}");
    for name in ["pg8000", "pymysql", "redis"] {
        assert_ne!(first[name][0], second[name][0], "another session");
    }
    // What was closed is another's again.
    let pools: Value = serde_json::from_str(&agent.ask("GET", "/api/v1/backends").unwrap().body).unwrap();
    for pool in pools.as_array().unwrap() {
        assert_eq!(pool["leased"], 1, "{pool}");
    }
    let (status, said) = get("/wrong/pg8000/pymysql");
    assert!(status == 500 && said == "backend pg8000 is postgres, not mysql", "{said}");
    assert!(agent.stop().unwrap().success());
}

/// A database with TLS, as the backend that all have.
fn shared(postgres: &PostgresServer) -> String {
    format!(
        "[[backend]]\nname = \"shared\"\nkind = \"postgres\"\naddress = \"{}\"\nuser = \"{}\"\ndatabase = \"{}\"\n\
         password_file = {:?}\ntls = {{ ca_file = {:?} }}\npool = {{ min_idle = 4, max = 16 }}\n",
        postgres.address(),
        PostgresServer::USER,
        PostgresServer::DATABASE,
        postgres.password_file().unwrap(),
        postgres.ca_file(),
    )
}

fn able() -> bool {
    let tools = [
        "runc",
        "redis-server",
        "/usr/bin/python3",
        "/usr/lib/python3/dist-packages/pip",
        "/usr/lib/postgresql",
    ];
    privilege::require_root("containers and servers") && privilege::require_tools(&tools)
}
