//! The login against scripted servers.

use std::future::Future;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::backend::Protocol;
use crate::{FailureReason, Secret};

const PASSWORD: &str = "corr3ct-horse";

fn login() -> PostgresLogin {
    PostgresLogin {
        user: "app".into(),
        database: "orders".into(),
        password: Some(Secret::new(PASSWORD)),
        ..PostgresLogin::default()
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}

fn auth(code: u32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&code.to_be_bytes(), rest].concat())
}

fn welcome() -> Vec<u8> {
    let parameter = message(b'S', b"server_version\x0015.0\0");
    let key = message(b'K', &[0, 0, 0, 42, 1, 2, 3, 4]);
    [auth(0, b""), parameter, key, message(b'Z', b"I")].concat()
}

/// Logs in against `server`, which gets its end of the stream after the start-up message.
async fn against<F: Future<Output = ()>>(
    login: PostgresLogin,
    private: bool,
    server: impl FnOnce(DuplexStream) -> F,
) -> Result<LoginResult, ConnectCause> {
    let (mut ours, mut theirs) = duplex(1 << 20);
    let server = async {
        let length = theirs.read_u32().await.unwrap();
        let mut startup = vec![0; length as usize - 4];
        theirs.read_exact(&mut startup).await.unwrap();
        assert!(startup.starts_with(b"\0\x03\0\0user\0app\0database\0orders\0client_encoding\0UTF8\0"));
        server(theirs).await;
    };
    tokio::join!(
        log_in(&login, &mut ours, PostgresTransport { private, end_point: None }, &LoginVariant::Plain),
        server
    )
    .0
}

async fn against_script(script: Vec<u8>) -> Result<LoginResult, ConnectCause> {
    against(login(), false, async move |mut stream: DuplexStream| {
        stream.write_all(&script).await.unwrap();
    })
    .await
}

async fn cause_of(script: Vec<u8>) -> ConnectCause {
    against_script(script).await.unwrap_err()
}

#[tokio::test]
async fn trusting_server_gives_a_session_without_the_cancel_key() {
    let logged_in = against_script(welcome()).await.unwrap();
    assert!(logged_in.exposed.is_some_and(|what| what.contains("has not asked for it")), "{logged_in:?}");
    let hashed = against(login(), false, async move |mut stream: DuplexStream| {
        stream.write_all(&auth(5, b"salt")).await.unwrap();
        stream.read_u8().await.unwrap();
        stream.write_all(&welcome()).await.unwrap();
    });
    let hashed = hashed.await.unwrap();
    assert!(hashed.exposed.is_some_and(|what| what.contains("MD5")), "{hashed:?}");
    let parameters = vec![("server_version".to_owned(), "15.0".to_owned())];
    let (user, database) = ("app".to_owned(), "orders".to_owned());
    assert_eq!(logged_in.session, Session::Postgres { process_id: 42, parameters, user, database });
    assert_eq!(*logged_in.cancel.unwrap().0, [0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 42, 1, 2, 3, 4]);
}

#[tokio::test]
async fn nonsense_is_a_protocol_error() {
    let too_long = [b"R".as_slice(), &u32::MAX.to_be_bytes(), b"xxxx"].concat();
    let scripts: [(&str, Vec<u8>); 9] = [
        ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("length too long", too_long),
        ("length 64 KiB", message(b'R', &[0; 64 * 1024])),
        ("length below four", vec![b'R', 0, 0, 0, 3, 0, 0, 0, 0]),
        ("unknown tag", message(b'!', b"")),
        ("row before login", message(b'D', &[0, 0])),
        ("ready in a transaction", [auth(0, b""), message(b'Z', b"T")].concat()),
        ("more after ready", [welcome(), message(b'N', b"\0")].concat()),
        ("ignored options", message(b'v', b"\0\x03\0\0\0\0\0\x01_pq_.x\0")),
    ];
    for (name, script) in scripts {
        let cause = cause_of(script).await;
        assert!(matches!(cause, ConnectCause::Protocol(_)), "{name}: {cause:?}");
        assert_eq!(cause.retry_helps(), name == "more after ready", "{name}");
    }
}

