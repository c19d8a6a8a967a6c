//! One backend as a pool needs it: made from the configuration, or by hand in tests and benches.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use headstart_config as config;
use thiserror::Error;

use crate::secret::PasswordFileError;
use crate::{BackendKind, Tls, TlsSettings, TlsSettingsError};

/// Shortest pause after a failed connect, unless the caller sets another one.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// One backend and the pool in front of it.
#[derive(Debug, Clone)]
pub struct BackendSpec {
    /// The name in configuration, errors and metric labels.
    pub name: String,
    /// The protocol, with what its login needs.
    pub kind: BackendKind,
    /// Where the server listens.
    pub address: Address,
    /// TLS to it; not over a unix socket.
    pub tls: Option<Tls>,
    /// How many connections are kept, and for how long.
    pub pool: PoolSettings,
}

/// Why a backend cannot be used as configured. A retry helps after the file is corrected.
#[derive(Debug, Error)]
pub enum SpecError {
    /// The password.
    #[error(transparent)]
    Password(#[from] PasswordFileError),
    /// The certificates, or the server's name.
    #[error(transparent)]
    Tls(#[from] TlsSettingsError),
}

impl BackendSpec {
    /// Reads the files that the section names: the password, certificates and keys.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn from_config(backend: &config::Backend) -> Result<Self, SpecError> {
        let (address, host) = match &backend.address {
            config::Address::Tcp { host, .. } => (Address::Tcp(backend.address.to_string()), host.as_str()),
            config::Address::Unix(path) => (Address::Unix(path.clone()), ""),
        };
        let tls = backend.tls.as_ref().map(|tls| {
            Tls::new(&TlsSettings {
                ca_file: tls.ca_file.clone(),
                server_name: tls.server_name.clone().unwrap_or_else(|| host.to_owned()),
                client: tls.client.clone(),
                alpn: tls.alpn.clone(),
                direct: tls.direct,
            })
        });
        Ok(Self {
            name: backend.name.clone(),
            kind: BackendKind::from_config(&backend.protocol)?,
            address,
            tls: tls.transpose()?,
            pool: PoolSettings::from(backend.pool),
        })
    }
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

/// Sizes and times of a pool. The defaults are those of the configuration ([`config::Pool`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Idle connections to keep ready. More than `max` means `max`.
    pub min_idle: usize,
    /// Keep more of them while more are leased: leases per second times the time of a connect, and as many as most
    /// bursts need. Those that are not needed end when their `ttl` is over.
    pub follow_demand: bool,
    /// Limit of idle, connecting and leased connections together. 0 counts as 1.
    pub max: usize,
    /// Limit of the connections of all pools with the same address and the same [`ServerQuotas`](crate::ServerQuotas), at
    /// the time when this pool begins another one.
    pub server_max: Option<usize>,
    /// Limit of the connections that one function has.
    pub max_per_function: Option<usize>,
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
    /// How long the server may acknowledge nothing, neither data nor probes, until the connection ends.
    pub peer_timeout: Duration,
    /// The shortest pause after a failed connect. Not in the configuration; default 100 ms.
    pub backoff_min: Duration,
    /// The longest pause after a failed connect.
    pub backoff_max: Duration,
    /// How long a lease may wait when `max` connections exist and none is idle.
    pub wait: Duration,
}

impl From<config::Pool> for PoolSettings {
    fn from(pool: config::Pool) -> Self {
        Self {
            min_idle: pool.min_idle,
            follow_demand: pool.follow_demand,
            max: pool.max,
            server_max: pool.server_max.and_then(|limit| limit.try_into().ok()),
            max_per_function: pool.max_per_function,
            recycle: pool.recycle,
            max_age: pool.max_age,
            ttl: pool.ttl,
            connect_timeout: pool.connect_timeout,
            peer_timeout: pool.peer_timeout,
            backoff_min: BACKOFF_MIN,
            backoff_max: pool.backoff_max,
            wait: pool.wait,
        }
    }
}

impl Default for PoolSettings {
    fn default() -> Self {
        config::Pool::default().into()
    }
}
