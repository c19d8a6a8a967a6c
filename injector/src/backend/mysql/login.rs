//! The login: greeting, TLS if it is configured, authentication.

use mysql_common::auth::plugins::{AuthProc, ChallengeResponsePlugin, Context, Response};
use mysql_common::constants::CapabilityFlags;
use mysql_common::packets::{
    AuthMoreData, AuthPlugin, AuthSwitchRequest, CommonOkPacket, HandshakePacket, HandshakeResponse,
    OkPacketDeserializer, SslRequest,
};
use mysql_common::proto::MySerialize;
use tokio::io::{AsyncRead, AsyncWrite};

use super::MysqlLogin;
use super::packets::{Packets, parse, unexpected};
use crate::backend::{ConnectCause, LoginResult, LoginVariant, Session, Stream};

/// Without these no login is possible.
pub(super) const NEEDED: CapabilityFlags = CapabilityFlags::CLIENT_PROTOCOL_41
    .union(CapabilityFlags::CLIENT_SECURE_CONNECTION)
    .union(CapabilityFlags::CLIENT_PLUGIN_AUTH);

/// What the agent asks for, as far as the server has it.
pub(super) const WANTED: CapabilityFlags = NEEDED
    .union(CapabilityFlags::CLIENT_LONG_PASSWORD)
    .union(CapabilityFlags::CLIENT_LONG_FLAG)
    .union(CapabilityFlags::CLIENT_TRANSACTIONS)
    .union(CapabilityFlags::CLIENT_MULTI_RESULTS)
    .union(CapabilityFlags::CLIENT_PS_MULTI_RESULTS)
    .union(CapabilityFlags::CLIENT_CONNECT_WITH_DB);

/// The largest packet that the agent announces to accept: the value of most clients. The agent reads no result itself.
const MAX_PACKET: u32 = 1 << 24;

/// `utf8mb4_general_ci`, which every server has.
pub(super) const COLLATION: u8 = 45;

const COM_CHANGE_USER: u8 = 0x11;

/// The longest nonce: those of all methods are of 20 or 32 bytes.
const NONCE_MAX_BYTES: u8 = 127;

/// More steps than any method has.
const TURNS_MAX: usize = 8;

/// What a login goes through.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MysqlTransport {
    pub(super) tls: bool,
    pub(super) unix: bool,
}

impl MysqlTransport {
    pub(super) fn of(stream: &Stream) -> Self {
        Self { tls: matches!(stream, Stream::Tls(_)), unix: matches!(stream, Stream::Unix(_)) }
    }
}

/// Reads the greeting, which comes in the clear, and asks for TLS. The login needs the greeting after the handshake.
pub(super) async fn start_tls<S>(stream: &mut S, variant: &LoginVariant) -> Result<Vec<u8>, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut packets = Packets::new(stream, 0, None);
    let packet = packets.next().await?;
    let greeting = parse_greeting(&packets, &packet)?;
    if !greeting.capabilities().contains(CapabilityFlags::CLIENT_SSL) {
        return Err(ConnectCause::TlsRefused);
    }
    // MariaDB goes by these capabilities, and not by those of the login that follows.
    let (flags, collation) = wanted(variant);
    let capabilities = (WANTED | flags) & greeting.capabilities() | CapabilityFlags::CLIENT_SSL;
    packets.say(&SslRequest::new(capabilities, MAX_PACKET, collation)).await?;
    Ok(packet)
}

fn parse_greeting<'p, S>(
    packets: &Packets<'_, S>,
    packet: &'p [u8],
) -> Result<HandshakePacket<'p>, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if packet.first() == Some(&0xff) {
        // An error before any greeting has no state.
        return Err(packets.refused(packet, CapabilityFlags::empty()));
    }
    if nonce_bytes(packet).is_some_and(|bytes| bytes > NONCE_MAX_BYTES) {
        return Err(packets.unexpected("a greeting of MySQL", packet));
    }
    let greeting = parse::<HandshakePacket<'_>>(packet, ())
        .map_err(|_| packets.unexpected("a greeting of MySQL", packet))?;
    if greeting.protocol_version() != 10 || !greeting.capabilities().contains(NEEDED) {
        return Err(packets.unexpected("a server with protocol 4.1", packet));
    }
    Ok(greeting)
}

