//! The record layer of TLS 1.3 (RFC 8446, section 5) after the handshake, without I/O.

use std::io;

use bytes::{Buf, BytesMut};
use headstart_wire::{Suite, TrafficKey};
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::crypto::ring::cipher_suite::{TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
use rustls::{ContentType, ProtocolVersion, Tls13CipherSuite};

/// Most bytes of plaintext in a record (section 5.1).
pub(super) const PLAIN_MAX: usize = 1 << 14;
/// Most bytes of ciphertext in a record (section 5.2).
const CIPHER_MAX: usize = PLAIN_MAX + 256;
/// Length of a record's header: type, version, length.
const HEADER_BYTES: usize = 5;
pub(super) const RECORD_MAX: usize = HEADER_BYTES + CIPHER_MAX;
/// Longest accepted message of the handshake protocol; messages after the handshake are far shorter.
const MESSAGE_MAX: usize = 1 << 16;

/// `HandshakeType` (section 4).
const NEW_SESSION_TICKET: u8 = 4;
pub(super) const KEY_UPDATE: u8 = 24;

/// `AlertDescription` (section 6).
pub(super) const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// What a record contained.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RecordContent {
    /// Plaintext.
    Data,
    /// Nothing of interest.
    Nothing,
    /// The server's next record has a new key; `requested`: this side must change its key too.
    KeyUpdate { requested: bool },
    /// The end: no record follows.
    End,
}

/// An error of the server.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("the server's TLS record cannot be decrypted")]
    BadRecordMac,
    #[error("the server's TLS record is too long")]
    RecordOverflow,
    #[error("the server sent {0}, which TLS does not allow here")]
    Unexpected(&'static str),
    #[error("the server sent a TLS message that cannot be read")]
    Decode,
    #[error("the server ended the TLS session: alert {0} (RFC 8446, section 6)")]
    Alert(u8),
}

const UNKNOWN: Fault = Fault::Unexpected("a record of an unknown type");

impl Fault {
    /// The alert to send to the server; none when the server has ended the session.
    pub(super) fn alert(&self) -> Option<u8> {
        match self {
            Self::BadRecordMac => Some(20),
            Self::RecordOverflow => Some(22),
            Self::Unexpected(_) => Some(10),
            Self::Decode => Some(50),
            Self::Alert(_) => None,
        }
    }
}

fn suite(suite: Suite) -> io::Result<&'static Tls13CipherSuite> {
    let suite = match suite {
        Suite::Aes256Gcm => TLS13_AES_256_GCM_SHA384,
        Suite::Chacha20Poly1305 => TLS13_CHACHA20_POLY1305_SHA256,
    };
    suite.tls13().ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Most records with one key of this suite (section 5.5).
pub(super) fn record_limit(name: Suite) -> io::Result<u64> {
    Ok(suite(name)?.common.confidentiality_limit)
}

/// Decrypts records.
pub(super) struct Opener {
    suite: &'static Tls13CipherSuite,
    cipher: Box<dyn MessageDecrypter>,
    sequence: u64,
    control: ControlMessages,
}

/// Reads records other than data.
#[derive(Default)]
pub(super) struct ControlMessages {
    /// Bytes of handshake messages, which may span several records.
    messages: BytesMut,
}

impl Opener {
    pub(super) fn new(name: Suite, key: &TrafficKey) -> io::Result<Self> {
        let suite = suite(name)?;
        let cipher = suite.aead_alg.decrypter(AeadKey::from(key.key), Iv::new(key.iv));
        Ok(Self { suite, cipher, sequence: key.sequence, control: ControlMessages::default() })
    }

    pub(super) fn rekey(&mut self, key: &TrafficKey) {
        self.cipher = self.suite.aead_alg.decrypter(AeadKey::from(key.key), Iv::new(key.iv));
        self.sequence = key.sequence;
    }

    /// Takes the first record from `incoming`, if it is complete, and appends its data to `plain`.
    pub(super) fn open(
        &mut self,
        incoming: &mut BytesMut,
        plain: &mut BytesMut,
    ) -> Result<Option<RecordContent>, Fault> {
        let Some(header) = incoming.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let bytes = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] != u8::from(ContentType::ApplicationData) {
            return Err(Fault::Unexpected("a record that is not encrypted"));
        }
        if bytes > CIPHER_MAX {
            return Err(Fault::RecordOverflow);
        }
        if incoming.len() < HEADER_BYTES + bytes {
            return Ok(None);
        }
        incoming.advance(HEADER_BYTES);
        let mut record = incoming.split_to(bytes);
        let opaque =
            InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, &mut record);
        let message = self.cipher.decrypt(opaque, self.sequence).map_err(|error| match error {
            rustls::Error::PeerSentOversizedRecord => Fault::RecordOverflow,
            rustls::Error::PeerMisbehaved(_) => UNKNOWN,
            _ => Fault::BadRecordMac,
        })?;
        // No connection lives for 2^64 records.
        self.sequence = self.sequence.wrapping_add(1);
        if message.typ == ContentType::ApplicationData {
            self.control.data()?;
            plain.extend_from_slice(message.payload);
            return Ok(Some(RecordContent::Data));
        }
        self.control.read(message.typ, message.payload).map(Some)
    }
}

