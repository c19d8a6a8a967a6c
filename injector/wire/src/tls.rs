//! A TLS 1.3 session (RFC 8446) that the function continues.
//!
//! Its keys protect the records until the next `KeyUpdate`. The traffic secrets, from which later keys are made, stay in
//! the agent: [`ToAgent::NextKey`](crate::ToAgent::NextKey).

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// The TLS session on a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsSession {
    /// Names the connection in later messages: unique in this instance, and below 2^53.
    pub connection: u64,
    /// How records are protected.
    pub suite: Suite,
    /// The keys. None when the kernel has them: then plaintext is read and written ([`ktls`](crate::ktls)).
    #[serde(default)]
    pub keys: Option<TrafficKeys>,
}

/// The keys of both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficKeys {
    /// For records that the function sends.
    pub to_server: TrafficKey,
    /// For records that the function receives.
    pub from_server: TrafficKey,
}

/// The AEAD algorithm (RFC 8446, appendix B.4): those with keys of 256 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Suite {
    /// `TLS_AES_256_GCM_SHA384`.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// `TLS_CHACHA20_POLY1305_SHA256`.
    #[serde(rename = "chacha20-poly1305")]
    Chacha20Poly1305,
}

/// One of the two directions of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flow {
    /// From the function to the server.
    ToServer,
    /// From the server to the function.
    FromServer,
}

/// The key of one direction. `Debug` does not show it; it is wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficKey {
    /// The key; hexadecimal on the wire.
    #[serde(with = "hex::serde")]
    pub key: [u8; 32],
    /// The part from which nonces are made (RFC 8446, section 5.3); hexadecimal on the wire.
    #[serde(with = "hex::serde")]
    pub iv: [u8; 12],
    /// The number of the next record.
    pub sequence: u64,
}

impl fmt::Debug for TrafficKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrafficKey(***, {})", self.sequence)
    }
}

impl Drop for TrafficKey {
    fn drop(&mut self) {
        self.key.zeroize();
        self.iv.zeroize();
    }
}
