//! `[[backend]]`: the servers to which functions get connections.
//!
//! Each kind has a file: its keys, how they are read, and its rules. The reader here asks the kind and matches on no name.
//! One more kind is a file, an entry of `KINDS`, and a variant of [`Protocol`] with its arm in `Protocol::keys`.

mod address;
mod kind;
mod mysql;
mod pool;
mod postgres;
mod redis;
mod tcp;
mod tls;

use std::path::PathBuf;

pub use address::Address;
use kind::{Kind, ProtocolKeys};
pub use mysql::Mysql;
pub use pool::Pool;
pub use postgres::Postgres;
pub use redis::Redis;
pub use tls::Tls;

use crate::config::Declarations;
use crate::fingerprint::Fingerprint;
use crate::problem::Origin;
use crate::table::Table;

/// The values of `kind`, in the order in which messages list them.
const KINDS: [&Kind; 5] = [&tcp::TCP, &tcp::TLS, &postgres::KIND, &redis::KIND, &mysql::KIND];

/// A server to which the agent keeps connections for functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique; 1 to 63 of a-z, 0-9 and "-". Functions and metrics use it.
    pub name: String,
    /// `kind`: how a connection is made ready before a function gets it.
    pub protocol: Protocol,
    /// Where the server is.
    pub address: Address,
    /// TLS to it, in which the server proves its identity. Default `None`: `false`; with `kind = "tls"`, `true`.
    pub tls: Option<Tls>,
    /// How many connections are kept, and for how long.
    pub pool: Pool,
    /// Where this section is in the file.
    pub origin: Origin,
}

/// What is spoken to a backend before its connections are handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `tcp` and `tls`: nothing, the connection is handed over as soon as it is established.
    Tcp,
    /// `postgres`: the start-up and the login; functions get a session that is ready for queries.
    Postgres(Postgres),
    /// `redis`: the login, and the choice of the database.
    Redis(Redis),
    /// `mysql`: the login to MariaDB or MySQL.
    Mysql(Mysql),
}

impl Protocol {
    fn keys(&self) -> &dyn ProtocolKeys {
        match self {
            Self::Tcp => &tcp::NoKeys,
            Self::Postgres(keys) => keys,
            Self::Redis(keys) => keys,
            Self::Mysql(keys) => keys,
        }
    }

    /// The file with the password, if there is one.
    #[must_use]
    pub fn password_file(&self) -> Option<&PathBuf> {
        self.keys().password_file()
    }

    /// Environment variables that lead the usual drivers to the backend's socket, which is in `directory`.
    #[must_use]
    pub fn variables(&self, directory: &str) -> Vec<(&'static str, String)> {
        self.keys().variables(directory)
    }

    /// Adds what instances depend on.
    pub(crate) fn fingerprint(&self, hash: &mut Fingerprint) {
        self.keys().fingerprint(hash);
    }
}

impl Backend {
    /// Whether `other` says the same, wherever it stands in its file.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    /// The files with the credentials of both sides: the password, our certificate and key, the trusted certificates.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let tls = self.tls.iter().flat_map(|tls| {
            let client = tls.client.iter().flat_map(|(chain, key)| [chain, key]);
            tls.ca_file.iter().chain(client)
        });
        self.protocol.password_file().into_iter().chain(tls)
    }

    pub(crate) fn read(mut table: Table<'_>, declared: &mut Declarations) -> Option<Self> {
        let line = table.line();
        let name = table.require("name", "", |v| {
            let name = v.name()?;
            match declared.backends.get(&name) {
                Some(line) => v.fail(format!("{name:?} is already the backend on line {line}")),
                None => Some(name),
            }
        });
        if let Some(name) = &name {
            declared.backends.insert(name.clone(), line);
            table.rename(format!("backend.{name}"));
        }
        let kind = kind::read(&mut table);
        let protocol = kind.and_then(|kind| (kind.read)(&mut table));
        let address = table.require("address", "", |v| Address::read(&v));
        let tls = Tls::read(&mut table, kind, address.as_ref());
        let pool = table.or("pool", Pool::default(), |v| {
            v.table("pool = { max = 64 }").map(|t| Pool::read(t, protocol.as_ref()))
        });
        let origin = table.finish();
        Some(Self { name: name?, protocol: protocol?, address: address?, tls: tls?, pool, origin })
    }
}