impl ControlMessages {
    /// Checks that data may come now.
    pub(super) fn data(&self) -> Result<(), Fault> {
        match self.messages.is_empty() {
            true => Ok(()),
            false => Err(Fault::Unexpected("a message in parts with another between them")),
        }
    }

    /// Reads a record of another type.
    pub(super) fn read(&mut self, typ: ContentType, payload: &[u8]) -> Result<RecordContent, Fault> {
        match typ {
            ContentType::Alert => {
                self.data()?;
                match *payload {
                    [_, CLOSE_NOTIFY] => Ok(RecordContent::End),
                    [_, USER_CANCELED] => Ok(RecordContent::Nothing),
                    [_, alert] => Err(Fault::Alert(alert)),
                    _ => Err(Fault::Decode),
                }
            }
            ContentType::Handshake => {
                // Empty fragments are forbidden (section 5.1), so that a server cannot keep this loop busy.
                if payload.is_empty() {
                    return Err(Fault::Unexpected("an empty message"));
                }
                self.messages.extend_from_slice(payload);
                self.message()
            }
            _ => {
                self.data()?;
                Err(UNKNOWN)
            }
        }
    }

    /// Reads the complete messages.
    fn message(&mut self) -> Result<RecordContent, Fault> {
        while let Some(&[kind, a, b, c]) = self.messages.first_chunk::<4>() {
            let bytes = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
            if bytes > MESSAGE_MAX {
                return Err(Fault::Unexpected("a message that is too long"));
            }
            if self.messages.len() < 4 + bytes {
                break;
            }
            self.messages.advance(4);
            let body = self.messages.split_to(bytes);
            match kind {
                NEW_SESSION_TICKET => {}
                KEY_UPDATE => {
                    // Bytes after it have another key, so it must be the last message of its record (section 5.1).
                    return match *body {
                        [requested @ (0 | 1)] if self.messages.is_empty() => {
                            Ok(RecordContent::KeyUpdate { requested: requested == 1 })
                        }
                        [0 | 1] => Err(Fault::Unexpected("a message after a KeyUpdate in its record")),
                        _ => Err(Fault::Decode),
                    };
                }
                _ => return Err(Fault::Unexpected("a message of the handshake")),
            }
        }
        Ok(RecordContent::Nothing)
    }
}

/// Encrypts records.
pub(super) struct Sealer {
    suite: &'static Tls13CipherSuite,
    cipher: Box<dyn MessageEncrypter>,
    sequence: u64,
    /// Most records with one key (section 5.5).
    limit: u64,
}

impl Sealer {
    pub(super) fn new(name: Suite, key: &TrafficKey) -> io::Result<Self> {
        let suite = suite(name)?;
        let cipher = suite.aead_alg.encrypter(AeadKey::from(key.key), Iv::new(key.iv));
        Ok(Self { suite, cipher, sequence: key.sequence, limit: suite.common.confidentiality_limit })
    }

    #[cfg(test)]
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Whether the key must be replaced.
    pub(super) fn is_worn(&self) -> bool {
        self.sequence >= self.limit
    }

    pub(super) fn data(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), String> {
        self.seal(ContentType::ApplicationData, plain, out)
    }

    pub(super) fn close_notify(&mut self, out: &mut BytesMut) -> Result<(), String> {
        self.seal(ContentType::Alert, &[1, CLOSE_NOTIFY], out)
    }

    pub(super) fn alert(&mut self, alert: u8, out: &mut BytesMut) -> Result<(), String> {
        self.seal(ContentType::Alert, &[2, alert], out)
    }

    /// Announces the next key to the server with the current one, then uses it. The server's own key stays.
    pub(super) fn key_update(&mut self, key: &TrafficKey, out: &mut BytesMut) -> Result<(), String> {
        self.seal(ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
        self.cipher = self.suite.aead_alg.encrypter(AeadKey::from(key.key), Iv::new(key.iv));
        self.sequence = key.sequence;
        Ok(())
    }

    pub(super) fn seal(&mut self, typ: ContentType, plain: &[u8], out: &mut BytesMut) -> Result<(), String> {
        let payload = OutboundChunks::Single(plain);
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        let record = self.cipher.encrypt(message, self.sequence).map_err(|error| error.to_string())?;
        out.extend_from_slice(&record.encode());
        // No connection lives for 2^64 records.
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