/// The length of its nonce as a greeting states it. The library expects a short one.
fn nonce_bytes(greeting: &[u8]) -> Option<u8> {
    let (_protocol, rest) = greeting.split_first()?;
    let version = rest.iter().position(|byte| *byte == 0)?;
    // After its end: number of the connection, the nonce's beginning, filler, capabilities, collation, status, capabilities.
    rest.get(version + 1 + 4 + 8 + 1 + 2 + 1 + 2 + 2).copied()
}

/// From the greeting, which `start_tls` has read already if it is not empty, to a quiet connection. The caller sets the
/// time limit.
pub(super) async fn log_in<S>(
    login: &MysqlLogin,
    stream: &mut S,
    greeting: Vec<u8>,
    transport: MysqlTransport,
    variant: &LoginVariant,
) -> Result<LoginResult, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    // With TLS the request for it was packet 1.
    let sequence = if greeting.is_empty() { 0 } else { 2 };
    let mut packets = Packets::new(stream, sequence, login.password.as_ref());
    let packet = if greeting.is_empty() { packets.next().await? } else { greeting };
    let greeting = parse_greeting(&packets, &packet)?;

    let (flags, collation) = wanted(variant);
    let mut capabilities = (WANTED | flags) & greeting.capabilities();
    capabilities.set(CapabilityFlags::CLIENT_SSL, transport.tls);
    let nonce = greeting.nonce();
    let mut dialogue = AuthDialogue { login, transport, nonce: &nonce, method: None };
    // A server that wants another method for this user asks for it in the next packet.
    let first = greeting.auth_plugin().filter(|plugin| plugin.init().is_ok());
    let plugin = first.unwrap_or(AuthPlugin::MysqlNativePassword);
    let proof = dialogue.begin(&plugin, &nonce)?;
    let response = HandshakeResponse::new(
        Some(proof),
        (5, 5, 3), // from when on it takes utf8mb4
        Some(login.user.as_bytes()),
        login.database.as_ref().map(|name| name.as_bytes()),
        Some(plugin.borrow()),
        capabilities,
        None,
        MAX_PACKET,
    );
    capabilities = response.capabilities();
    let mut packet = zeroize::Zeroizing::new(Vec::new());
    response.serialize(&mut packet);
    // The library chooses the collation itself. It follows the capabilities and the largest packet, of four bytes each.
    if let Some(byte) = packet.get_mut(8) {
        *byte = collation;
    }
    packets.send(&packet).await?;

    let status = authenticate(&mut packets, &mut dialogue, capabilities).await?;
    let session = Session::Mysql {
        server_version: greeting.server_version_str().into_owned(),
        connection_id: greeting.connection_id(),
        user: login.user.clone(),
        database: login.database.clone(),
        capabilities: capabilities.bits(),
        collation,
        status,
    };
    Ok(LoginResult { session, cancel: None, exposed: None })
}

/// Logs in once more on a connection that may be another user's now, with another role, database or character set. What
/// the server keeps of a session ends, as with `COM_RESET_CONNECTION`.
pub(super) async fn log_in_again<S>(
    login: &MysqlLogin,
    packets: &mut Packets<'_, S>,
    transport: MysqlTransport,
    variant: &LoginVariant,
) -> Result<(), ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // The server begins anew with a challenge: the proof here is empty.
    let texts = [login.user.as_bytes(), b"\0\0", login.database.as_deref().unwrap_or("").as_bytes(), b"\0"];
    let rest = [&[wanted(variant).1, 0][..], b"mysql_native_password\0"];
    let request = [&[COM_CHANGE_USER][..], &texts.concat(), &rest.concat()].concat();
    packets.command(&request).await?;
    let mut dialogue = AuthDialogue { login, transport, nonce: &[], method: None };
    authenticate(packets, &mut dialogue, NEEDED).await.map(drop)
}

