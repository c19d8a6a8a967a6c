//! The login: start-up, authentication, what the server tells about itself, warm-up.

use std::io;

use bytes::BytesMut;
use postgres_protocol::message::{backend::Message, frontend};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::frames::{Frames, ProtocolError, encode};
use super::{PostgresLogin, auth};
use crate::backend::{CancelRequest, ConnectCause, LoginResult, LoginVariant, Session};

/// The start-up parameter that others replace.
pub(super) const ENCODING: (&str, &str) = ("client_encoding", "UTF8");

/// What a login goes through.
#[derive(Debug, Default)]
pub(super) struct PostgresTransport {
    /// A unix socket, or TLS: no network sees the bytes in the clear.
    pub(super) private: bool,
    /// What the login can be bound to.
    pub(super) end_point: Option<Vec<u8>>,
}

/// Asks for TLS.
pub(super) async fn start_tls(stream: &mut TcpStream) -> Result<Vec<u8>, ConnectCause> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(ConnectCause::Lost)?;
    // One byte: bytes that an attacker injects before the handshake are never taken for bytes of the TLS session.
    match stream.read_u8().await {
        Ok(b'S') => Ok(Vec::new()),
        Ok(b'N') => Err(ConnectCause::TlsRefused),
        Ok(tag) => Err(ProtocolError::Unexpected { tag }.into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ConnectCause::Closed),
        Err(error) => Err(ConnectCause::Lost(error)),
    }
}

/// From the first byte to a quiet connection. The caller sets the time limit.
pub(super) async fn log_in<S>(
    login: &PostgresLogin,
    stream: &mut S,
    channel: PostgresTransport,
    variant: &LoginVariant,
) -> Result<LoginResult, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut frames = Frames::new(stream, login.password.as_ref());
    frames.send(&startup(login, variant)?).await?;
    let exposed = auth::authenticate(login, &mut frames, channel).await?;
    let mut logged_in = settle(login, &mut frames).await?;
    logged_in.exposed = exposed;
    warm_up(login, &mut frames).await?;
    if !frames.is_quiet() {
        return Err(ProtocolError::NotQuiet.into());
    }
    Ok(logged_in)
}

/// Runs the configured SQL.
pub(super) async fn warm_up<S>(login: &PostgresLogin, frames: &mut Frames<'_, S>) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    for query in &login.warm_up {
        frames.send(&encode(|buf| frontend::query(query, buf))?).await?;
        run_out(frames).await?;
    }
    Ok(())
}

fn startup(login: &PostgresLogin, variant: &LoginVariant) -> Result<BytesMut, ConnectCause> {
    let fixed = [("user", login.user.as_str()), ("database", login.database.as_str()), ENCODING];
    let options = login.options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let options = options.filter(|(name, _)| !matches!(*name, "user" | "database"));
    let wanted = match variant {
        LoginVariant::Parameters(wanted) => &**wanted,
        _ => &[],
    };
    let wanted = wanted.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut parameters: Vec<(&str, &str)> = Vec::new();
    for (name, value) in fixed.into_iter().chain(options).chain(wanted) {
        parameters.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        parameters.push((name, value));
    }
    encode(|buf| frontend::startup_message(parameters, buf))
}

/// After `AuthenticationOk`: reads what the server tells about itself, up to `ReadyForQuery`.
async fn settle<S>(login: &PostgresLogin, frames: &mut Frames<'_, S>) -> Result<LoginResult, ConnectCause>
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
                cancel = Some(CancelRequest(Zeroizing::new(packet.to_vec()), None));
            }
            Message::ReadyForQuery(body) if body.status() == b'I' => break,
            _ => return Err(frames.unexpected().into()),
        }
    }
    let (user, database) = (login.user.clone(), login.database.clone());
    Ok(LoginResult {
        session: Session::Postgres { process_id, parameters, user, database },
        cancel,
        exposed: None,
    })
}

/// Discards the result of a query, up to `ReadyForQuery`.
pub(super) async fn run_out<S>(frames: &mut Frames<'_, S>) -> Result<(), ConnectCause>
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

#[cfg(test)]
mod tests;
