//! PostgreSQL, protocol 3.0 (PostgreSQL documentation, "Frontend/Backend Protocol").
//!
//! Without `tls` no `SSLRequest` is sent: a server that insists on TLS refuses, and the error carries its words. With
//! it a server that has none is refused, and SCRAM is bound to the TLS session where the server can do that.

mod admit;
mod auth;
mod clean;
mod frames;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use postgres_protocol::message::{backend::Message, frontend};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::{BoxFuture, CancelRequest, ConnectCause, Goodbye, LoggedIn, Protocol, Session, Stream};
use crate::PostgresLogin;
use crate::sockets::{Admitted, Door};
#[cfg(feature = "fuzzing")]
pub(crate) use admit::fuzz_first_packet;
pub use frames::ProtocolError;
use frames::{Frames, encode};

/// The socket that libpq looks for in a directory when no port is given.
const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// Start-up parameters that the operator's options replace.
const DEFAULTS: [(&str, &str); 2] = [("application_name", "headstart"), ("client_encoding", "UTF8")];

/// `Terminate`.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

impl Protocol for PostgresLogin {
    fn log_in<'a>(
        &'a self,
        stream: &'a mut Stream,
        _: Vec<u8>,
    ) -> BoxFuture<'a, Result<LoggedIn, ConnectCause>> {
        let channel = Channel { private: stream.is_private(), end_point: stream.end_point() };
        Box::pin(log_in(self, stream, channel))
    }

    fn start_tls<'a>(&'a self, stream: &'a mut TcpStream) -> BoxFuture<'a, Result<Vec<u8>, ConnectCause>> {
        Box::pin(async {
            let mut request = BytesMut::new();
            frontend::ssl_request(&mut request);
            stream.write_all(&request).await.map_err(ConnectCause::Lost)?;
            // One byte, so that nothing that somebody slips in before the handshake is taken for later.
            match stream.read_u8().await {
                Ok(b'S') => Ok(Vec::new()),
                Ok(b'N') => Err(ConnectCause::TlsRefused),
                Ok(tag) => Err(ProtocolError::Unexpected { tag }.into()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ConnectCause::Closed),
                Err(error) => Err(ConnectCause::Lost(error)),
            }
        })
    }

    fn direct_tls(&self) -> Option<&'static [u8]> {
        Some(b"postgresql")
    }

    fn socket_path(&self, path: &Path) -> PathBuf {
        if path.is_dir() { path.join(SOCKET_NAME) } else { path.to_owned() }
    }

    fn socket_name(&self) -> &'static str {
        SOCKET_NAME
    }

    fn admit<'a, 'd: 'a>(
        &'a self,
        client: &'a mut Stream,
        door: &'d Door,
    ) -> BoxFuture<'a, Option<Admitted<'d>>> {
        Box::pin(admit::admit(self, client, door))
    }

    fn goodbye(&self) -> Option<Box<dyn Goodbye>> {
        Some(Box::<clean::Messages>::default())
    }

    fn clean<'a>(&'a self, stream: &'a mut Stream) -> BoxFuture<'a, Result<(), ConnectCause>> {
        Box::pin(clean::clean(self, stream))
    }

    fn turn_away(&self, client: Stream) -> BoxFuture<'_, ()> {
        Box::pin(admit::turn_away(client))
    }

    fn farewell(&self) -> &'static [u8] {
        TERMINATE
    }
}

/// What the login goes through.
#[derive(Debug, Default)]
struct Channel {
    /// Nobody on a network can listen in.
    private: bool,
    /// What it can be bound to.
    end_point: Option<Vec<u8>>,
}

/// From the first byte to a quiet connection. The caller sets the time limit.
async fn log_in<S>(login: &PostgresLogin, stream: &mut S, channel: Channel) -> Result<LoggedIn, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut frames = Frames::new(stream, login.password.as_ref());
    frames.send(&startup(login)?).await?;
    auth::authenticate(login, &mut frames, channel).await?;
    let logged_in = settle(login, &mut frames).await?;
    warm_up(login, &mut frames).await?;
    if !frames.is_quiet() {
        return Err(ProtocolError::NotQuiet.into());
    }
    Ok(logged_in)
}

async fn warm_up<S>(login: &PostgresLogin, frames: &mut Frames<'_, S>) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    for query in &login.warm_up {
        frames.send(&encode(|buf| frontend::query(query, buf))?).await?;
        run_out(frames).await?;
    }
    Ok(())
}

fn startup(login: &PostgresLogin) -> Result<BytesMut, ConnectCause> {
    let fixed = [("user", login.user.as_str()), ("database", login.database.as_str())];
    let defaults = DEFAULTS.into_iter().filter(|(name, _)| !login.options.contains_key(*name));
    let options = login.options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let options = options.filter(|(name, _)| !matches!(*name, "user" | "database"));
    encode(|buf| frontend::startup_message(fixed.into_iter().chain(defaults).chain(options), buf))
}

/// After `AuthenticationOk`: takes what the server tells about itself, up to `ReadyForQuery`.
async fn settle<S>(login: &PostgresLogin, frames: &mut Frames<'_, S>) -> Result<LoggedIn, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut process_id = 0;
    let mut cancel = None;
    let mut parameters = Vec::new();
    loop {
        match frames.next().await? {
            Message::ParameterStatus(body) => {
                let name = body.name().map_err(ProtocolError::Malformed)?;
                let value = body.value().map_err(ProtocolError::Malformed)?;
                parameters.push((name.to_owned(), value.to_owned()));
            }
            Message::BackendKeyData(body) => {
                let mut packet = BytesMut::with_capacity(16);
                frontend::cancel_request(body.process_id(), body.secret_key(), &mut packet);
                process_id = body.process_id();
                cancel = Some(CancelRequest(Zeroizing::new(packet.to_vec())));
            }
            Message::ReadyForQuery(body) if body.status() == b'I' => break,
            _ => return Err(frames.unexpected().into()),
        }
    }
    let (user, database) = (login.user.clone(), login.database.clone());
    Ok(LoggedIn { session: Session::Postgres { process_id, parameters, user, database }, cancel })
}

/// Throws away the result of the warm-up query, up to `ReadyForQuery`.
async fn run_out<S>(frames: &mut Frames<'_, S>) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    loop {
        match frames.next().await? {
            Message::ReadyForQuery(body) if body.status() == b'I' => return Ok(()),
            Message::ReadyForQuery(_) => return Err(ProtocolError::OpenTransaction.into()),
            Message::RowDescription(_)
            | Message::DataRow(_)
            | Message::CommandComplete(_)
            | Message::EmptyQueryResponse => {}
            _ => return Err(frames.unexpected().into()),
        }
    }
}
