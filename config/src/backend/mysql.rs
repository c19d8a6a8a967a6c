//! `kind = "mysql"`: MariaDB or MySQL.

use std::path::PathBuf;

use super::Protocol;
use super::kind::{Kind, ProtocolKeys, TlsRule};
use crate::fingerprint::Fingerprint;
use crate::table::Table;

pub(super) const KIND: Kind = Kind {
    word: "mysql",
    keys: &["user", "database", "password_file"],
    tls: TlsRule::Optional,
    tls_keys: &[],
    recycles: true,
    read: |table| Mysql::read(table).map(Protocol::Mysql),
};

/// The keys of `kind = "mysql"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mysql {
    /// User to log in as. Required.
    pub user: String,
    /// Default database. Default: none.
    pub database: Option<String>,
    /// File with the password, which only its owner may read. One newline at its end is not part of the password. Default: no
    /// password.
    pub password_file: Option<PathBuf>,
}

impl Mysql {
    /// The file name of the socket that an instance finds.
    pub const SOCKET_NAME: &str = "mysql.sock";

    fn read(table: &mut Table<'_>) -> Option<Self> {
        let user = table.require("user", " by kind = \"mysql\"", |v| v.text().map(str::to_owned));
        let database = table.or("database", None, |v| v.text().map(|text| Some(text.to_owned())));
        let password_file = table.get("password_file").and_then(|v| v.absolute_path());
        Some(Self { user: user?, database, password_file })
    }
}

impl ProtocolKeys for Mysql {
    fn password_file(&self) -> Option<&PathBuf> {
        self.password_file.as_ref()
    }

    /// `MYSQL_UNIX_PORT` of the client libraries of MariaDB and MySQL.
    fn variables(&self, directory: &str) -> Vec<(&'static str, String)> {
        vec![("MYSQL_UNIX_PORT", format!("{directory}/{}", Self::SOCKET_NAME))]
    }

    fn fingerprint(&self, hash: &mut Fingerprint) {
        let Self { user, database, password_file } = self;
        hash.add("kind", "mysql");
        hash.add("user", user);
        hash.add("database", database.as_deref().unwrap_or_default());
        hash.add_path("password_file", password_file.as_deref());
    }
}
