//! A knock: one UDP packet that asks for a function before its client connects. The payload has 40 bytes:
//!
//! ```text
//! magic "HSKN"  version  key  zero  function ID  zero  epoch  nonce  tag
//! 4             1        1    2     4            4     8      8      8     bytes, network order
//! ```

use crate::auth::{Carrier, Key, TagClaim};

/// Length of the payload in bytes.
pub const LEN: usize = 40;
/// The first bytes of the payload.
pub const MAGIC: [u8; 4] = *b"HSKN";
/// The version of this format.
pub const VERSION: u8 = 1;

/// A knock, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knock {
    /// The function's ID.
    pub function: u32,
    /// The key's number.
    pub key: u8,
    /// The whole epoch.
    pub epoch: u64,
    /// Random, so that two knocks differ.
    pub nonce: u64,
    /// The tag.
    pub tag: u64,
}

impl Knock {
    /// A knock for the function ID `function`, with a tag of the key number `number`.
    pub fn new(key: Key, number: u8, epoch: u64, function: u32, nonce: u64) -> Self {
        let mut knock = Self { function, key: number, epoch, nonce, tag: 0 };
        knock.tag = knock.claim().tag(key);
        knock
    }

    /// What the tag covers.
    #[inline(always)]
    pub fn claim(&self) -> TagClaim {
        TagClaim {
            epoch: self.epoch,
            function: self.function,
            port: 0,
            key: self.key,
            on: Carrier::Knock,
            unique: self.nonce,
        }
    }

    /// The payload.
    pub fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.key;
        bytes[8..12].copy_from_slice(&self.function.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.nonce.to_be_bytes());
        bytes[32..].copy_from_slice(&self.tag.to_be_bytes());
        bytes
    }

    /// Reads a payload; `None` when it is no knock. This does not verify the tag.
    #[inline(always)]
    pub fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let [m0, m1, m2, m3, version, key, z0, z1, f0, f1, f2, f3, z2, z3, z4, z5, rest @ ..] = *bytes;
        let zero = [z0, z1, z2, z3, z4, z5] == [0; 6];
        if [m0, m1, m2, m3] != MAGIC || version != VERSION || !zero {
            return None;
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&rest[at..at + 8]);
            u64::from_be_bytes(word)
        };
        let function = u32::from_be_bytes([f0, f1, f2, f3]);
        Some(Self { function, key, epoch: word(0), nonce: word(8), tag: word(16) })
    }
}
