//! Authentication: trust, clear text (unix sockets and TLS only), MD5, SCRAM-SHA-256 with and without binding.

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use super::frames::{Frames, ProtocolError, encode};
use super::login::PostgresTransport;
use crate::backend::ConnectCause;
use crate::{PostgresLogin, Secret};

const UNASKED: &str = "a password is configured, and the server has not asked for it: any host that answers at this \
                       address is taken for the server; set `tls`, or configure scram-sha-256 in the server";
const HASHED: &str = "the server has asked for an MD5 hash, from which the password can be guessed, and with which others can log \
                      in; set `tls`, or configure scram-sha-256 in the server";

/// Answers what the server asks, up to and including `AuthenticationOk`. Returns what an operator should know of that if a
/// network sees it.
pub(super) async fn authenticate<S>(
    login: &PostgresLogin,
    frames: &mut Frames<'_, S>,
    channel: PostgresTransport,
) -> Result<Option<&'static str>, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut exposed = None;
    let password = || login.password.as_ref().ok_or(ConnectCause::PasswordMissing);
    match frames.next().await? {
        Message::AuthenticationOk => return Ok(login.password.as_ref().map(|_| UNASKED)),
        Message::AuthenticationCleartextPassword => {
            if !channel.private {
                return Err(ConnectCause::CleartextRefused);
            }
            send_password(frames, password()?.expose()).await?;
        }
        Message::AuthenticationMd5Password(body) => {
            let hash = md5_hash(login.user.as_bytes(), password()?.expose().as_bytes(), body.salt());
            send_password(frames, &hash).await?;
            exposed = Some(HASHED);
        }
        Message::AuthenticationSasl(body) => scram(frames, &body, password()?, channel.end_point).await?,
        other => return Err(unsupported(&other).unwrap_or_else(|| frames.unexpected().into())),
    }
    match frames.next().await? {
        Message::AuthenticationOk => Ok(exposed),
        _ => Err(frames.unexpected().into()),
    }
}

async fn send_password<S>(frames: &mut Frames<'_, S>, password: &str) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    frames.send(&encode(|buf| frontend::password_message(password.as_bytes(), buf))?).await
}

/// SCRAM-SHA-256 (RFC 5802, RFC 7677), bound to the TLS session where there is one and the server can.
///
/// The server must prove that it knows the password, too: without `SASLFinal` and a right signature in
/// it there is no `AuthenticationOk`. The iteration count is limited by postgres-protocol to 100 000.
async fn scram<S>(
    frames: &mut Frames<'_, S>,
    offer: &AuthenticationSaslBody,
    password: &Secret,
    end_point: Option<Vec<u8>>,
) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let offers = |mechanism: &str| {
        offer.mechanisms().any(|name| Ok(name == mechanism)).map_err(ProtocolError::Malformed)
    };
    let (mechanism, binding) = match end_point {
        Some(hash) if offers(SCRAM_SHA_256_PLUS)? => {
            (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash))
        }
        // The server compares this with its offer: an attacker cannot remove the offer unnoticed.
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    if !offers(mechanism)? {
        return Err(ConnectCause::AuthUnsupported { method: "SASL (other than SCRAM-SHA-256)" });
    }
    let mut scram = ScramSha256::new(password.expose().as_bytes(), binding);
    let first = encode(|buf| frontend::sasl_initial_response(mechanism, scram.message(), buf))?;
    frames.send(&first).await?;

    let Message::AuthenticationSaslContinue(challenge) = frames.next().await? else {
        return Err(frames.unexpected().into());
    };
    // Thousands of hash rounds: milliseconds of computing, which must not block the reactor.
    let hashed = tokio::task::spawn_blocking(move || {
        let outcome = scram.update(challenge.data());
        (scram, outcome)
    });
    let (mut scram, outcome) = hashed.await.map_err(|_| ConnectCause::TaskDied)?;
    outcome.map_err(ConnectCause::ServerUnproven)?;
    frames.send(&encode(|buf| frontend::sasl_response(scram.message(), buf))?).await?;

    let Message::AuthenticationSaslFinal(proof) = frames.next().await? else {
        return Err(frames.unexpected().into());
    };
    scram.finish(proof.data()).map_err(ConnectCause::ServerUnproven)
}

fn unsupported(message: &Message) -> Option<ConnectCause> {
    let method = match message {
        Message::AuthenticationGss => "GSSAPI",
        Message::AuthenticationKerberosV5 => "Kerberos V5",
        Message::AuthenticationScmCredential => "SCM credential",
        Message::AuthenticationSspi => "SSPI",
        _ => return None,
    };
    Some(ConnectCause::AuthUnsupported { method })
}
