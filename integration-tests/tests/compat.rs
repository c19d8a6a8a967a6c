//! Drivers of others, at the versions that docs/drivers.md names: each does the same over a direct connection and in
//! each way in which a function gets a connection, and must see the same. The table there is what this test has found.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use headstart_injector::{
    Address, BackendKind, BackendSpec, HandOver, MysqlLogin, Pool, PoolSettings, PostgresLogin, RedisLogin,
    Secret, Sockets, TlsMode,
};
use headstart_integration_tests::lab::{
    MariadbServer, PostgresServer, RedisServer, Scratch, build_static, privilege, run_within, target_dir,
    workspace,
};
use headstart_test_support::FunctionProcess;
use headstart_wire::{Grant, GrantStatus};
use serde_json::Value;
use tokio::runtime::Handle;

const LIMIT: Duration = Duration::from_secs(300);

/// Connections that a function gets with its lease.
const LEASED: usize = 4;

const PYPI: &[&str] = &[
    "psycopg[binary]==3.3.9",
    "psycopg2-binary==2.9.13",
    "asyncpg==0.32.0",
    "pg8000==1.31.6",
    "SQLAlchemy[asyncio]==2.1.9",
    "Django==5.2.19",
    "PyMySQL==1.2.4",
    "mysqlclient==2.3.1",
    "mysql-connector-python==26.10.0",
    "mariadb==1.1.14",
    "aiomysql==0.3.2",
    "redis==8.1.0",
    "valkey-glide==2.5.3",
];
const NPM: &[&str] =
    &["pg@8.23.1", "postgres@3.4.9", "mysql2@3.24.6", "mariadb@3.5.4", "ioredis@6.0.0", "redis@6.3.1"];

/// The function of the script, the package with the version, what the table calls it, and in which ways it gets a
/// connection.
type Driver = (&'static str, &'static str, &'static str, &'static [Way]);

/// How a function gets a connection, in the order of the table's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It gets the connection itself.
    Held,
    Socket,
    /// Of the container's loopback interface.
    Port,
}

use Way::{Held, Port, Socket};

const ALL: &[Way] = &[Held, Socket, Port];
const BOTH: &[Way] = &[Socket, Port];

/// In place of a package: node, whose packages say their version themselves, and a program of ours.
const NODE: &str = "";
const RUST: &str = "rust";

const POSTGRES: &[Driver] = &[
    ("psycopg", "psycopg", "psycopg 3", BOTH),
    ("psycopg2", "psycopg2-binary", "psycopg2", BOTH),
    ("asyncpg", "asyncpg", "asyncpg", BOTH),
    ("pg8000", "pg8000", "pg8000", ALL),
    ("sqlalchemy_psycopg", "SQLAlchemy", "SQLAlchemy over psycopg 3", BOTH),
    ("sqlalchemy_psycopg2", "SQLAlchemy", "SQLAlchemy over psycopg2", BOTH),
    ("sqlalchemy_asyncpg", "SQLAlchemy", "SQLAlchemy over asyncpg", BOTH),
    ("sqlalchemy_pg8000", "SQLAlchemy", "SQLAlchemy over pg8000", BOTH),
    ("django_psycopg", "Django", "Django over psycopg 3", BOTH),
    ("django_psycopg2", "Django", "Django over psycopg2", BOTH),
    ("pg", NODE, "node pg", BOTH),
    ("postgres", NODE, "postgres.js", BOTH),
    ("tokio-postgres", RUST, "tokio-postgres", ALL),
    ("psql", "psql", "psql", BOTH),
    ("pgbench", "pgbench", "pgbench", BOTH),
];
const MYSQL: &[Driver] = &[
    ("pymysql", "PyMySQL", "PyMySQL", ALL),
    ("mysqlclient", "mysqlclient", "mysqlclient", BOTH),
    ("mysql_connector", "mysql-connector-python", "mysql-connector-python", BOTH),
    ("mariadb", "mariadb", "mariadb (Python)", BOTH),
    ("aiomysql", "aiomysql", "aiomysql", BOTH),
    ("sqlalchemy_pymysql", "SQLAlchemy", "SQLAlchemy over PyMySQL", BOTH),
    ("sqlalchemy_mysqlclient", "SQLAlchemy", "SQLAlchemy over mysqlclient", BOTH),
    ("sqlalchemy_mysqlconnector", "SQLAlchemy", "SQLAlchemy over mysql-connector-python", BOTH),
    ("sqlalchemy_mariadb", "SQLAlchemy", "SQLAlchemy over mariadb (Python)", BOTH),
    ("django_pymysql", "Django", "Django over PyMySQL", BOTH),
    ("django_mysql", "Django", "Django over mysqlclient", BOTH),
    ("django_mysqlconnector", "Django", "Django over mysql-connector-python", BOTH),
    ("mysql2", NODE, "mysql2", BOTH),
    ("mariadb", NODE, "mariadb (npm)", BOTH),
];
const REDIS: &[Driver] = &[
    ("redis", "redis", "redis-py", ALL),
    ("glide", "valkey-glide", "valkey-glide (Python)", &[Port]),
    ("ioredis", NODE, "ioredis", BOTH),
    ("redis", NODE, "node-redis", BOTH),
];

