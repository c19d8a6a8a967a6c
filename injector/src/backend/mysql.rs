//! MariaDB and MySQL (protocol 4.1).
//!
//! The agent asks for few capabilities, and none that changes the meaning of a query: the user of the connection must
//! speak with the same ones, which are part of its [`Session`](super::Session).

mod admit;
mod clean;
mod login;
mod packets;

use headstart_config::backend::Mysql;
use tokio::net::TcpStream;

use super::{BoxFuture, ConnectCause, LoginResult, LoginVariant, Protocol, Stream, TerminationDetector};
use crate::Secret;
use crate::secret::PasswordFileError;
use crate::sockets::{BackendSocket, ClientSession};

/// `COM_QUIT`, as a whole packet: length, sequence number, command.
const QUIT: [u8; 5] = [1, 0, 0, 0, 1];

/// How to log in to MariaDB or MySQL.
#[derive(Debug, Clone, Default)]
pub struct MysqlLogin {
    /// The user.
    pub user: String,
    /// Not needed if the user has none.
    pub password: Option<Secret>,
    /// The default database.
    pub database: Option<String>,
}

impl MysqlLogin {
    pub(super) fn from_config(keys: &Mysql) -> Result<Self, PasswordFileError> {
        let password = Secret::read(keys.password_file.as_deref())?;
        Ok(Self { user: keys.user.clone(), password, database: keys.database.clone() })
    }
}

impl Protocol for MysqlLogin {
    fn start_tls<'a>(
        &'a self,
        stream: &'a mut TcpStream,
        variant: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<Vec<u8>, ConnectCause>> {
        Box::pin(login::start_tls(stream, variant))
    }

    fn log_in<'a>(
        &'a self,
        stream: &'a mut Stream,
        greeting: Vec<u8>,
        variant: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<LoginResult, ConnectCause>> {
        let transport = login::MysqlTransport::of(stream);
        Box::pin(login::log_in(self, stream, greeting, transport, variant))
    }

    fn socket_name(&self) -> &'static str {
        Mysql::SOCKET_NAME
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
        Some(Box::<clean::QuitDetector>::default())
    }

    fn clean<'a>(
        &'a self,
        stream: &'a mut Stream,
        variant: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<(), ConnectCause>> {
        let transport = login::MysqlTransport::of(stream);
        Box::pin(clean::clean(self, stream, transport, variant))
    }

    fn termination_message(&self) -> &'static [u8] {
        &QUIT
    }

    #[cfg(feature = "fuzzing")]
    fn fuzz_first_packet(&self, body: &[u8]) {
        admit::fuzz_first_packet(self, body);
    }
}
