//! MariaDB and MySQL (protocol 4.1): greeting, TLS if it is configured, authentication.
//!
//! The agent asks for few capabilities, and none that changes what a query means: whoever gets the connection must
//! speak with the same ones, which are part of its [`Session`].

mod admit;
mod clean;
mod packets;
#[cfg(test)]
mod tests;

use mysql_common::auth::plugins::{AuthProc, ChallengeResponsePlugin, Context, Response};
use mysql_common::constants::CapabilityFlags;
use mysql_common::packets::{
    AuthMoreData, AuthPlugin, AuthSwitchRequest, CommonOkPacket, HandshakePacket, HandshakeResponse,
    OkPacketDeserializer, SslRequest,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{BoxFuture, ConnectCause, Goodbye, LoggedIn, Protocol, Session, Stream};
use crate::MysqlLogin;
use crate::sockets::{Admitted, Door};
#[cfg(feature = "fuzzing")]
pub(crate) use admit::fuzz_first_packet;
use packets::{Packets, parse, unexpected};

const SOCKET_NAME: &str = "mysql.sock";

/// `COM_QUIT`, as a whole packet.
const QUIT: &[u8] = &[1, 0, 0, 0, 1];

/// Without these nobody can log in here.
const NEEDED: CapabilityFlags = CapabilityFlags::CLIENT_PROTOCOL_41
    .union(CapabilityFlags::CLIENT_SECURE_CONNECTION)
    .union(CapabilityFlags::CLIENT_PLUGIN_AUTH);

/// What the agent asks for, as far as the server has it.
const WANTED: CapabilityFlags = NEEDED
    .union(CapabilityFlags::CLIENT_LONG_PASSWORD)
    .union(CapabilityFlags::CLIENT_LONG_FLAG)
    .union(CapabilityFlags::CLIENT_TRANSACTIONS)
    .union(CapabilityFlags::CLIENT_MULTI_RESULTS)
    .union(CapabilityFlags::CLIENT_PS_MULTI_RESULTS)
    .union(CapabilityFlags::CLIENT_CONNECT_WITH_DB);

/// The largest packet that we, who never read one, say we can take: that of most clients.
const MAX_PACKET: u32 = 1 << 24;

/// `utf8mb4_general_ci`, which every server has.
const COLLATION: u8 = 45;

/// The longest nonce: those of all methods are of 20 or 32 bytes.
const NONCE_MAX_BYTES: u8 = 127;

/// More questions than any method has.
const TURNS_MAX: usize = 8;

impl Protocol for MysqlLogin {
    fn start_tls<'a>(&'a self, stream: &'a mut TcpStream) -> BoxFuture<'a, Result<Vec<u8>, ConnectCause>> {
        Box::pin(start_tls(stream))
    }

    fn log_in<'a>(
        &'a self,
        stream: &'a mut Stream,
        said: Vec<u8>,
    ) -> BoxFuture<'a, Result<LoggedIn, ConnectCause>> {
        let channel =
            Channel { tls: matches!(stream, Stream::Tls(_)), unix: matches!(stream, Stream::Unix(_)) };
        Box::pin(log_in(self, stream, said, channel))
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
        Some(Box::<clean::Commands>::default())
    }

    fn clean<'a>(&'a self, stream: &'a mut Stream) -> BoxFuture<'a, Result<(), ConnectCause>> {
        Box::pin(clean::clean(self, stream))
    }

    fn turn_away(&self, client: Stream) -> BoxFuture<'_, ()> {
        Box::pin(admit::turn_away(client))
    }

    fn farewell(&self) -> &'static [u8] {
        QUIT
    }
}

/// What the login goes through.
#[derive(Debug, Clone, Copy, Default)]
struct Channel {
    tls: bool,
    unix: bool,
}

/// The server speaks first, in the clear. Its greeting is for the login, after TLS.
async fn start_tls<S>(stream: &mut S) -> Result<Vec<u8>, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut packets = Packets::new(stream, 0, None);
    let packet = packets.next().await?;
    let greeting = greeting(&packets, &packet)?;
    if !greeting.capabilities().contains(CapabilityFlags::CLIENT_SSL) {
        return Err(ConnectCause::TlsRefused);
    }
    let capabilities = WANTED & greeting.capabilities() | CapabilityFlags::CLIENT_SSL;
    packets.say(&SslRequest::new(capabilities, MAX_PACKET, COLLATION)).await?;
    Ok(packet)
}