/// What is not the same: the driver, what it sees, and why.
const DIFFERENCES: &[(&str, &[&str], &str)] = &[(
    "mariadb (npm)",
    &["batch: ", "collation: "],
    "`batch()` sends a statement for each row and gives a list of results (the agent does not offer MariaDB's bulk \
     operations); the collation is the `utf8mb4_unicode_ci` of its login (directly, it sends `SET NAMES` to a server whose \
     own character set is another one)",
)];

/// Where the drivers are, fetched once for each list of versions.
fn fetched() -> PathBuf {
    let cache = target_dir().join("drivers/compat");
    let wanted = format!("{PYPI:?} {NPM:?}");
    if fs::read_to_string(cache.join("complete")).is_ok_and(|text| text == wanted) {
        return cache;
    }
    let _ = fs::remove_dir_all(&cache);
    fs::create_dir_all(&cache).unwrap();
    let mut pip = Command::new("/usr/bin/python3");
    pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--target", "python"]);
    run_within(LIMIT, pip.args(PYPI).current_dir(&cache)).unwrap();
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", "."]);
    run_within(LIMIT, npm.args(NPM).current_dir(&cache)).unwrap();
    fs::write(cache.join("complete"), wanted).unwrap();
    cache
}

/// A server, and how to get to it directly.
struct Server {
    login: BackendKind,
    address: SocketAddr,
    user: &'static str,
    database: &'static str,
    password: String,
    /// The name of its socket.
    socket: &'static str,
    /// What connections that functions hold are logged in with, if not with `login`.
    held: Option<BackendKind>,
}

/// What drivers run against: a server, and what an agent puts before it.
struct Bed<'a> {
    server: &'a Server,
    drivers: &'a Path,
    socket: PathBuf,
    port: SocketAddr,
    held: Pool,
    runtime: Handle,
}