#[tokio::test]
async fn early_end_is_reported_as_such() {
    for script in [vec![], b"R\0\0".to_vec(), auth(0, b"")] {
        let cause = cause_of(script).await;
        assert!(matches!(cause, ConnectCause::Closed), "{cause:?}");
    }
}

#[tokio::test]
async fn notices_are_passed_over_up_to_a_limit() {
    let notice = message(b'N', b"SNOTICE\0Mhello\0\0");
    let some = [notice.repeat(20), welcome()].concat();
    assert!(against_script(some).await.is_ok());
    let storm = [auth(0, b""), notice.repeat(20_000)].concat();
    let cause = cause_of(storm).await;
    assert!(matches!(cause, ConnectCause::Protocol(ProtocolError::LoginTooLong)), "{cause:?}");
}

#[tokio::test]
async fn negotiated_version_without_options_is_fine() {
    let script = [message(b'v', b"\0\x03\0\0\0\0\0\0"), welcome()].concat();
    assert!(against_script(script).await.is_ok());
}

#[tokio::test]
async fn refusal_carries_state_and_clean_words() {
    let body = format!("SFATAL\0C28P01\0Mno {PASSWORD}\x1b[2J\nfor you\0\0");
    let cause = cause_of(message(b'E', body.as_bytes())).await;
    assert_eq!(cause.to_string(), "the server refused: no *** [2J for you (SQLSTATE 28P01)");
    assert_eq!((cause.reason(), cause.retry_helps()), (FailureReason::Server, false));
    let busy = cause_of(message(b'E', b"SFATAL\0C53300\0Mtoo many clients\0\0")).await;
    assert!(busy.retry_helps());
}

#[tokio::test]
async fn authentication_that_is_not_possible_is_refused() {
    let cause = cause_of(auth(3, b"")).await;
    assert!(matches!(cause, ConnectCause::CleartextRefused), "{cause:?}");
    for (code, rest) in [(7, b"".as_slice()), (10, b"SCRAM-SHA-256-PLUS\0\0")] {
        let cause = cause_of(auth(code, rest)).await;
        assert!(matches!(cause, ConnectCause::AuthUnsupported { .. }), "{cause:?}");
    }
    let passwordless = PostgresLogin { password: None, ..login() };
    let script = async |mut stream: DuplexStream| stream.write_all(&auth(5, b"salt")).await.unwrap();
    let cause = against(passwordless, false, script).await.unwrap_err();
    assert!(matches!(cause, ConnectCause::PasswordMissing), "{cause:?}");
}

#[tokio::test]
async fn cleartext_goes_out_only_where_it_is_allowed() {
    let logged_in = against(login(), true, async |mut stream: DuplexStream| {
        stream.write_all(&auth(3, b"")).await.unwrap();
        let mut answer = vec![0; 1 + 4 + PASSWORD.len() + 1];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, message(b'p', format!("{PASSWORD}\0").as_bytes()));
        stream.write_all(&welcome()).await.unwrap();
    });
    assert!(logged_in.await.is_ok());
}

/// Reads `SASLInitialResponse` and answers with a challenge; the nonce of the client comes back.
async fn challenge(stream: &mut DuplexStream, iterations: u64) {
    stream.write_all(&auth(10, b"SCRAM-SHA-256\0\0")).await.unwrap();
    let mut first = vec![0; 1024];
    let read = stream.read(&mut first).await.unwrap();
    let first = String::from_utf8_lossy(&first[..read]).into_owned();
    let nonce = first.rsplit("r=").next().unwrap();
    let challenge = format!("r={nonce}server,s=c2FsdA==,i={iterations}");
    stream.write_all(&auth(11, challenge.as_bytes())).await.unwrap();
}

