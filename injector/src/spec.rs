//! What the operator says about a backend.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Secret, Tls};

/// One backend and the pool in front of it.
#[derive(Debug, Clone)]
pub struct BackendSpec {
    /// The name in configuration, errors and metric labels.
    pub name: String,
    /// The protocol, with what it takes to log in.
    pub kind: BackendKind,
    /// Where the server listens.
    pub address: Address,
    /// TLS to it; not over a unix socket.
    pub tls: Option<Tls>,
    /// How many connections are kept, and for how long.
    pub pool: PoolSettings,
}

/// The protocols that can be spoken.
#[derive(Debug, Clone)]
pub enum BackendKind {
    /// A connected stream, without any login.
    Tcp,
    /// PostgreSQL, protocol 3.0.
    Postgres(PostgresLogin),
    /// Redis, from version 6 on.
    Redis(RedisLogin),
    /// MariaDB or MySQL.
    Mysql(MysqlLogin),
}

/// How to log in to MariaDB or MySQL.
#[derive(Debug, Clone, Default)]
pub struct MysqlLogin {
    /// The user.
    pub user: String,
    /// Needed unless that user has none.
    pub password: Option<Secret>,
    /// The default database.
    pub database: Option<String>,
}

/// How to log in to Redis.
#[derive(Debug, Clone, Default)]
pub struct RedisLogin {
    /// The user of its access control list; `default` if none.
    pub user: Option<String>,
    /// Needed unless that user has none.
    pub password: Option<Secret>,
    /// The number of the database.
    pub database: u32,
}

/// How to log in to PostgreSQL.
#[derive(Debug, Clone, Default)]
pub struct PostgresLogin {
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// Needed unless the server trusts us.
    pub password: Option<Secret>,
    /// Further start-up parameters, such as `search_path`. They replace the defaults
    /// `application_name=headstart` and `client_encoding=UTF8`, but not `user` and `database`.
    pub options: BTreeMap<String, String>,
    /// SQL to run once after the login, so that the catalogue caches of the server process are warm when the function
    /// sends its first query, and statements are prepared that it executes. Results (up to 256 KiB) are thrown away.
    pub warm_up: Vec<String>,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`, resolved anew at each connect.
    Tcp(String),
    /// A unix socket. For PostgreSQL also the directory that holds `.s.PGSQL.5432`.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host_port) => f.write_str(host_port),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Sizes and times of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Idle connections to keep ready. More than `max` means `max`.
    pub min_idle: usize,
    /// Keep more of them while more are asked for: leases per second times the time of a connect, and what most bursts
    /// need. What is not needed any more goes when its `ttl` is over.
    pub follow_demand: bool,
    /// Limit of idle, connecting and leased connections together. 0 counts as 1.
    pub max: usize,
    /// Limit of the connections of all pools of this process to the same address, at the time when this one begins
    /// another.
    pub server_max: Option<usize>,
    /// Connections that a client of a socket has closed properly are cleaned and kept for clients of the same function,
    /// where the protocol can be cleaned. Others are never used again.
    pub recycle: bool,
    /// How old such a connection may get, since its login.
    pub max_age: Duration,
    /// How long a connection may stay idle. Each one gets a random 80 to 100 % of it, so that they do
    /// not all expire at once. Zero: for ever.
    pub ttl: Duration,
    /// Limit for name resolution, connect and login together.
    pub connect_timeout: Duration,
    /// The shortest pause after a failed connect.
    pub backoff_min: Duration,
    /// The longest pause after a failed connect.
    pub backoff_max: Duration,
    /// How long a lease may wait when `max` connections exist and none is idle.
    pub wait: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            min_idle: 2,
            follow_demand: false,
            max: 16,
            server_max: None,
            recycle: false,
            max_age: Duration::from_secs(3600),
            ttl: Duration::from_secs(600),
            connect_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            wait: Duration::from_secs(5),
        }
    }
}
