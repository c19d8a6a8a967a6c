//! `kind = "postgres"`.

use std::path::PathBuf;

use super::Protocol;
use super::kind::{Kind, ProtocolKeys, TlsRule};
use crate::fingerprint::Fingerprint;
use crate::table::Table;

pub(super) const KIND: Kind = Kind {
    word: "postgres",
    keys: &["user", "database", "password_file", "application_name", "warm_up"],
    tls: TlsRule::Optional,
    tls_keys: &["direct"],
    recycles: true,
    read: |table| Postgres::read(table).map(Protocol::Postgres),
};

/// The keys of `kind = "postgres"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postgres {
    /// Role to log in as. Required.
    pub user: String,
    /// Database to connect to. Default: the same as `user`, as with libpq.
    pub database: String,
    /// File with the password, which only its owner may read. One newline at its end is not part of the
    /// password; everything else is, spaces too. Default: no password.
    pub password_file: Option<PathBuf>,
    /// SQL to run on each connection after the login, at most 32 statements: queries that warm its catalogue caches, and
    /// `PREPARE`s of statements that functions execute. Default none.
    pub warm_up: Vec<String>,
    /// What the server shows in `pg_stat_activity`; 1 to 63 printable ASCII characters. Default: not sent.
    pub application_name: Option<String>,
}

impl Postgres {
    /// The file name of the socket that an instance finds: the one that libpq looks for in a directory when no port is
    /// given.
    pub const SOCKET_NAME: &str = ".s.PGSQL.5432";

    fn read(table: &mut Table<'_>) -> Option<Self> {
        let user = table.require("user", " by kind = \"postgres\"", |v| v.text().map(str::to_owned));
        let database = table.or("database", None, |v| v.text().map(|text| Some(text.to_owned())));
        let password_file = table.get("password_file").and_then(|v| v.absolute_path());
        let application_name = table.get("application_name").and_then(|v| {
            // A longer name is cut by the server (NAMEDATALEN), other characters become "?".
            let printable = |text: &str| text.bytes().all(|b| (b' '..=b'~').contains(&b));
            v.matching("1 to 63 printable ASCII characters", |t| (1..=63).contains(&t.len()) && printable(t))
        });
        let warm_up = table.or("warm_up", Vec::new(), |v| {
            let statements = v.list()?;
            if statements.len() > 32 {
                return v.fail("must be at most 32 statements");
            }
            statements.into_iter().map(|v| v.text().map(str::to_owned)).collect()
        });
        let user = user?;
        Some(Self {
            database: database.unwrap_or_else(|| user.clone()),
            user,
            password_file,
            application_name,
            warm_up,
        })
    }
}

impl ProtocolKeys for Postgres {
    fn password_file(&self) -> Option<&PathBuf> {
        self.password_file.as_ref()
    }

    /// PostgreSQL documentation, "Environment Variables" of libpq.
    fn variables(&self, directory: &str) -> Vec<(&'static str, String)> {
        vec![
            ("PGHOST", directory.to_owned()),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.database.clone()),
        ]
    }

    fn fingerprint(&self, hash: &mut Fingerprint) {
        let Self { user, database, password_file, warm_up, application_name } = self;
        hash.add("kind", "postgres");
        hash.add("user", user);
        hash.add("database", database);
        hash.add_path("password_file", password_file.as_deref());
        if let Some(name) = application_name {
            hash.add("application_name", name);
        }
        for statement in warm_up {
            hash.add("warm_up", statement);
        }
    }
}
