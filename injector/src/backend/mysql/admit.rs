//! Answers the login of a client, on a connection that the pool has logged in before.
//!
//! The client gets the greeting of its own pooled connection, without TLS and with the capabilities that the agent logged
//! in with. Other settings that it asks for are made on the server, or refused with an error of the protocol.

use std::sync::Arc;
use std::time::Duration;

use mysql_common::constants::{CapabilityFlags, StatusFlags};
use mysql_common::packets::{ErrPacket, HandshakePacket, HandshakeResponse, ServerError, SqlState};
use rand::RngExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::packets::{Packets, parse, query};
use crate::backend::{AdmissionError, ConnectCause, Session, Stream};
use crate::sockets::{BackendSocket, ClientSession};
use crate::{LeaseError, MysqlLogin};

/// From the greeting to the answer.
const RESPONSE_LIMIT: Duration = Duration::from_secs(10);

/// Offered beside the capabilities of the login: one that concerns only the client's login, which ends here, and several
/// statements in a query, which can be switched on later.
const OFFERED: CapabilityFlags =
    CapabilityFlags::CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA.union(CapabilityFlags::CLIENT_MULTI_STATEMENTS);

/// What would change the meaning of queries, and cannot be switched on after the login.
const REFUSED: [(CapabilityFlags, &str); 3] = [
    (CapabilityFlags::CLIENT_FOUND_ROWS, "CLIENT_FOUND_ROWS"),
    (CapabilityFlags::CLIENT_IGNORE_SPACE, "CLIENT_IGNORE_SPACE"),
    (CapabilityFlags::CLIENT_SSL, "CLIENT_SSL (this socket is local)"),
];

/// `COM_SET_OPTION`, `MYSQL_OPTION_MULTI_STATEMENTS_ON`.
const MULTI_STATEMENTS_ON: [u8; 3] = [0x1b, 0, 0];

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

impl From<ConnectCause> for MysqlRefusal {
    fn from(cause: ConnectCause) -> Self {
        refuse(1105, b"08S01", cause.to_string())
    }
}

/// See [`crate::backend::Protocol::admit`].
pub(super) async fn admit<'a>(
    login: &MysqlLogin,
    client: &mut Stream,
    socket: &'a BackendSocket,
) -> Option<ClientSession<'a>> {
    // The server speaks first, so the connection is needed before the client says anything.
    let (mut server, session, slot) = match socket.lease().await {
        Ok(leased) => leased,
        Err(error) => return tell(client, 0, &error.into()).await,
    };
    let mut packets = Packets::new(client, 0, None);
    let welcomed = timeout(RESPONSE_LIMIT, welcome(login, &session, &mut packets, &mut server)).await;
    match welcomed {
        Ok(Ok(())) => Some(ClientSession { server, session, slot: Arc::new(slot), cancel: None }),
        Ok(Err(AdmissionError::Left)) | Err(_) => None,
        Ok(Err(AdmissionError::Refused(refusal))) => tell(client, 2, &refusal).await,
    }
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

/// The greeting, the client's answer, and the settings that it asks for.
async fn welcome<C, S>(
    login: &MysqlLogin,
    session: &Session,
    client: &mut Packets<'_, C>,
    server: &mut S,
) -> Result<(), AdmissionError<MysqlRefusal>>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Session::Mysql { server_version, connection_id, capabilities, collation, status, .. } = session
    else {
        return Err(refuse(1105, b"HY000", "the pool gave a connection of another kind").into());
    };
    let agreed = CapabilityFlags::from_bits_retain(*capabilities) - CapabilityFlags::CLIENT_SSL;
    let offered = agreed | OFFERED | CapabilityFlags::CLIENT_CONNECT_WITH_DB;
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
        *collation,
        StatusFlags::from_bits_retain(*status),
        Some(&b"mysql_native_password\0"[..]),
    );
    client.say(&greeting).await.map_err(|_| AdmissionError::Left)?;
    let mut packet = client.next().await.map_err(|_| AdmissionError::Left)?;
    let wanted = wanted(login, &mut packet, offered)?;

    let mut server = Packets::new(server, 0, None);
    let refused = |cause: ConnectCause| AdmissionError::Refused(cause.into());
    if wanted.multi_statements {
        server.order(&MULTI_STATEMENTS_ON).await.map_err(refused)?;
    }
    if wanted.collation != 0 && wanted.collation != *collation {
        server.order(&set_collation(wanted.collation)).await.map_err(refused)?;
    }
    let [low, high] = status.to_le_bytes();
    // OK: no rows, no ID, the status, no warnings.
    client.send(&[0, 0, 0, low, high, 0, 0]).await.map_err(|_| AdmissionError::Left)
}

/// A query that sets the connection's character sets and collation.
fn set_collation(n: u8) -> Vec<u8> {
    query(&format!("SET character_set_client={n}, character_set_results={n}, collation_connection={n}"))
}

/// What a client wants to differ from the login.
#[derive(Debug, PartialEq, Eq)]
struct ClientSettings {
    multi_statements: bool,
    /// 0 if it names none.
    collation: u8,
}

fn wanted(
    login: &MysqlLogin,
    packet: &mut [u8],
    offered: CapabilityFlags,
) -> Result<ClientSettings, MysqlRefusal> {
    let malformed = || refuse(1043, b"08S01", "Bad handshake");
    let (flags, _) = packet.split_first_chunk_mut::<4>().ok_or_else(malformed)?;
    let asked = CapabilityFlags::from_bits_retain(u32::from_le_bytes(*flags));
    if !asked.contains(CapabilityFlags::CLIENT_PROTOCOL_41) {
        return Err(refuse(1251, b"08004", "the client is too old: it does not speak protocol 4.1"));
    }
    for (flag, name) in REFUSED {
        if asked.contains(flag) {
            let message = format!("{name} cannot be had on a connection that is logged in already");
            return Err(refuse(1235, b"42000", message));
        }
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
    let multi_statements = response.capabilities().contains(CapabilityFlags::CLIENT_MULTI_STATEMENTS);
    Ok(ClientSettings { multi_statements, collation: response.collation() })
}

/// A client's answer to the greeting.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz_first_packet(login: &MysqlLogin, body: &[u8]) {
    let _ = wanted(login, &mut body.to_vec(), super::login::WANTED | OFFERED);
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

    fn asked(mut packet: Vec<u8>) -> Result<ClientSettings, (u16, String)> {
        let offered = WANTED | OFFERED;
        wanted(&login(), &mut packet, offered).map_err(|refusal| (refusal.code, refusal.message))
    }

    #[test]
    fn what_a_client_asks_for_is_honoured_or_refused() {
        let none = CapabilityFlags::empty();
        let plain = ClientSettings { multi_statements: false, collation: 8 };
        assert_eq!(asked(response(none, 8, "app", "orders")), Ok(plain));
        let many = CapabilityFlags::CLIENT_MULTI_STATEMENTS | CapabilityFlags::CLIENT_DEPRECATE_EOF;
        let wanted = ClientSettings { multi_statements: true, collation: 0 };
        assert_eq!(asked(response(many, 0, "app", "")), Ok(wanted), "what was not offered is not there");
        for (packet, code, said) in [
            (response(none, 8, "root", "orders"), 1045, "log in as 'app'"),
            (response(none, 8, "app", "mysql"), 1049, "'mysql'"),
            (response(CapabilityFlags::CLIENT_FOUND_ROWS, 8, "app", ""), 1235, "CLIENT_FOUND_ROWS"),
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