fn greeting<'p, S>(packets: &Packets<'_, S>, packet: &'p [u8]) -> Result<HandshakePacket<'p>, ConnectCause>
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

/// What a greeting says of the length of its nonce. The library counts on a small one.
fn nonce_bytes(greeting: &[u8]) -> Option<u8> {
    let (_protocol, rest) = greeting.split_first()?;
    let version = rest.iter().position(|byte| *byte == 0)?;
    // After its end: number of the connection, the nonce's beginning, filler, capabilities, collation, status, capabilities.
    rest.get(version + 1 + 4 + 8 + 1 + 2 + 1 + 2 + 2).copied()
}

/// From the greeting, or what comes after it, to a quiet connection. The caller sets the time limit.
async fn log_in<S>(
    login: &MysqlLogin,
    stream: &mut S,
    said: Vec<u8>,
    channel: Channel,
) -> Result<LoggedIn, ConnectCause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    // With TLS the request for it was packet 1.
    let sequence = if said.is_empty() { 0 } else { 2 };
    let mut packets = Packets::new(stream, sequence, login.password.as_ref());
    let packet = if said.is_empty() { packets.next().await? } else { said };
    let greeting = greeting(&packets, &packet)?;

    let mut capabilities = WANTED & greeting.capabilities();
    capabilities.set(CapabilityFlags::CLIENT_SSL, channel.tls);
    let nonce = greeting.nonce();
    let mut dialogue = Dialogue { login, channel, nonce: &nonce, method: None };
    // A server with another method for this user will say so.
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
    packets.say(&response).await?;

    for _ in 0..TURNS_MAX {
        let packet = packets.next().await?;
        let bad = |_| packets.unexpected("the next step of a login", &packet);
        let answer = match packet[0] {
            0x00 => {
                let ok =
                    parse::<OkPacketDeserializer<'_, CommonOkPacket>>(&packet, capabilities).map_err(bad)?;
                let session = Session::Mysql {
                    server_version: greeting.server_version_str().into_owned(),
                    connection_id: greeting.connection_id(),
                    user: login.user.clone(),
                    database: login.database.clone(),
                    capabilities: capabilities.bits(),
                    collation: COLLATION,
                    status: ok.into_inner().status_flags().bits(),
                };
                return Ok(LoggedIn { session, cancel: None });
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

/// Questions of the server and our answers.
struct Dialogue<'a> {
    login: &'a MysqlLogin,
    channel: Channel,
    nonce: &'a [u8],
    method: Option<AuthProc>,
}

impl Dialogue<'_> {
    fn begin(&mut self, plugin: &AuthPlugin<'_>, challenge: &[u8]) -> Result<Vec<u8>, ConnectCause> {
        let unsupported = |method| Err(ConnectCause::AuthUnsupported { method });
        let private = self.channel.tls || self.channel.unix;
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
        let Self { login, channel, nonce, method } = self;
        let Some(method) = method else {
            return Err(unexpected("a method", challenge, login.password.as_ref()));
        };
        // Without TLS it would be encrypted for whoever answers: nothing proves that this is the server.
        if matches!(method, AuthProc::CachingSha2Password(_))
            && challenge == [4]
            && !(channel.tls || channel.unix)
        {
            return Err(ConnectCause::CleartextRefused);
        }
        let context = Known { login, channel: *channel, nonce };
        match method.run(context, challenge) {
            Ok(Response::Next { packet } | Response::Last { packet }) => Ok(packet),
            Err(_) => Err(unexpected("a question of this method", challenge, login.password.as_ref())),
        }
    }
}

/// What the methods want to know.
struct Known<'a> {
    login: &'a MysqlLogin,
    channel: Channel,
    nonce: &'a [u8],
}

impl Context for Known<'_> {
    fn pass(&self) -> &[u8] {
        self.login.password.as_ref().map_or(&[], |password| password.expose().as_bytes())
    }

    fn is_ipc_transport(&self) -> bool {
        self.channel.unix
    }

    fn is_tls_transport(&self) -> bool {
        self.channel.tls
    }

    fn scramble(&self) -> &[u8] {
        self.nonce
    }

    fn server_key_pem(&self) -> Option<&[u8]> {
        None
    }
}