/// The mechanism that is chosen of an offer, and how its first message begins.
async fn chosen(end_point: Option<&[u8]>, offer: &[u8]) -> String {
    let (mut ours, mut theirs) = duplex(1 << 20);
    let login = login();
    let channel = PostgresTransport { private: true, end_point: end_point.map(<[u8]>::to_vec) };
    let server = async {
        let length = theirs.read_u32().await.unwrap();
        theirs.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
        theirs.write_all(&auth(10, offer)).await.unwrap();
        let mut answer = [0; 128];
        let read = theirs.read(&mut answer).await.unwrap();
        drop(theirs);
        String::from_utf8_lossy(&answer[5..read]).into_owned()
    };
    tokio::join!(log_in(&login, &mut ours, channel, &LoginVariant::Plain), server).1
}

#[tokio::test]
async fn a_login_is_bound_to_the_tls_session_where_both_can() {
    let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
    let one = b"SCRAM-SHA-256\0\0";
    for (end_point, offer, mechanism, header) in [
        (Some(&b"hash"[..]), &both[..], "SCRAM-SHA-256-PLUS\0", "p=tls-server-end-point,,"),
        // If an attacker had removed the better offer, the server would notice.
        (Some(b"hash"), one, "SCRAM-SHA-256\0", "y,,"),
        (None, both, "SCRAM-SHA-256\0", "n,,"),
    ] {
        let said = chosen(end_point, offer).await;
        assert!(said.starts_with(mechanism) && said.contains(header), "{said:?}");
    }
}

#[tokio::test]
async fn server_that_cannot_prove_itself_is_not_trusted() {
    for (name, proof) in [
        ("skips the proof", welcome()),
        ("wrong signature", [auth(12, b"v=AAAA"), welcome()].concat()),
        ("error as the proof", [auth(12, b"e=other-error"), welcome()].concat()),
    ] {
        let outcome = against(login(), false, async |mut stream: DuplexStream| {
            challenge(&mut stream, 10).await;
            assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
            stream.write_all(&proof).await.unwrap();
        });
        let cause = outcome.await.unwrap_err();
        assert!(
            matches!(cause, ConnectCause::ServerUnproven(_) | ConnectCause::Protocol(_)),
            "{name}: {cause:?}"
        );
    }
}

#[tokio::test]
async fn absurd_number_of_hash_rounds_is_refused() {
    let outcome = against(login(), false, async |mut stream: DuplexStream| {
        challenge(&mut stream, 4_000_000_000).await;
    });
    let cause = outcome.await.unwrap_err();
    assert!(matches!(cause, ConnectCause::ServerUnproven(_)), "{cause:?}");
}

#[test]
fn options_replace_defaults_but_not_the_identity() {
    let options = [("user", "root"), ("application_name", "mine"), ("search_path", "a")];
    let options = options.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let packet = startup(&PostgresLogin { options, ..login() }, &LoginVariant::Plain).unwrap();
    let text = String::from_utf8_lossy(&packet[8..]).replace('\0', " ");
    assert_eq!(text, "user app database orders client_encoding UTF8 application_name mine search_path a  ");
}

#[test]
fn parameter_with_nul_is_refused_before_anything_is_sent() {
    let login = PostgresLogin { user: "a\0database\0postgres".into(), ..login() };
    let cause = startup(&login, &LoginVariant::Plain).unwrap_err();
    assert!(matches!(cause, ConnectCause::Protocol(ProtocolError::Unsendable(_))), "{cause:?}");
}

#[test]
fn directory_means_the_default_socket_in_it() {
    let directory = std::env::temp_dir();
    assert_eq!(login().socket_path(&directory), directory.join(".s.PGSQL.5432"));
    assert_eq!(login().socket_path(Path::new("/nowhere/db.sock")), Path::new("/nowhere/db.sock"));
}
