//! Drivers of others, at the versions that docs/drivers.md names: each does the same over a direct connection and over a
//! backend socket, and must see the same. The table there is what this test has found.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use headstart_injector::{
    Address, BackendKind, BackendSpec, MysqlLogin, Pool, PoolSettings, PostgresLogin, RedisLogin, Secret,
    Sockets,
};
use headstart_integration_tests::lab::{
    MariadbServer, PostgresServer, RedisServer, Scratch, privilege, run_within, target_dir, workspace,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(300);

const PYPI: &[&str] = &[
    "psycopg[binary]==3.3.9",
    "psycopg2-binary==2.9.13",
    "asyncpg==0.32.0",
    "pg8000==1.31.6",
    "SQLAlchemy==2.1.9",
    "Django==5.2.19",
    "PyMySQL==1.2.4",
    "mysql-connector-python==26.10.0",
    "aiomysql==0.3.2",
    "redis==8.1.0",
];
const NPM: &[&str] =
    &["pg@8.23.1", "postgres@3.4.9", "mysql2@3.24.6", "mariadb@3.5.4", "ioredis@6.0.0", "redis@6.3.1"];

/// The function of the script, the package with the version, and what the table calls it.
const POSTGRES: &[(&str, &str, &str)] = &[
    ("psycopg", "psycopg", "psycopg 3"),
    ("psycopg2", "psycopg2-binary", "psycopg2"),
    ("asyncpg", "asyncpg", "asyncpg"),
    ("pg8000", "pg8000", "pg8000"),
    ("sqlalchemy_psycopg", "SQLAlchemy", "SQLAlchemy over psycopg 3"),
    ("django_psycopg", "Django", "Django over psycopg 3"),
    ("pg", "", "node pg"),
    ("postgres", "", "postgres.js"),
];
const MYSQL: &[(&str, &str, &str)] = &[
    ("pymysql", "PyMySQL", "PyMySQL"),
    ("mysql_connector", "mysql-connector-python", "mysql-connector-python"),
    ("aiomysql", "aiomysql", "aiomysql"),
    ("sqlalchemy_pymysql", "SQLAlchemy", "SQLAlchemy over PyMySQL"),
    ("sqlalchemy_mysqlconnector", "SQLAlchemy", "SQLAlchemy over mysql-connector-python"),
    ("django_pymysql", "Django", "Django over PyMySQL"),
    ("mysql2", "", "mysql2"),
    ("mariadb", "", "mariadb (npm)"),
];
const REDIS: &[(&str, &str, &str)] =
    &[("redis", "redis", "redis-py"), ("ioredis", "", "ioredis"), ("redis", "", "node-redis")];

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
    kind: BackendKind,
    address: SocketAddr,
    user: &'static str,
    database: &'static str,
    password: String,
    socket: &'static str,
}

impl Server {
    /// What a driver sees, with its version.
    fn seen(&self, drivers: &Path, (name, package, _): (&str, &str, &str), socket: Option<&Path>) -> Value {
        let scripts = workspace().join("integration-tests/tests/drivers");
        let mut command = if package.is_empty() {
            let mut node = Command::new("node");
            node.arg(scripts.join("compat.js")).arg(name);
            node
        } else {
            let mut python = Command::new("/usr/bin/python3");
            python.arg(scripts.join("compat.py")).args([name, package]);
            python
        };
        command.env("PYTHONPATH", drivers.join("python")).env("NODE_PATH", drivers.join("node_modules"));
        command
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("WAY", if socket.is_some() { "socket" } else { "direct" });
        command.env("HOST", self.address.ip().to_string()).env("PORT", self.address.port().to_string());
        command.env("USER_NAME", self.user).env("DATABASE", self.database).env("PASSWORD", &self.password);
        command.env("SOCKET", socket.unwrap_or(Path::new("")));
        let output = run_within(LIMIT, &mut command);
        let text = output.unwrap_or_else(|error| panic!("{name} {package}: {error}"));
        serde_json::from_str(text.lines().last().unwrap()).unwrap_or_else(|_| panic!("{name}: {text}"))
    }

    /// The rows of the table.
    async fn compare(self, drivers: &Path, list: &[(&str, &str, &str)], table: &mut String) {
        let pool = PoolSettings { max: 16, recycle: true, ..PoolSettings::default() };
        let address = Address::Tcp(self.address.to_string());
        let pool =
            Pool::spawn(BackendSpec { name: "db".into(), kind: self.kind.clone(), address, tls: None, pool });
        let directory = Scratch::new("compat").unwrap();
        let _sockets =
            Sockets::listen("f", "f-1", directory.path(), std::slice::from_ref(&pool), 16).unwrap();
        let path = directory.path().join("db").join(self.socket);
        for driver in list {
            let difference = DIFFERENCES.iter().find(|(name, _, _)| *name == driver.2);
            let seen = |socket| {
                let mut seen: Value = tokio::task::block_in_place(|| self.seen(drivers, *driver, socket));
                let differs = |one: &Value| {
                    let begins = |what: &&str| one.as_str().unwrap().starts_with(what);
                    difference.is_some_and(|(_, what, _)| what.iter().any(begins))
                };
                seen["seen"].as_array_mut().unwrap().retain(|one| !differs(one));
                seen
            };
            let (direct, first) = (seen(None), seen(Some(path.as_path())));
            assert!(direct["seen"].as_array().is_some_and(|seen| seen.len() > 1), "{driver:?}: {direct}");
            let mut cell = "the same".to_owned();
            if first != direct {
                assert_eq!(seen(Some(&path)), direct, "{driver:?}: also the second time");
                cell += &format!(" from the second time on; at first `{}`", others(&first, &direct));
            }
            if let Some((_, _, why)) = difference {
                cell += &format!(", but {why}");
            }
            let version = direct["version"].as_str().unwrap();
            writeln!(table, "| {} | {version} | {cell} |", driver.2).unwrap();
        }
    }
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
        writeln!(table, "\n| {server} | version | over a backend socket |\n|---|---|---|").unwrap();
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
    let (kind, address) = (BackendKind::Postgres(login), server.address());
    head(&mut table, "PostgreSQL 15");
    Server { kind, address, user, database, password, socket: "" }
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
    let (kind, address) = (BackendKind::Mysql(login), server.address());
    head(&mut table, "MariaDB 10.11");
    let socket = "mysql.sock";
    Server { kind, address, user, database, password, socket }.compare(&drivers, MYSQL, &mut table).await;

    let server = RedisServer::on_loopback().unwrap();
    let password = read(server.password_file().unwrap());
    let user = RedisServer::USER;
    let login =
        RedisLogin { user: Some(user.into()), password: Some(Secret::new(password.clone())), database: 0 };
    let (kind, address) = (BackendKind::Redis(login), server.address());
    head(&mut table, "Redis 7.0");
    let socket = "redis.sock";
    Server { kind, address, user, database: "0", password, socket }
        .compare(&drivers, REDIS, &mut table)
        .await;

    let docs = fs::read_to_string(workspace().join("docs/drivers.md")).unwrap();
    assert!(docs.ends_with(&table), "docs/drivers.md should end with:\n{table}");
}
