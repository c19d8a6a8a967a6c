//! From a `[[backend]]` section to its pool.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use headstart_config::{self as config, Protocol};
use headstart_injector::{
    Address, BackendKind, BackendSpec, MysqlLogin, Pool, PoolSettings, PostgresLogin, RedisLogin, Secret,
    Tls, TlsSettings,
};
use sha2::{Digest, Sha256};

/// Shortest pause after a failed connect to a backend.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// A pool that does not connect yet.
pub(crate) fn pool(backend: &config::Backend) -> Result<Pool, String> {
    backend_spec(backend).map(Pool::new)
}

/// Tells the content of a backend's files, passwords and certificates, from another.
pub(crate) type Credentials = [u8; 32];

/// What is in the files that a backend names. One that cannot be read counts as empty.
pub(crate) fn credentials(backend: &config::Backend) -> Credentials {
    let mut hash = Sha256::new();
    for file in backend.files() {
        let content = fs::read(file).unwrap_or_default();
        hash.update(content.len().to_le_bytes());
        hash.update(content);
    }
    hash.finalize().into()
}

fn backend_spec(backend: &config::Backend) -> Result<BackendSpec, String> {
    let kind = match &backend.protocol {
        Protocol::Tcp => BackendKind::Tcp,
        Protocol::Redis(redis) => BackendKind::Redis(RedisLogin {
            user: redis.user.clone(),
            password: redis.password_file.as_deref().map(password).transpose()?,
            database: redis.database,
        }),
        Protocol::Mysql(mysql) => BackendKind::Mysql(MysqlLogin {
            user: mysql.user.clone(),
            password: mysql.password_file.as_deref().map(password).transpose()?,
            database: mysql.database.clone(),
        }),
        Protocol::Postgres(postgres) => {
            let password = postgres.password_file.as_deref().map(password).transpose()?;
            let name = postgres.application_name.iter();
            BackendKind::Postgres(PostgresLogin {
                user: postgres.user.clone(),
                database: postgres.database.clone(),
                password,
                options: name
                    .map(|name| ("application_name".to_owned(), name.clone()))
                    .collect::<BTreeMap<_, _>>(),
                warm_up: postgres.warm_up.clone(),
            })
        }
    };
    let address = match &backend.address {
        config::Address::Tcp { .. } => Address::Tcp(backend.address.to_string()),
        config::Address::Unix(path) => Address::Unix(path.clone()),
    };
    let tls = backend.tls.as_ref().map(|tls| {
        let host = match &backend.address {
            config::Address::Tcp { host, .. } => host.clone(),
            config::Address::Unix(_) => String::new(),
        };
        Tls::new(&TlsSettings {
            ca_file: tls.ca_file.clone(),
            server_name: tls.server_name.clone().unwrap_or(host),
            client: tls.client.clone(),
            alpn: tls.alpn.clone(),
            direct: tls.direct,
        })
    });
    let tls = tls.transpose().map_err(|error| error.to_string())?;
    let pool = backend.pool;
    let pool = PoolSettings {
        min_idle: pool.min_idle,
        follow_demand: pool.follow_demand,
        server_max: pool.server_max.and_then(|limit| limit.try_into().ok()),
        recycle: pool.recycle,
        max_age: pool.max_age,
        max: pool.max,
        ttl: pool.ttl,
        connect_timeout: pool.connect_timeout,
        backoff_min: BACKOFF_MIN,
        backoff_max: pool.backoff_max,
        wait: pool.wait,
    };
    Ok(BackendSpec { name: backend.name.clone(), kind, address, tls, pool })
}

/// The content of a password file without its last line end.
fn password(file: &Path) -> Result<Secret, String> {
    let mut text = fs::read_to_string(file)
        .map_err(|error| format!("the password file {} cannot be read: {error}", file.display()))?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(Secret::new(text))
}
