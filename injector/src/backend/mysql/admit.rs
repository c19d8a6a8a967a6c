//! Answers the login of a client, on a connection that the pool has logged in before.
//!
//! The client gets the greeting of its own pooled connection, without TLS and with the capabilities that the agent logged
//! in with. What it asks for beside them a login must carry: then it gets another session, or an error of the protocol.

use std::sync::Arc;
use std::time::Duration;

use mysql_common::constants::{CapabilityFlags, StatusFlags};
use mysql_common::packets::{ErrPacket, HandshakePacket, HandshakeResponse, ServerError, SqlState};
use rand::RngExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::login::COLLATION;
use super::packets::{Packets, parse};
use crate::backend::{AdmissionError, LoginVariant, Session, Stream};
use crate::sockets::{BackendSocket, ClientSession};
use crate::{LeaseError, MysqlLogin};

/// From the greeting to the answer.
const RESPONSE_LIMIT: Duration = Duration::from_secs(10);

/// Offered beside the capabilities of the login: one that concerns only the client's login, which ends here.
const OFFERED: CapabilityFlags = CapabilityFlags::CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA;

/// What changes the meaning of queries: a client that asks for it gets a session that has begun with it.
const CHOSEN: CapabilityFlags = CapabilityFlags::CLIENT_FOUND_ROWS
    .union(CapabilityFlags::CLIENT_LOCAL_FILES)
    .union(CapabilityFlags::CLIENT_IGNORE_SPACE)
    .union(CapabilityFlags::CLIENT_MULTI_STATEMENTS);

/// Why a client is not admitted: an error's code and state (MariaDB Knowledge Base, "MariaDB Error Codes").
#[derive(Debug)]
struct MysqlRefusal {
    code: u16,
    state: [u8; 5],
    message: String,
}

fn refuse(code: u16, state: &[u8; 5], message: impl Into<String>) -> MysqlRefusal {
    MysqlRefusal { code, state: *state, message: message.into() }
}

impl From<LeaseError> for MysqlRefusal {
    fn from(error: LeaseError) -> Self {
        let code = if matches!(error, LeaseError::Exhausted { .. }) { 1040 } else { 1105 };
        refuse(code, b"08004", error.to_string())
    }
}

/// See [`crate::backend::Protocol::admit`].
pub(super) async fn admit<'a>(
    login: &MysqlLogin,
    client: &mut Stream,
    socket: &'a BackendSocket,
) -> Option<ClientSession<'a>> {
    // The server speaks first, so the connection is needed before the client says anything.
    let mut leased = match socket.lease(socket.expected()).await {
        Ok(leased) => leased,
        Err(error) => return tell(client, 0, &error.into()).await,
    };
    let asked = timeout(RESPONSE_LIMIT, ask(login, &leased.1, client)).await;
    let variant = match asked {
        Ok(Ok(variant)) => variant,
        Ok(Err(AdmissionError::Left)) | Err(_) => return None,
        Ok(Err(AdmissionError::Refused(refusal))) => return tell(client, 2, &refusal).await,
    };
    if variant != *leased.2.variant() {
        // The function's last client was of another kind. What this one was told is the number of another connection.
        socket.give_back(leased);
        leased = match socket.lease(variant).await {
            Ok(leased) => leased,
            Err(error) => return tell(client, 2, &error.into()).await,
        };
    }
    let (server, session, slot) = leased;
    let Session::Mysql { status, .. } = &session else { return None };
    let [low, high] = status.to_le_bytes();
    // OK: no rows, no ID, the status, no warnings.
    Packets::new(client, 2, None).send(&[0, 0, 0, low, high, 0, 0]).await.ok()?;
    Some(ClientSession { server, session, slot: Arc::new(slot), cancel: None })
}

/// See [`crate::backend::Protocol::turn_away`].
pub(super) async fn turn_away(mut client: Stream) {
    let full = refuse(1040, b"08004", "this instance has as many connections as it may have: close some");
    tell(&mut client, 0, &full).await;
}

/// Tells the client why; the connection is closed next.
async fn tell<'a>(client: &mut Stream, sequence: u8, refusal: &MysqlRefusal) -> Option<ClientSession<'a>> {
    let MysqlRefusal { code, state, message } = refusal;
    // Before the greeting an error has no state: no capabilities are agreed on.
    let state = (sequence > 0).then(|| SqlState::new(*state));
    let error = ErrPacket::Error(ServerError::new(*code, state, message.as_bytes()));
    // The client may have left already: then the error does not matter.
    let _ = Packets::new(client, sequence, None).say(&error).await;
    None
}

/// The greeting, and the client's answer: what its session must have begun with.
async fn ask<C>(
    login: &MysqlLogin,
    session: &Session,
    client: &mut C,
) -> Result<LoginVariant, AdmissionError<MysqlRefusal>>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let Session::Mysql { server_version, connection_id, capabilities, status, .. } = session else {
        return Err(refuse(1105, b"HY000", "the pool gave a connection of another kind").into());
    };
    let mut client = Packets::new(client, 0, None);
    let agreed = CapabilityFlags::from_bits_retain(*capabilities) - CapabilityFlags::CLIENT_SSL;
    let offered = agreed | OFFERED | CHOSEN | CapabilityFlags::CLIENT_CONNECT_WITH_DB;
    // The client is not asked for a password, so its answer to this is not checked.
    let mut nonce: [u8; 21] = rand::rng().random();
    nonce.iter_mut().for_each(|byte| *byte = *byte % 94 + 33);
    nonce[20] = 0;
    let (head, tail) = nonce.split_first_chunk::<8>().ok_or(AdmissionError::Left)?;
    let greeting = HandshakePacket::new(
        10,
        server_version.as_bytes(),
        *connection_id,
        *head,
        Some(tail),
        offered,
        // Some drivers encode by it what they send, whatever they ask for next (npm mariadb, without session tracking).
        COLLATION,
        StatusFlags::from_bits_retain(*status),
        Some(&b"mysql_native_password\0"[..]),
    );
    client.say(&greeting).await.map_err(|_| AdmissionError::Left)?;
    let mut packet = client.next().await.map_err(|_| AdmissionError::Left)?;
    Ok(wanted(login, &mut packet, offered)?)
}

