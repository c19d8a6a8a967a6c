//! Redis (RESP2, redis.io/docs/latest/develop/reference/protocol-spec).
//!
//! The function may go on in RESP3 (`HELLO 3`): the connection belongs to it alone.

mod clean;
mod login;
mod replies;

use headstart_config::backend::Redis;

use super::{BoxFuture, ConnectCause, LoginResult, LoginVariant, Protocol, Stream, TerminationDetector};
use crate::Secret;
use crate::secret::PasswordFileError;

/// `QUIT`, as a whole command.
const QUIT: &[u8] = b"*1\r\n$4\r\nQUIT\r\n";

/// How to log in to Redis.
#[derive(Debug, Clone, Default)]
pub struct RedisLogin {
    /// The user of its access control list; `default` if none.
    pub user: Option<String>,
    /// Not needed if the user has none.
    pub password: Option<Secret>,
    /// The number of the database.
    pub database: u32,
}

impl RedisLogin {
    pub(super) fn from_config(keys: &Redis) -> Result<Self, PasswordFileError> {
        let password = Secret::read(keys.password_file.as_deref())?;
        Ok(Self { user: keys.user.clone(), password, database: keys.database })
    }
}

/// Clients may log in as they like, or not at all: the default [`Protocol::admit`] passes their commands on.
impl Protocol for RedisLogin {
    fn log_in<'a>(
        &'a self,
        stream: &'a mut Stream,
        _: Vec<u8>,
        _: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<LoginResult, ConnectCause>> {
        Box::pin(login::log_in(self, stream))
    }

    fn socket_name(&self) -> &'static str {
        Redis::SOCKET_NAME
    }

    fn termination_detector(&self) -> Option<Box<dyn TerminationDetector>> {
        Some(Box::<clean::RespDetector>::default())
    }

    fn clean<'a>(
        &'a self,
        stream: &'a mut Stream,
        _: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<(), ConnectCause>> {
        Box::pin(clean::clean(self, stream))
    }

    fn termination_message(&self) -> &'static [u8] {
        QUIT
    }
}
