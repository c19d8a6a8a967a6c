//! A bare stream: connected, nothing said.

use super::{BoxFuture, ConnectCause, LoginResult, LoginVariant, Protocol, Session, Stream};

pub(super) struct TcpProtocol;

impl Protocol for TcpProtocol {
    fn log_in<'a>(
        &'a self,
        _: &'a mut Stream,
        _: Vec<u8>,
        _: &'a LoginVariant,
    ) -> BoxFuture<'a, Result<LoginResult, ConnectCause>> {
        Box::pin(async { Ok(LoginResult { session: Session::Tcp, cancel: None, exposed: None }) })
    }
}
