//! The function ID in a SYN: a TCP option of the experimental kind 253 (RFC 4727) with an experiment
//! identifier (RFC 6994), exactly 16 bytes:
//!
//! ```text
//! kind  length  ExID   version, key  epoch   function ID    tag
//! 253   16      2      4 + 4 bits    1       4              6      bytes, network order
//! ```
//!
//! Sixteen bytes fit beside the options of a Linux SYN, and beside MPTCP. A SYN with a Fast Open cookie has no room,
//! and goes without the option. Without a key, the fields key, epoch and tag are zero.

use crate::auth::{Carrier, Key, TagClaim};

/// RFC 4727: experimental.
pub const KIND: u8 = 253;
/// Length of the whole option in bytes.
pub const LEN: usize = 16;
/// Our experiment (RFC 6994), "HS". It is not registered with IANA.
pub const EXID: [u8; 2] = *b"HS";
/// The version of this format.
pub const VERSION: u8 = 1;
/// Number of bytes of a tag that the option carries.
pub const TAG_LEN: usize = 6;

/// The option, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionOption {
    /// The function's ID; 0 for the port's default function.
    pub function: u32,
    /// The key's number, or 0 for an option without a tag.
    pub key: u8,
    /// The lowest byte of the epoch.
    pub epoch: u8,
    /// The first 48 bits of the tag.
    pub tag: [u8; TAG_LEN],
}

impl FunctionOption {
    /// An option that names a function and proves nothing.
    pub const fn open(function: u32) -> Self {
        Self { function, key: 0, epoch: 0, tag: [0; TAG_LEN] }
    }

    /// An option with a tag, for a SYN to `port` with sequence number `isn`.
    #[inline(always)]
    pub fn tagged(key: Key, number: u8, epoch: u64, function: u32, port: u16, isn: u32) -> Self {
        let tag = claim(number, epoch, function, port, isn).tag(key);
        Self { function, key: number & 0x0f, epoch: epoch as u8, tag: shorten(tag) }
    }

    /// The bytes on the wire.
    #[inline(always)]
    pub fn encode(&self) -> [u8; LEN] {
        let [f0, f1, f2, f3] = self.function.to_be_bytes();
        let [t0, t1, t2, t3, t4, t5] = self.tag;
        let version = VERSION << 4 | self.key & 0x0f;
        let [x0, x1] = EXID;
        [KIND, LEN as u8, x0, x1, version, self.epoch, f0, f1, f2, f3, t0, t1, t2, t3, t4, t5]
    }

    /// Reads the 16 bytes of an option; `None` when it is not this option.
    #[inline(always)]
    pub fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let [kind, len, x0, x1, version, epoch, f0, f1, f2, f3, tag @ ..] = *bytes;
        if kind != KIND || len != LEN as u8 || [x0, x1] != EXID || version >> 4 != VERSION {
            return None;
        }
        Some(Self { function: u32::from_be_bytes([f0, f1, f2, f3]), key: version & 0x0f, epoch, tag })
    }
}

/// What the tag of a SYN covers.
#[inline(always)]
pub fn claim(key: u8, epoch: u64, function: u32, port: u16, isn: u32) -> TagClaim {
    TagClaim { epoch, function, port, key, on: Carrier::Syn, unique: isn as u64 }
}

/// The part of a tag that the option carries.
#[inline(always)]
pub fn shorten(tag: u64) -> [u8; TAG_LEN] {
    let [a, b, c, d, e, f, ..] = tag.to_le_bytes();
    [a, b, c, d, e, f]
}
