use super::*;
use crate::tls::{Suite, TrafficKeys};
use proptest::prelude::*;

fn key(byte: u8) -> TrafficKey {
    TrafficKey { key: [byte; 32], iv: [byte; 12], sequence: u64::from(byte) }
}

fn tls() -> TlsSession {
    let keys = Some(TrafficKeys { to_server: key(1), from_server: key(2) });
    TlsSession { connection: 7, suite: Suite::Aes256Gcm, keys }
}

fn lease() -> ToFunction {
    let session = Session::Postgres {
        process_id: 7,
        user: "app".into(),
        database: "orders".into(),
        parameters: vec![("server_version".into(), "15.1".into())],
    };
    let ready = Grant {
        backend: "db".into(),
        status: GrantStatus::Ready { session, expires_ns: Some(9), tls: Some(Box::new(tls())) },
    };
    let failed = Grant { backend: "cache".into(), status: GrantStatus::Failed { reason: "refused".into() } };
    ToFunction::Lease(Lease {
        function: "orders".into(),
        instance: "orders-1".into(),
        concurrency: Some(1),
        backends: vec![ready, failed],
    })
}

#[test]
fn a_lease_survives_the_wire_and_announces_its_descriptors() {
    let message = lease();
    assert_eq!(message.descriptors(), 3, "the listener, the page and one ready backend");
    let packet = message.encode().unwrap();
    assert_eq!(ToFunction::decode(&packet).unwrap(), message);
}

#[test]
fn what_the_fuzzers_begin_with_are_messages() {
    macro_rules! seed {
        ($name:literal) => {
            include_bytes!(concat!("../../../../integration-tests/fuzz/seeds/wire/", $name))
        };
    }
    for seed in [&seed!("lease")[..], seed!("grant"), seed!("freeze")] {
        ToFunction::decode(seed).unwrap();
    }
    for seed in [&seed!("hello")[..], seed!("next_key")] {
        ToAgent::decode(seed).unwrap();
    }
}

#[test]
fn every_wrong_header_has_its_own_reason() {
    let good = ToAgent::Ready { ready_ns: 1 }.encode().unwrap();
    let mut version = good.clone();
    version[2] = 9;
    let mut magic = good.clone();
    magic[0] = b'X';
    let mut reserved = good.clone();
    reserved[3] = 1;
    for (packet, reason) in [
        (&good[..3], "header"),
        (&good[..4], "body"),
        (&magic[..], "header"),
        (&reserved[..], "header"),
        (&version[..], "version"),
        (b"HS\x03\0{\"made_up\":{}}", "body"),
    ] {
        assert_eq!(ToAgent::decode(packet).unwrap_err().reason(), reason);
    }
}

#[test]
fn a_life_after_the_first_response_survives_the_wire() {
    for message in [
        ToAgent::Quiet {},
        ToAgent::Busy {},
        ToAgent::Thawed { thawed_ns: 7 },
        ToAgent::Returned { backend: "db".into(), connection: None },
        ToAgent::NextKey { connection: 9, flow: Flow::ToServer },
    ] {
        assert_eq!(ToAgent::decode(&message.encode().unwrap()).unwrap(), message);
    }
    for message in [
        ToFunction::Freeze { return_backends: true },
        ToFunction::Thaw {},
        ToFunction::NextKey { connection: 9, flow: Flow::FromServer, key: Some(key(1)) },
        ToFunction::NextKey { connection: 9, flow: Flow::FromServer, key: None },
    ] {
        assert_eq!(message.descriptors(), 0);
        assert_eq!(ToFunction::decode(&message.encode().unwrap()).unwrap(), message);
    }
    let thaw = ToFunction::Thaw {}.encode().unwrap();
    assert_eq!(&thaw[HEADER_BYTES..], br#"{"thaw":{}}"#, "as the documentation promises");
}

#[test]
fn a_limit_that_is_not_there_is_none() {
    let packet = b"HS\x03\0{\"lease\":{\"function\":\"f\",\"instance\":\"f-1\",\"backends\":[\
        {\"backend\":\"db\",\"status\":{\"ready\":{\"session\":\"tcp\"}}}]}}";
    let ToFunction::Lease(lease) = ToFunction::decode(packet).unwrap() else { panic!("no lease") };
    assert_eq!(lease.concurrency, None);
    let ready = GrantStatus::Ready { session: Session::Tcp, expires_ns: None, tls: None };
    assert_eq!(lease.backends[0].status, ready);
}

#[test]
fn keys_are_written_as_the_documentation_says_and_never_shown() {
    let text = serde_json::to_string(&key(1)).unwrap();
    let (key, iv) = ("01".repeat(32), "01".repeat(12));
    assert_eq!(text, format!(r#"{{"key":"{key}","iv":"{iv}","sequence":1}}"#));
    let shown = format!("{:?}", lease());
    assert!(shown.contains("***") && !shown.contains("[1, 1") && !shown.contains("0101"), "{shown}");
    for wrong in ["", "01", "zz", &"01".repeat(33)] {
        let text = format!(r#"{{"key":"{wrong}","iv":"{iv}","sequence":1}}"#);
        assert!(serde_json::from_str::<TrafficKey>(&text).is_err(), "{wrong}");
    }
}

#[test]
fn a_message_beyond_its_limit_is_not_sent() {
    let message = ToAgent::Request { backend: "x".repeat(ToAgent::MAX_BYTES) };
    assert_eq!(message.encode().unwrap_err().reason(), "oversized");
}

proptest! {
    #[test]
    fn no_packet_panics(packet in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = ToAgent::decode(&packet);
        let _ = ToFunction::decode(&packet);
    }

    #[test]
    fn no_body_panics(body in "\\{\"(hello|ack|ready|lease|grant|request|returned|freeze|thaw|thawed|next_key)\":.{0,64}") {
        let mut packet = vec![b'H', b'S', VERSION, 0];
        packet.extend_from_slice(body.as_bytes());
        let _ = ToAgent::decode(&packet);
        let _ = ToFunction::decode(&packet);
    }
}