impl Bed<'_> {
    /// What a driver sees, with its version. Without a way, over a direct connection.
    fn seen(&self, (name, package, label, _): Driver, way: Option<Way>) -> Value {
        let scripts = workspace().join("integration-tests/tests/drivers");
        let mut command = match package {
            NODE => Command::new("node"),
            RUST => Command::new(build_static("headstart-lab-functions", "driver").unwrap()),
            _ => Command::new("/usr/bin/python3"),
        };
        match package {
            NODE => drop(command.arg(scripts.join("compat.js")).arg(name)),
            RUST => drop(command.env("VERSION", locked_version(name))),
            _ => drop(command.arg(scripts.join("compat.py")).args([name, package])),
        }
        let modules = [self.drivers.join("python"), workspace().join("runtime-shim/python/src")];
        let address = if way == Some(Port) { self.port } else { self.server.address };
        command
            .env("PYTHONPATH", std::env::join_paths(modules).unwrap())
            .env("NODE_PATH", self.drivers.join("node_modules"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("WAY", way.map_or("direct".to_owned(), |way| format!("{way:?}").to_lowercase()))
            .env("HOST", address.ip().to_string())
            .env("PORT", address.port().to_string())
            .env("SOCKET", &self.socket)
            .env("USER_NAME", self.server.user)
            .env("DATABASE", self.server.database)
            .env_remove("PASSWORD");
        if way.is_none() {
            command.env("PASSWORD", &self.server.password);
        }
        let text = match way {
            Some(Held) => self.holding(command),
            _ => run_within(LIMIT, &mut command).unwrap_or_else(|error| panic!("{label} {way:?}: {error}")),
        };
        let text = text.lines().last().unwrap_or_default();
        serde_json::from_str(text).unwrap_or_else(|_| panic!("{label} {way:?}: {text}"))
    }

    /// What a function prints that gets connections with its lease.
    fn holding(&self, mut command: Command) -> String {
        let (mut grants, mut slots) = (Vec::new(), Vec::new());
        for number in 0..LEASED {
            let lease = self.runtime.block_on(self.held.lease()).unwrap();
            let HandOver { fd, session, slot, .. } = lease.hand_over(TlsMode::Relay).unwrap();
            let status = GrantStatus::Ready { session, expires_ns: None, tls: None };
            grants.push((Grant { backend: format!("db{number}"), status }, Some(fd)));
            slots.push(slot);
        }
        let scratch = Scratch::new("held").unwrap();
        let said = scratch.path().join("said");
        command.stdout(fs::File::create(&said).unwrap());
        let (status, _, error) = FunctionProcess::start(command, grants).ended();
        assert!(status.success(), "{error}");
        fs::read_to_string(said).unwrap()
    }

    /// The cells of a driver's row.
    fn row(&self, driver: Driver) -> String {
        let (_, _, label, ways) = driver;
        let difference = DIFFERENCES.iter().find(|(name, _, _)| *name == label);
        let seen = |way| {
            let mut seen = self.seen(driver, way);
            let differs = |one: &Value| {
                let begins = |what: &&str| one.as_str().unwrap().starts_with(what);
                difference.is_some_and(|(_, what, _)| what.iter().any(begins))
            };
            seen["seen"].as_array_mut().unwrap().retain(|one| !differs(one));
            seen
        };
        // What is learned from the first client of a socket is known at the port.
        let concurrent = |one, other| {
            std::thread::scope(|scope| {
                let is = |way: Option<Way>| way.is_none_or(|way| ways.contains(&way));
                let other = is(other).then(|| scope.spawn(|| seen(other)));
                (is(one).then(|| seen(one)), other.map(|other| other.join().unwrap()))
            })
        };
        let (direct, socket) = concurrent(None, Some(Socket));
        let (held, port) = concurrent(Some(Held), Some(Port));
        let direct = direct.unwrap();
        assert!(direct["seen"].as_array().is_some_and(|seen| seen.len() > 1), "{label}: {direct}");
        let held = held.map_or("-".to_owned(), |held| {
            // Its login is the agent's, so it sees less.
            let (held, direct) = (held["seen"].as_array().unwrap(), direct["seen"].as_array().unwrap());
            assert!(held.len() > 1 && direct.starts_with(held), "{label}: {held:?} and not {direct:?}");
            "the same".to_owned()
        });
        let mut differences = difference.iter();
        let mut cell = |first: Option<Value>, way| {
            let Some(first) = first else { return "-".to_owned() };
            let mut cell = "the same".to_owned();
            if first != direct {
                assert_eq!(seen(Some(way)), direct, "{label}: also the second time");
                write!(cell, " from the second time on; at first `{}`", others(&first, &direct)).unwrap();
            }
            match (difference, differences.next()) {
                (_, Some((_, _, why))) => cell + ", but " + why,
                (Some(_), None) => cell + ", but for what the socket has",
                (None, None) => cell,
            }
        };
        let (socket, port) = (cell(socket, Socket), cell(port, Port));
        format!("| {label} | {} | {held} | {socket} | {port} |\n", direct["version"].as_str().unwrap())
    }
}

impl Server {
    /// The rows of the table.
    async fn compare(self, drivers: &Path, list: &[Driver], table: &mut String) {
        let pool = |kind: &BackendKind, recycle| {
            let pool = PoolSettings { max: 16, recycle, ..PoolSettings::default() };
            let address = Address::Tcp(self.address.to_string());
            Pool::spawn(BackendSpec { name: "db".into(), kind: kind.clone(), address, tls: None, pool })
        };
        let (pool, held) = (pool(&self.login, true), pool(self.held.as_ref().unwrap_or(&self.login), false));
        let directory = Scratch::new("compat").unwrap();
        let mut sockets =
            Sockets::listen("f", "f-1", directory.path(), std::slice::from_ref(&pool), 16).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap();
        sockets.admit("db", listener).unwrap();
        let socket = directory.path().join("db").join(self.socket);
        let bed = Bed { server: &self, drivers, socket, port, held, runtime: Handle::current() };
        for driver in list {
            let row = tokio::task::block_in_place(|| bed.row(*driver));
            print!("{row}");
            table.push_str(&row);
        }
    }
}

/// The version of a crate that is linked.
fn locked_version(name: &str) -> String {
    let locked = fs::read_to_string(workspace().join("Cargo.lock")).unwrap();
    let (_, after) = locked.split_once(&format!("name = \"{name}\"\nversion = \"")).unwrap();
    after.split('"').next().unwrap().to_owned()
}

/// What was seen and should not have been.
fn others(seen: &Value, expected: &Value) -> String {
    let (seen, expected) = (seen["seen"].as_array().unwrap(), expected["seen"].as_array().unwrap());
    let mut others: Vec<_> = seen.iter().filter(|one| !expected.contains(one)).collect();
    others.dedup();
    others.iter().map(|one| one.as_str().unwrap()).collect::<Vec<_>>().join("`, `")
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_see_the_same_as_over_a_direct_connection() {
    let tools = ["redis-server", "mariadbd", "node", "npm", "/usr/lib/postgresql"];
    if !privilege::require_root("servers") || !privilege::require_tools(&tools) {
        return;
    }
    let drivers = fetched();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap().trim().to_owned();
    let mut table = String::new();
    let head = |table: &mut String, server: &str| {
        writeln!(
            table,
            "\n| {server} | version | held connection | unix socket | port |\n|---|---|---|---|---|"
        )
        .unwrap();
    };

    let server = PostgresServer::on_loopback().unwrap();
    let password = read(server.password_file().unwrap());
    let (user, database) = (PostgresServer::USER, PostgresServer::DATABASE);
    let login = PostgresLogin {
        user: user.into(),
        database: database.into(),
        password: Some(Secret::new(password.clone())),
        ..PostgresLogin::default()
    };
    // What a client asks for at its login, a function has asked for in the configuration.
    let options = [("search_path".to_owned(), "a".to_owned())].into();
    let held = Some(BackendKind::Postgres(PostgresLogin { options, ..login.clone() }));
    let (login, address) = (BackendKind::Postgres(login), server.address());
    head(&mut table, "PostgreSQL 15");
    Server { login, address, user, database, password, socket: "", held }
        .compare(&drivers, POSTGRES, &mut table)
        .await;

    let server = MariadbServer::on_loopback().unwrap();
    let password = read(server.password_file().unwrap());
    let (user, database) = (MariadbServer::USER, MariadbServer::DATABASE);
    let login = MysqlLogin {
        user: user.into(),
        password: Some(Secret::new(password.clone())),
        database: Some(database.into()),
    };
    let (login, address) = (BackendKind::Mysql(login), server.address());
    head(&mut table, "MariaDB 10.11");
    let socket = "mysql.sock";
    Server { login, address, user, database, password, socket, held: None }
        .compare(&drivers, MYSQL, &mut table)
        .await;

    let server = RedisServer::on_loopback().unwrap();
    let password = read(server.password_file().unwrap());
    let user = RedisServer::USER;
    let login =
        RedisLogin { user: Some(user.into()), password: Some(Secret::new(password.clone())), database: 0 };
    let (login, address) = (BackendKind::Redis(login), server.address());
    head(&mut table, "Redis 7.0");
    let socket = "redis.sock";
    Server { login, address, user, database: "0", password, socket, held: None }
        .compare(&drivers, REDIS, &mut table)
        .await;

    let docs = fs::read_to_string(workspace().join("docs/drivers.md")).unwrap();
    assert!(docs.ends_with(&table), "docs/drivers.md should end with:\n{table}");
}
