use super::*;
use crate::Secret;
use mysql_common::constants::StatusFlags;
use mysql_common::proto::MySerialize;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

const PASSWORD: &str = "corr3ct-horse";
const NONCE: &[u8; 20] = b"abcdefghijklmnopqrst";
const PLAIN: MysqlTransport = MysqlTransport { tls: false, unix: false };
const UNIX: MysqlTransport = MysqlTransport { tls: false, unix: true };
const OK: &[u8] = &[0, 0, 0, 2, 0, 0, 0];

fn login() -> MysqlLogin {
    MysqlLogin { user: "app".into(), password: Some(Secret::new(PASSWORD)), database: Some("orders".into()) }
}

fn greeting(plugin: &str) -> Vec<u8> {
    let (head, tail) = (b"abcdefgh", b"ijklmnopqrst\0");
    let (capabilities, status) = (CapabilityFlags::all(), StatusFlags::SERVER_STATUS_AUTOCOMMIT);
    let plugin = format!("{plugin}\0");
    let greeting = HandshakePacket::new(
        10,
        &b"8.0.36"[..],
        7,
        *head,
        Some(&tail[..]),
        capabilities,
        45,
        status,
        Some(plugin.as_bytes()),
    );
    let mut bytes = Vec::new();
    greeting.serialize(&mut bytes);
    bytes
}

fn switch(plugin: &str, data: &[u8]) -> Vec<u8> {
    [&[0xfe], plugin.as_bytes(), &[0], data].concat()
}

/// These bodies, each in a packet, with our answers between them.
fn packets(bodies: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, body) in bodies.iter().enumerate() {
        let length = u8::try_from(body.len()).unwrap();
        bytes.extend([length, 0, 0, u8::try_from(2 * index).unwrap()]);
        bytes.extend(*body);
    }
    bytes
}

/// What a login answers, packet by packet, and what comes of it.
async fn against(
    channel: MysqlTransport,
    script: &[u8],
) -> (Vec<Vec<u8>>, Result<LoginResult, ConnectCause>) {
    let (mut ours, mut theirs) = duplex(1 << 16);
    theirs.write_all(script).await.unwrap();
    theirs.shutdown().await.unwrap();
    let outcome = log_in(&login(), &mut ours, Vec::new(), channel, &LoginVariant::Plain).await;
    drop(ours);
    let mut said = Vec::new();
    theirs.read_to_end(&mut said).await.unwrap();
    let (mut rest, mut answers) = (&said[..], Vec::new());
    while let [length, 0, 0, _, body @ ..] = rest {
        let (body, more) = body.split_at(usize::from(*length));
        answers.push(body.to_vec());
        rest = more;
    }
    assert!(rest.is_empty(), "{rest:?}");
    (answers, outcome)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn a_cached_password_is_proven_and_not_sent() {
    let script = packets(&[&greeting("caching_sha2_password"), &[1, 3]]);
    // After "cached" follows the OK at once.
    let script = [script, vec![7, 0, 0, 3], OK.to_vec()].concat();
    let (answers, outcome) = against(PLAIN, &script).await;
    // MySQL source documentation, "Caching_sha2_password information".
    let hash = Sha256::digest(PASSWORD);
    let mask = Sha256::digest([&Sha256::digest(hash)[..], NONCE].concat());
    let proof: Vec<u8> = hash.iter().zip(mask).map(|(one, other)| one ^ other).collect();
    assert!(contains(&answers[0], &proof) && contains(&answers[0], b"app\0"), "{answers:?}");
    let Session::Mysql { connection_id, server_version, status, capabilities, .. } = outcome.unwrap().session
    else {
        panic!("another kind")
    };
    assert_eq!((connection_id, server_version.as_str(), status), (7, "8.0.36", 2));
    let capabilities = CapabilityFlags::from_bits_retain(capabilities);
    assert!(!capabilities.intersects(
        CapabilityFlags::CLIENT_DEPRECATE_EOF
            | CapabilityFlags::CLIENT_LOCAL_FILES
            | CapabilityFlags::CLIENT_SSL
    ));
}

#[tokio::test]
async fn a_password_itself_is_sent_only_where_nobody_can_listen_in() {
    for question in [vec![1, 4], switch("mysql_clear_password", NONCE)] {
        let script = packets(&[&greeting("caching_sha2_password"), &question, OK]);
        let (answers, outcome) = against(PLAIN, &script).await;
        assert!(matches!(outcome, Err(ConnectCause::CleartextRefused)), "{question:?}: {outcome:?}");
        assert!(!contains(&answers.concat(), PASSWORD.as_bytes()), "{question:?}");
        for private in [UNIX, MysqlTransport { tls: true, unix: false }] {
            let (answers, outcome) = against(private, &script).await;
            assert!(outcome.is_ok(), "{question:?}: {outcome:?}");
            assert!(contains(&answers[1], PASSWORD.as_bytes()), "{question:?}");
        }
    }
}

#[tokio::test]
async fn the_server_chooses_the_method() {
    let question = switch("mysql_native_password", b"tsrqponmlkjihgfedcba\0");
    let (answers, outcome) = against(PLAIN, &packets(&[&greeting("made_up"), &question, OK])).await;
    assert!(outcome.is_ok() && answers[1].len() == 20, "a proof: {answers:?}");

    let question = switch("client_ed25519", &[7; 32]);
    let (answers, outcome) =
        against(PLAIN, &packets(&[&greeting("mysql_native_password"), &question, OK])).await;
    assert!(outcome.is_ok() && answers[1].len() == 64, "a signature: {answers:?}");

    for (plugin, named) in [
        ("mysql_old_password", "mysql_old_password"),
        ("parsec", "parsec"),
        ("sha256_password", "sha256"),
        ("dialog", "plugin"),
    ] {
        let script = packets(&[&greeting("mysql_native_password"), &switch(plugin, NONCE), OK]);
        let text = against(UNIX, &script).await.1.unwrap_err().to_string();
        assert!(text.contains(named), "{text}");
    }
}

#[tokio::test]
async fn errors_are_told_without_the_password() {
    let wrong = b"\xff\x15\x04#28000Access denied for corr3ct-horse";
    for (script, said, passes) in [
        (packets(&[b"\xff\x10\x04Too many connections"]), "Too many connections", true),
        (packets(&[&greeting("mysql_native_password"), wrong]), "1045 (28000): Access denied for ***", false),
        (packets(&[&greeting("mysql_native_password"), b"\xff\x1d\x04#08S01shutdown"]), "shutdown", true),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "HTTP", false),
        (packets(&[b"\x09old server"]), "greeting", false),
        (packets(&[b"\x0a"]), "greeting", false),
        (vec![0, 0, 0, 0], "packet", false),
        (vec![1, 0, 0, 9, 10], "packet", false),
        (vec![0xff, 0xff, 0xff, 0, 10], "packet", false),
        (packets(&[&greeting("mysql_native_password"), &[0xfe]]), "next step", false),
        (packets(&[&greeting("mysql_native_password"), &[0x33]]), "next step", false),
        (packets(&[&greeting("mysql_native_password"), &[0]]), "next step", false),
        (packets(&[&greeting("caching_sha2_password"), &[1, 9]]), "question of this method", false),
        (packets(&[&greeting("mysql_native_password")]), "closed the connection", true),
    ] {
        let cause = against(PLAIN, &script).await.1.unwrap_err();
        let text = cause.to_string();
        assert!(text.contains(said) && !text.contains(PASSWORD), "{said}: {text}");
        assert_eq!(cause.retry_helps(), passes, "{text}");
    }
    let mut long_nonce = greeting("mysql_native_password");
    long_nonce[1 + 7 + 4 + 8 + 1 + 2 + 1 + 2 + 2] = 0x80;
    let text = against(PLAIN, &packets(&[&long_nonce])).await.1.unwrap_err().to_string();
    assert!(text.contains("greeting"), "{text}");
    let question = switch("mysql_native_password", NONCE);
    let mut endless: Vec<&[u8]> = vec![&question; 20];
    let first = greeting("mysql_native_password");
    endless.insert(0, &first);
    let text = against(PLAIN, &packets(&endless)).await.1.unwrap_err().to_string();
    assert!(text.contains("more questions"), "{text}");
}

