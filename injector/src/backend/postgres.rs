//! PostgreSQL, protocol 3.0 (PostgreSQL documentation, "Frontend/Backend Protocol").
//!
//! Without `tls` no `SSLRequest` is sent: a server that insists on TLS refuses, and the error carries its text. With
//! `tls` a server that has none is refused, and SCRAM is bound to the TLS session where the server can do that.

mod admit;
mod auth;
mod clean;
mod frames;
mod login;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use headstart_config::backend::Postgres;
use tokio::net::TcpStream;

use super::{BoxFuture, ConnectCause, LoginResult, LoginVariant, Protocol, Stream, TerminationDetector};
use crate::Secret;
use crate::secret::PasswordFileError;
use crate::sockets::{BackendSocket, ClientSession};
pub use frames::ProtocolError;

/// `Terminate`.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// How to log in to PostgreSQL.
#[derive(Debug, Clone, Default)]
pub struct PostgresLogin {
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// Not needed where the server trusts this role without one.
    pub password: Option<Secret>,
    /// Further start-up parameters, such as `search_path`. They replace the default `client_encoding=UTF8`, but not `user`
    /// and `database`.
    pub options: BTreeMap<String, String>,
    /// SQL to run once after the login, so that the catalogue caches of the server process are warm when the function
    /// sends its first query, and statements are prepared that it executes. Results (up to 256 KiB) are discarded.
    pub warm_up: Vec<String>,
}

impl PostgresLogin {
    pub(super) fn from_config(keys: &Postgres) -> Result<Self, PasswordFileError> {
        let name = keys.application_name.iter();
        Ok(Self {
            user: keys.user.clone(),
            database: keys.database.clone(),
            password: Secret::read(keys.password_file.as_deref())?,
            options: name.map(|name| ("application_name".to_owned(), name.clone())).collect(),
            warm_up: keys.warm_up.clone(),
        })
    }
}

impl Protocol for PostgresLogin {
    fn start_tls<'a>(
        &'a self,
        stream: &'a mut TcpStream,
        _: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<Vec<u8>, ConnectCause>> {
        Box::pin(login::start_tls(stream))
    }

    fn direct_tls(&self) -> Option<&'static [u8]> {
        Some(b"postgresql")
    }

    fn log_in<'a>(
        &'a self,
        stream: &'a mut Stream,
        _: Vec<u8>,
        variant: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<LoginResult, ConnectCause>> {
        let transport =
            login::PostgresTransport { private: stream.is_private(), end_point: stream.end_point() };
        Box::pin(login::log_in(self, stream, transport, variant))
    }

    fn socket_path(&self, path: &Path) -> PathBuf {
        if path.is_dir() { path.join(Postgres::SOCKET_NAME) } else { path.to_owned() }
    }

    fn socket_name(&self) -> &'static str {
        Postgres::SOCKET_NAME
    }

    fn admit<'a, 's: 'a>(
        &'a self,
        client: &'a mut Stream,
        socket: &'s BackendSocket,
    ) -> BoxFuture<'a, Option<ClientSession<'s>>> {
        Box::pin(admit::admit(self, client, socket))
    }

    fn turn_away(&self, client: Stream) -> BoxFuture<'_, ()> {
        Box::pin(admit::turn_away(client))
    }

    fn termination_detector(&self) -> Option<Box<dyn TerminationDetector>> {
        Some(Box::<clean::TerminateDetector>::default())
    }

    fn clean<'a>(
        &'a self,
        stream: &'a mut Stream,
        _: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<(), ConnectCause>> {
        Box::pin(clean::clean(self, stream))
    }

    fn termination_message(&self) -> &'static [u8] {
        TERMINATE
    }

    #[cfg(feature = "fuzzing")]
    fn fuzz_first_packet(&self, body: &[u8]) {
        admit::fuzz_first_packet(self, body);
    }
}
