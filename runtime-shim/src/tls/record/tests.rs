//! Records of a server that is played here, good and bad ones.

use super::*;
use proptest::prelude::*;

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::Chacha20Poly1305];

fn key(byte: u8) -> TrafficKey {
    TrafficKey { key: [byte; 32], iv: [byte; 12], sequence: 5 }
}

fn both(suite: Suite) -> (Sealer, Opener) {
    (Sealer::new(suite, &key(1)).unwrap(), Opener::new(suite, &key(1)).unwrap())
}

/// What the function makes of a record.
fn opened(typ: ContentType, payload: &[u8]) -> Result<Option<RecordContent>, Fault> {
    let (mut server, mut function) = both(Suite::Aes256Gcm);
    let (mut records, mut plain) = Default::default();
    server.seal(typ, payload, &mut records).unwrap();
    function.open(&mut records, &mut plain)
}

#[test]
fn records_may_arrive_in_any_pieces() {
    for suite in SUITES {
        let (mut server, mut function) = both(suite);
        let mut records = BytesMut::new();
        for text in ["one", "", "three"] {
            server.data(text.as_bytes(), &mut records).unwrap();
        }
        server
            .seal(ContentType::Handshake, &[4, 0, 0, 2, 7, 7, KEY_UPDATE, 0, 0, 1, 1], &mut records)
            .unwrap();
        server.close_notify(&mut records).unwrap();
        let (mut incoming, mut plain, mut said) = (BytesMut::new(), BytesMut::new(), Vec::new());
        for byte in records {
            incoming.extend_from_slice(&[byte]);
            said.extend(function.open(&mut incoming, &mut plain).unwrap());
        }
        assert_eq!(&plain[..], b"onethree");
        let update = RecordContent::KeyUpdate { requested: true };
        assert_eq!(
            said,
            [RecordContent::Data, RecordContent::Data, RecordContent::Data, update, RecordContent::End]
        );
    }
}

#[test]
fn messages_may_be_spread_over_records_and_end_with_a_key_update() {
    let (mut server, mut function) = both(Suite::Aes256Gcm);
    let (mut records, mut plain) = (BytesMut::new(), BytesMut::new());
    let ticket = [&[NEW_SESSION_TICKET, 0, 0, 40][..], &[9; 40]].concat();
    for part in [&ticket[..3], &ticket[3..30], &ticket[30..], &[KEY_UPDATE, 0], &[0, 1, 0]] {
        server.seal(ContentType::Handshake, part, &mut records).unwrap();
    }
    let mut said = Vec::new();
    while !records.is_empty() {
        said.extend(function.open(&mut records, &mut plain).unwrap());
    }
    assert_eq!(said.pop(), Some(RecordContent::KeyUpdate { requested: false }));
    assert_eq!(
        said,
        [RecordContent::Nothing, RecordContent::Nothing, RecordContent::Nothing, RecordContent::Nothing]
    );

    // From there on both have the next keys, and count anew.
    server.key_update(&key(2), &mut records).unwrap();
    function.open(&mut records, &mut plain).unwrap();
    function.rekey(&key(2));
    server.data(b"later", &mut records).unwrap();
    assert_eq!(function.open(&mut records, &mut plain), Ok(Some(RecordContent::Data)));
    assert_eq!(&plain[..], b"later");
}

#[test]
fn what_a_server_must_not_send_has_a_name_and_an_alert() {
    for (typ, payload, fault, alert) in [
        (ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 2][..], Fault::Decode, Some(50)),
        (ContentType::Handshake, &[KEY_UPDATE, 0, 0, 2, 0, 0], Fault::Decode, Some(50)),
        (
            ContentType::Handshake,
            &[KEY_UPDATE, 0, 0, 1, 0, 4, 0],
            Fault::Unexpected("a message after a KeyUpdate in its record"),
            Some(10),
        ),
        (ContentType::Handshake, &[1, 0, 0, 0], Fault::Unexpected("a message of the handshake"), Some(10)),
        (ContentType::Handshake, &[4, 1, 0, 1], Fault::Unexpected("a message that is too long"), Some(10)),
        (ContentType::Handshake, &[], Fault::Unexpected("an empty message"), Some(10)),
        (ContentType::ChangeCipherSpec, &[1], UNKNOWN, Some(10)),
        (ContentType::Heartbeat, &[1], UNKNOWN, Some(10)),
        (ContentType::Alert, &[2, 40], Fault::Alert(40), None),
        (ContentType::Alert, &[2], Fault::Decode, Some(50)),
    ] {
        let error = opened(typ, payload).unwrap_err();
        assert_eq!((error.alert(), error), (alert, fault), "{typ:?} {payload:?}");
    }
    assert_eq!(opened(ContentType::Alert, &[1, USER_CANCELED]), Ok(Some(RecordContent::Nothing)));

    let (mut server, mut function) = both(Suite::Aes256Gcm);
    let (mut records, mut plain) = (BytesMut::new(), BytesMut::new());
    server.seal(ContentType::Handshake, &[4, 0, 0, 2], &mut records).unwrap();
    server.data(b"between", &mut records).unwrap();
    function.open(&mut records, &mut plain).unwrap();
    let between = Fault::Unexpected("a message in parts with another between them");
    assert_eq!(function.open(&mut records, &mut plain), Err(between));
}

#[test]
fn forged_records_are_refused() {
    let (mut server, mut function) = both(Suite::Chacha20Poly1305);
    let (mut plain, mut good) = (BytesMut::new(), BytesMut::new());
    server.data(b"good", &mut good).unwrap();
    for at in 5..good.len() {
        let mut forged = good.clone();
        forged[at] ^= 1;
        let (_, mut function) = both(Suite::Chacha20Poly1305);
        assert_eq!(function.open(&mut forged, &mut plain), Err(Fault::BadRecordMac), "byte {at}");
    }
    let mut twice = [&good[..], &good].concat()[..].into();
    assert_eq!(function.open(&mut twice, &mut plain), Ok(Some(RecordContent::Data)));
    assert_eq!(function.open(&mut twice, &mut plain), Err(Fault::BadRecordMac), "a replay");

    for (header, fault) in [
        ([21, 3, 3, 0, 2], Fault::Unexpected("a record that is not encrypted")),
        ([b'H', b'T', b'T', b'P', b'/'], Fault::Unexpected("a record that is not encrypted")),
        ([23, 3, 3, 0x41, 1], Fault::RecordOverflow),
    ] {
        assert_eq!(function.open(&mut header[..].into(), &mut plain), Err(fault));
    }
    // Too short for a tag.
    assert_eq!(function.open(&mut [23, 3, 3, 0, 1, 0][..].into(), &mut plain), Err(Fault::BadRecordMac));
}

proptest! {
    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..600), typ in 20_u8..26) {
        let (mut server, mut function) = both(Suite::Aes256Gcm);
        let (mut records, mut plain) = (BytesMut::new(), BytesMut::new());
        let _ = function.open(&mut bytes[..].into(), &mut plain);
        server.seal(ContentType::from(typ), &bytes, &mut records).unwrap();
        let (_, mut function) = both(Suite::Aes256Gcm);
        while let Ok(Some(_)) = function.open(&mut records, &mut plain) {}
    }
}
