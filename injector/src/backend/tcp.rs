//! A bare stream: connected, nothing said.

use super::{BoxFuture, ConnectCause, LoggedIn, Protocol, Session, Stream};

pub(super) struct Bare;

impl Protocol for Bare {
    fn log_in<'a>(&'a self, _: &'a mut Stream, _: Vec<u8>) -> BoxFuture<'a, Result<LoggedIn, ConnectCause>> {
        Box::pin(async { Ok(LoggedIn { session: Session::Tcp, cancel: None }) })
    }
}