/// Answers what the server asks, up to its OK. Returns the status of the session.
async fn authenticate<S>(
    packets: &mut Packets<'_, S>,
    dialogue: &mut AuthDialogue<'_>,
    capabilities: CapabilityFlags,
) -> Result<u16, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for _ in 0..TURNS_MAX {
        let packet = packets.next().await?;
        let bad = |_| packets.unexpected("the next step of a login", &packet);
        let answer = match packet[0] {
            0x00 => {
                let ok =
                    parse::<OkPacketDeserializer<'_, CommonOkPacket>>(&packet, capabilities).map_err(bad)?;
                return Ok(ok.into_inner().status_flags().bits());
            }
            0xff => return Err(packets.refused(&packet, capabilities)),
            0xfe => {
                let switch = parse::<AuthSwitchRequest<'_>>(&packet, ()).map_err(bad)?;
                Some(dialogue.begin(&switch.auth_plugin(), switch.plugin_data())?)
            }
            0x01 => {
                let more = parse::<AuthMoreData<'_>>(&packet, ()).map_err(bad)?;
                dialogue.go_on(more.data())?
            }
            _ => return Err(packets.unexpected("the next step of a login", &packet)),
        };
        if let Some(answer) = answer {
            packets.send(&zeroize::Zeroizing::new(answer)).await?;
        }
    }
    Err(ConnectCause::Unexpected { expected: "the end of a login", found: "more questions".to_owned() })
}

/// The capabilities and the collation of a login.
pub(super) fn wanted(variant: &LoginVariant) -> (CapabilityFlags, u8) {
    match variant {
        LoginVariant::Capabilities { flags, collation } => {
            (CapabilityFlags::from_bits_retain(*flags), *collation)
        }
        _ => (CapabilityFlags::empty(), COLLATION),
    }
}

/// Steps of a method: challenges of the server and our answers.
struct AuthDialogue<'a> {
    login: &'a MysqlLogin,
    transport: MysqlTransport,
    nonce: &'a [u8],
    method: Option<AuthProc>,
}

impl AuthDialogue<'_> {
    fn begin(&mut self, plugin: &AuthPlugin<'_>, challenge: &[u8]) -> Result<Vec<u8>, ConnectCause> {
        let unsupported = |method| Err(ConnectCause::AuthUnsupported { method });
        let private = self.transport.tls || self.transport.unix;
        match plugin {
            AuthPlugin::MysqlNativePassword | AuthPlugin::CachingSha2Password | AuthPlugin::Ed25519 => {}
            // It sends the password itself.
            AuthPlugin::MysqlClearPassword if private => {}
            AuthPlugin::MysqlClearPassword => return Err(ConnectCause::CleartextRefused),
            AuthPlugin::Sha256Password => return unsupported("sha256_password"),
            AuthPlugin::MysqlOldPassword => return unsupported("mysql_old_password"),
            AuthPlugin::Parsec => return unsupported("parsec"),
            AuthPlugin::Other(_) => return unsupported("another plugin's"),
        }
        self.method = plugin.init().ok();
        self.go_on(challenge).map(Option::unwrap_or_default)
    }

    fn go_on(&mut self, challenge: &[u8]) -> Result<Option<Vec<u8>>, ConnectCause> {
        let Self { login, transport, nonce, method } = self;
        let Some(method) = method else {
            return Err(unexpected("a method", challenge, login.password.as_ref()));
        };
        // Without TLS the password would be encrypted with a key that the peer sends, and nothing proves the peer's identity.
        if matches!(method, AuthProc::CachingSha2Password(_))
            && challenge == [4]
            && !(transport.tls || transport.unix)
        {
            return Err(ConnectCause::CleartextRefused);
        }
        let context = AuthContext { login, transport: *transport, nonce };
        match method.run(context, challenge) {
            Ok(Response::Next { packet } | Response::Last { packet }) => Ok(packet),
            Err(_) => Err(unexpected("a question of this method", challenge, login.password.as_ref())),
        }
    }
}

/// What the methods need to know.
struct AuthContext<'a> {
    login: &'a MysqlLogin,
    transport: MysqlTransport,
    nonce: &'a [u8],
}

impl Context for AuthContext<'_> {
    fn pass(&self) -> &[u8] {
        self.login.password.as_ref().map_or(&[], |password| password.expose().as_bytes())
    }

    fn is_ipc_transport(&self) -> bool {
        self.transport.unix
    }

    fn is_tls_transport(&self) -> bool {
        self.transport.tls
    }

    fn scramble(&self) -> &[u8] {
        self.nonce
    }

    fn server_key_pem(&self) -> Option<&[u8]> {
        None
    }
}

#[cfg(test)]
mod tests;
