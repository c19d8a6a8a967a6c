use super::*;
use crate::backend::postgres::admit::{greeting, newest_minor};
use proptest::prelude::*;
use tokio::io::duplex;

fn login() -> PostgresLogin {
    PostgresLogin { user: "app".into(), database: "orders".into(), ..PostgresLogin::default() }
}

fn packet(code: i32, rest: &[u8]) -> Vec<u8> {
    let length = i32::try_from(8 + rest.len()).unwrap();
    [&length.to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
}

fn start(parameters: &[(&str, &str)]) -> StartupMessage {
    let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    StartupMessage { parameters: parameters.collect(), ..StartupMessage::default() }
}

async fn asked(bytes: &[u8]) -> (Result<FirstPacket, AdmissionError<PostgresRefusal>>, Vec<u8>) {
    let (mut client, mut server) = duplex(1 << 16);
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let request = read(&mut server).await;
    drop(server);
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    (request, said)
}

fn sqlstate_of(request: Result<FirstPacket, AdmissionError<PostgresRefusal>>) -> String {
    match request {
        Err(AdmissionError::Refused(refusal)) => refusal.sqlstate,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn encryption_is_declined_and_then_the_login_comes() {
    let startup = packet(PROTOCOL_3_0, b"user\0app\0database\0orders\0\0");
    let expected = FirstPacket::Startup(start(&[("user", "app"), ("database", "orders")]));
    let (ssl, gss) = (packet(SSL_REQUEST, b""), packet(GSSENC_REQUEST, b""));
    for (before, declined) in
        [(vec![], &b""[..]), (ssl.clone(), b"N"), ([gss.clone(), ssl.clone()].concat(), b"NN")]
    {
        let (request, said) = asked(&[before, startup.clone()].concat()).await;
        assert_eq!((request.as_ref(), &said[..]), (Ok(&expected), declined));
    }
    let (request, _) = asked(&[ssl.clone(), gss, ssl].concat()).await;
    assert_eq!(sqlstate_of(request), "08P01");
}

#[tokio::test]
async fn packets_that_no_server_would_take_are_refused() {
    let long = packet(PROTOCOL_3_0, &[b'a'; 10_000]);
    for (bytes, sqlstate) in [
        (long, "08P01"),
        (7_i32.to_be_bytes().to_vec(), "08P01"),
        ((-1_i32).to_be_bytes().to_vec(), "08P01"),
        (packet(PROTOCOL_3_0, b"user\0app"), "08P01"),
        (packet(PROTOCOL_3_0, b"user\0\xff\0\0"), "08P01"),
        (packet(CANCEL_REQUEST, b"1234"), "08P01"),
        (packet(131_072, b"user\0app\0\0"), "0A000"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "08P01"),
    ] {
        assert_eq!(sqlstate_of(asked(&bytes).await.0), sqlstate, "{bytes:?}");
    }
    assert_eq!(asked(b"\0\0").await.0, Err(AdmissionError::Left));
}

#[tokio::test]
async fn a_newer_protocol_is_negotiated_down() {
    let (request, _) = asked(&packet(PROTOCOL_3_0 + 2, b"user\0app\0_pq_.x\x001\0\0")).await;
    let Ok(FirstPacket::Startup(start)) = request else { panic!("{request:?}") };
    assert_eq!(
        start,
        StartupMessage {
            minor: 2,
            unknown: vec!["_pq_.x".into()],
            parameters: vec![("user".into(), "app".into())]
        }
    );
    let said = greeting(&start, 0, &(7, vec![8; 4]), &[]);
    assert!(said.starts_with(b"v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.x\0R\0\0\0\x08\0\0\0\0"), "{said:?}");
    assert!(said.ends_with(b"K\0\0\0\x0c\0\0\0\x07\x08\x08\x08\x08Z\0\0\0\x05I"), "{said:?}");
}

#[tokio::test]
async fn what_the_server_speaks_is_spoken() {
    let version = |text: &str| newest_minor(&[("server_version".into(), text.into())]);
    for (text, minor) in
        [("15.18 (Debian 15.18-0+deb12u1)", 0), ("17.10", 0), ("18.6", 2), ("19devel", 2), ("x", 0)]
    {
        assert_eq!(version(text), minor, "{text}");
    }
    let with = |minor| StartupMessage { minor, ..StartupMessage::default() };
    let key = (7, vec![8; 32]);
    assert!(greeting(&with(2), 2, &key, &[]).starts_with(b"R\0\0\0\x08\0\0\0\0K\0\0\0\x28\0\0\0\x07\x08"));
    // One that is newer still.
    assert!(greeting(&with(9999), 2, &key, &[]).starts_with(b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0R"));
    assert!(greeting(&with(0), 2, &key, &[]).starts_with(b"R"));
    // Keys of either length come back.
    for secret in [&[8; 4][..], &[8; 32]] {
        let (request, _) = asked(&packet(CANCEL_REQUEST, &[&[0, 0, 0, 7], secret].concat())).await;
        assert_eq!(request, Ok(FirstPacket::Cancel((7, secret.to_vec()))));
    }
}

#[test]
fn parameters_are_honoured_or_refused() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let base = [("user", "app"), ("database", "orders")];
    let with = |more: &[(&'static str, &'static str)]| wanted(&login(), &start(&[&base[..], more].concat()));
    assert_eq!(with(&[]), Ok(vec![]));
    assert_eq!(
        with(&[("TimeZone", "UTC"), ("options", "-c a=b -cc-d=e\\ f  --g=h=i"), ("replication", "off")]),
        Ok(vec![pair("TimeZone", "UTC"), pair("a", "b"), pair("c_d", "e f"), pair("g", "h=i")])
    );
    for (more, sqlstate) in [
        (("replication", "true"), "0A000"),
        (("replication", "database"), "0A000"),
        (("options", "-d 5"), "0A000"),
        (("options", "-c"), "0A000"),
        (("options", "-c a"), "0A000"),
    ] {
        assert_eq!(with(&[more]).unwrap_err().sqlstate, sqlstate, "{more:?}");
    }
    for (parameters, sqlstate) in [
        (&[][..], "28000"),
        (&[("user", "")], "28000"),
        (&[("user", "root"), ("database", "orders")], "28000"),
        (&[("user", "app"), ("database", "other")], "3D000"),
        (&[("user", "app")], "3D000"),
    ] {
        assert_eq!(wanted(&login(), &start(parameters)).unwrap_err().sqlstate, sqlstate, "{parameters:?}");
    }
    let same_name = PostgresLogin { database: "app".into(), ..login() };
    assert_eq!(wanted(&same_name, &start(&[("user", "app")])), Ok(vec![]));
}

#[test]
fn a_login_carries_what_differs_from_the_usual_one() {
    let login =
        PostgresLogin { options: [("application_name".to_owned(), "a".to_owned())].into(), ..login() };
    let with = |more: &[(&'static str, &'static str)]| {
        variant(&login, &start(&[&[("user", "app"), ("database", "orders")][..], more].concat())).unwrap()
    };
    assert_eq!(with(&[("client_encoding", "utf-8"), ("application_name", "a")]), LoginVariant::Plain);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        with(&[
            ("application_name", "a"),
            ("TimeZone", "UTC"),
            ("options", "-c timezone=CET --application-name=b")
        ]),
        LoginVariant::Parameters([pair("timezone", "CET"), pair("application_name", "b")].into())
    );
}

proptest! {
    #[test]
    fn no_first_packet_panics(body in prop::collection::vec(any::<u8>(), 0..256), text in ".{0,64}") {
        let _ = parse(&body);
        let _ = parse(&[&PROTOCOL_3_0.to_be_bytes()[..], &body].concat());
        let _ = options(&text);
    }
}
