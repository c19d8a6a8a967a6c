//! Access for fuzz targets to the record layer. Not part of the interface.

use bytes::BytesMut;
use headstart_wire::{Suite, TrafficKey};
use rustls::ContentType;

use super::record::{Opener, RecordContent, Sealer};

/// Decrypts `bytes` as records of a server; and encrypts and decrypts them as types and payloads of records.
///
/// # Panics
/// When the record layer is wrong.
pub fn records(bytes: &[u8]) {
    let suite = if bytes.len().is_multiple_of(2) { Suite::Aes256Gcm } else { Suite::Chacha20Poly1305 };
    let key = TrafficKey { key: [7; 32], iv: [7; 12], sequence: 0 };
    let (Ok(mut sealer), Ok(mut opener)) = (Sealer::new(suite, &key), Opener::new(suite, &key)) else {
        return;
    };
    let (mut sent, mut data, mut rest) = (BytesMut::new(), Vec::new(), bytes);
    while let [typ, length, tail @ ..] = rest {
        let (payload, next) = tail.split_at(tail.len().min(usize::from(*length)));
        let typ = 20 + typ % 6;
        if sealer.seal(ContentType::from(typ), payload, &mut sent).is_err() {
            return;
        }
        if typ == 23 {
            data.extend_from_slice(payload);
        }
        rest = next;
    }
    let mut plain = BytesMut::new();
    while let Ok(Some(RecordContent::Data | RecordContent::Nothing)) = opener.open(&mut sent, &mut plain) {}
    assert!(data.starts_with(&plain), "the plaintext is what was encrypted");

    let (Ok(mut opener), mut raw) = (Opener::new(suite, &key), BytesMut::from(bytes)) else { return };
    plain.clear();
    while let Ok(Some(_)) = opener.open(&mut raw, &mut plain) {}
    assert!(plain.is_empty(), "unencrypted bytes give no plaintext");
}