#[tokio::test]
async fn a_server_without_tls_is_refused_before_the_login() {
    let (mut ours, mut theirs) = duplex(1 << 16);
    let offers = packets(&[&greeting("mysql_native_password")]);
    theirs.write_all(&offers).await.unwrap();
    let said = start_tls(&mut ours, &LoginVariant::Plain).await.unwrap();
    assert_eq!(said, greeting("mysql_native_password"));
    let mut asked = [0; 36];
    theirs.read_exact(&mut asked).await.unwrap();
    assert_eq!((asked[0], asked[3]), (32, 1));
    assert!(
        CapabilityFlags::from_bits_retain(u32::from_le_bytes([asked[4], asked[5], asked[6], asked[7]]))
            .contains(CapabilityFlags::CLIENT_SSL)
    );

    let mut offers = offers;
    // The lower half of the flags, after version, "8.0.36", number, nonce and filler.
    offers[4 + 1 + 7 + 4 + 8 + 1 + 1] &= !8;
    theirs.write_all(&offers).await.unwrap();
    assert!(matches!(start_tls(&mut ours, &LoginVariant::Plain).await, Err(ConnectCause::TlsRefused)));
}

/// Found by the fuzz target `server`.
#[tokio::test]
async fn what_a_server_says_is_shown_without_the_password() {
    let echo = [b"\x07you said ", PASSWORD.as_bytes()].concat();
    for script in [packets(&[&echo]), packets(&[&greeting("mysql_native_password"), &echo])] {
        let text = against(UNIX, &script).await.1.unwrap_err().to_string();
        assert!(text.contains("you said ***") && !text.contains(PASSWORD), "{text}");
    }
}

proptest! {
    #[test]
    fn no_server_makes_it_panic(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..120), 0..4)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let first = greeting("caching_sha2_password");
        let mut all: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        for begin in [false, true] {
            if begin {
                all.insert(0, &first);
            }
            let _ = runtime.block_on(against(UNIX, &packets(&all)));
        }
    }
}
