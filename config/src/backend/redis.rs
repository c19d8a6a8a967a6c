//! `kind = "redis"`.

use std::path::PathBuf;

use super::Protocol;
use super::kind::{Kind, ProtocolKeys, TlsRule};
use crate::fingerprint::Fingerprint;
use crate::table::Table;

pub(super) const KIND: Kind = Kind {
    word: "redis",
    keys: &["user", "database", "password_file"],
    tls: TlsRule::Optional,
    tls_keys: &[],
    recycles: true,
    read: |table| Some(Protocol::Redis(Redis::read(table))),
};

/// The keys of `kind = "redis"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redis {
    /// User of the server's access control list. Default: `default`.
    pub user: Option<String>,
    /// Number of the database, 0 to 65535. Default 0.
    pub database: u32,
    /// File with the password, which only its owner may read. One newline at its end is not part of the password. Default: no
    /// password.
    pub password_file: Option<PathBuf>,
}

impl Redis {
    /// The file name of the socket that an instance finds.
    pub const SOCKET_NAME: &str = "redis.sock";

    fn read(table: &mut Table<'_>) -> Self {
        // A space or line end in the name would begin another word of the command.
        let user = table.get("user").and_then(|v| {
            v.matching("1 to 128 printable ASCII characters without spaces", |text| {
                (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
            })
        });
        let database = table.or("database", 0, |v| v.integer(0..=65_535));
        let password_file = table.get("password_file").and_then(|v| v.absolute_path());
        if let (Some(_), None) = (&user, &password_file) {
            table.require::<()>("password_file", " with a user", |_| None);
        }
        Self { user, database, password_file }
    }
}

impl ProtocolKeys for Redis {
    fn password_file(&self) -> Option<&PathBuf> {
        self.password_file.as_ref()
    }

    /// `REDIS_URL` as redis-py's `from_url` reads it.
    fn variables(&self, directory: &str) -> Vec<(&'static str, String)> {
        let (socket, database) = (Self::SOCKET_NAME, self.database);
        vec![("REDIS_URL", format!("unix://{directory}/{socket}?db={database}"))]
    }

    fn fingerprint(&self, hash: &mut Fingerprint) {
        let Self { user, database, password_file } = self;
        hash.add("kind", "redis");
        hash.add("user", user.as_deref().unwrap_or_default());
        hash.add("database", database.to_string());
        hash.add_path("password_file", password_file.as_deref());
    }
}