fn wanted(
    login: &MysqlLogin,
    packet: &mut [u8],
    offered: CapabilityFlags,
) -> Result<LoginVariant, MysqlRefusal> {
    let malformed = || refuse(1043, b"08S01", "Bad handshake");
    let (flags, _) = packet.split_first_chunk_mut::<4>().ok_or_else(malformed)?;
    let asked = CapabilityFlags::from_bits_retain(u32::from_le_bytes(*flags));
    if !asked.contains(CapabilityFlags::CLIENT_PROTOCOL_41) {
        return Err(refuse(1251, b"08004", "the client is too old: it does not speak protocol 4.1"));
    }
    if asked.contains(CapabilityFlags::CLIENT_SSL) {
        return Err(refuse(1235, b"42000", "CLIENT_SSL cannot be had: this socket is local"));
    }
    // Some clients name capabilities that were not offered: they do not count.
    *flags = (asked & offered).bits().to_le_bytes();
    let response = parse::<HandshakeResponse<'_>>(packet, ()).map_err(|_| malformed())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(64).collect::<String>();
    if response.user() != login.user.as_bytes() {
        let (user, ours) = (text(response.user()), &login.user);
        return Err(refuse(1045, b"28000", format!("Access denied for user '{user}': log in as '{ours}'")));
    }
    match response.db_name() {
        None | Some(b"") => {}
        Some(name) if login.database.as_ref().is_some_and(|ours| ours.as_bytes() == name) => {}
        Some(name) => {
            let name = text(name);
            let message = format!("Unknown database '{name}': this backend leads to another one");
            return Err(refuse(1049, b"42000", message));
        }
    }
    let flags = (response.capabilities() & CHOSEN).bits();
    let collation = if response.collation() == 0 { COLLATION } else { response.collation() };
    let plain = flags == 0 && collation == COLLATION;
    Ok(if plain { LoginVariant::Plain } else { LoginVariant::Capabilities { flags, collation } })
}

/// A client's answer to the greeting.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz_first_packet(login: &MysqlLogin, body: &[u8]) {
    let _ = wanted(login, &mut body.to_vec(), super::login::WANTED | OFFERED | CHOSEN);
}

#[cfg(test)]
mod tests {
    use super::super::login::{NEEDED, WANTED};
    use super::*;
    use proptest::prelude::*;

    fn login() -> MysqlLogin {
        MysqlLogin { user: "app".into(), password: None, database: Some("orders".into()) }
    }

    /// What a client says: flags, collation, user, database.
    fn response(flags: CapabilityFlags, collation: u8, user: &str, database: &str) -> Vec<u8> {
        let flags = flags | NEEDED | CapabilityFlags::CLIENT_CONNECT_WITH_DB;
        let mut packet = flags.bits().to_le_bytes().to_vec();
        packet.extend([0, 0, 0, 1, collation]);
        packet.extend([0; 23]);
        packet.extend(
            [user.as_bytes(), &[0, 2, 7, 7], database.as_bytes(), b"\0mysql_native_password\0"].concat(),
        );
        packet
    }

    fn asked(mut packet: Vec<u8>) -> Result<LoginVariant, (u16, String)> {
        let offered = WANTED | OFFERED | CHOSEN;
        wanted(&login(), &mut packet, offered).map_err(|refusal| (refusal.code, refusal.message))
    }

    #[test]
    fn what_a_client_asks_for_is_honoured_or_refused() {
        let none = CapabilityFlags::empty();
        let kind =
            |flags: CapabilityFlags, collation| LoginVariant::Capabilities { flags: flags.bits(), collation };
        assert_eq!(asked(response(none, 45, "app", "orders")), Ok(LoginVariant::Plain));
        assert_eq!(asked(response(none, 8, "app", "orders")), Ok(kind(none, 8)));
        let many = CapabilityFlags::CLIENT_MULTI_STATEMENTS;
        let packet = response(many | CapabilityFlags::CLIENT_DEPRECATE_EOF, 0, "app", "");
        assert_eq!(asked(packet), Ok(kind(many, 45)), "what was not offered is not there");
        assert_eq!(asked(response(CHOSEN, 224, "app", "")), Ok(kind(CHOSEN, 224)));
        for (packet, code, said) in [
            (response(none, 8, "root", "orders"), 1045, "log in as 'app'"),
            (response(none, 8, "app", "mysql"), 1049, "'mysql'"),
            (response(CapabilityFlags::CLIENT_SSL, 8, "app", ""), 1235, "CLIENT_SSL"),
            (vec![0; 40], 1251, "too old"),
            (vec![0, 2], 1043, "Bad handshake"),
            (response(none, 8, "app", "orders")[..36].to_vec(), 1043, "Bad handshake"),
        ] {
            let (got, message) = asked(packet).unwrap_err();
            assert!(got == code && message.contains(said), "{got} {message}");
        }
    }

    proptest! {
        #[test]
        fn no_client_makes_it_panic(packet in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = asked(packet.clone());
            let mut flags = response(CapabilityFlags::empty(), 8, "app", "orders");
            flags.truncate(32);
            flags.extend(packet);
            let _ = asked(flags);
        }
    }
}
