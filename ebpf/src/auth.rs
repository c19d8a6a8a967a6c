//! Tags: each proves in one packet that its sender knows a key.
//!
//! A tag is SipHash-2-4 (Aumasson and Bernstein, 2012) over 24 bytes: the requested function, the
//! time, and a number that only this request has. Keys have numbers from 1 to 15, so that a node can know a new
//! key before it forgets the old one. Time is counted in epochs of 30 seconds; a node accepts the last epoch, the
//! current one and the next one.

/// Length of an epoch in seconds.
pub const EPOCH_SECONDS: u64 = 30;

/// A 128-bit key as two little-endian words, as SipHash takes it.
pub type Key = [u64; 2];

/// What a tag covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagClaim {
    /// The whole epoch. A SYN carries only its lowest byte, so a tag of two hours ago is still wrong.
    pub epoch: u64,
    /// The function's ID; 0 for the port's default function.
    pub function: u32,
    /// The destination port of a SYN; 0 for a knock.
    pub port: u16,
    /// The key's number, 1 to 15.
    pub key: u8,
    /// The kind of packet: a tag of a SYN is not valid in a knock.
    pub on: Carrier,
    /// The initial sequence number of a SYN, or the nonce of a knock. Two requests have two tags, so a tag that
    /// arrives twice is a retransmission or a replay.
    pub unique: u64,
}

/// The kind of packet that carries a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Carrier {
    /// The TCP option of a SYN, [`crate::option`].
    Syn = 1,
    /// A UDP packet, [`crate::knock`].
    Knock = 2,
}

impl TagClaim {
    /// The tag of this claim under `key`.
    #[inline(always)]
    pub fn tag(&self, key: Key) -> u64 {
        let what = u64::from(self.function)
            | u64::from(self.port) << 32
            | u64::from(self.key) << 48
            | (self.on as u64) << 56;
        siphash24(key, [self.epoch, what, self.unique])
    }
}

/// The epoch at a Unix time in seconds.
pub const fn epoch(unix_seconds: u64) -> u64 {
    unix_seconds / EPOCH_SECONDS
}

/// The epoch nearest to `now` whose lowest byte is `low`; `None` when it is none of the three accepted epochs.
#[inline(always)]
pub fn recent_epoch(now: u64, low: u8) -> Option<u64> {
    // -1, 0 or 1 as a byte.
    let ahead = low.wrapping_sub(now as u8);
    match ahead {
        0 => Some(now),
        1 => Some(now.wrapping_add(1)),
        0xff => Some(now.wrapping_sub(1)),
        _ => None,
    }
}

/// SipHash-2-4 of 24 bytes, given as little-endian words.
#[inline(always)]
pub fn siphash24(key: Key, words: [u64; 3]) -> u64 {
    let mut state = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    // The last block holds the length in its highest byte.
    for word in [words[0], words[1], words[2], 24 << 56] {
        state[3] ^= word;
        round(&mut state);
        round(&mut state);
        state[0] ^= word;
    }
    state[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}
