//! Tags: the hash is SipHash-2-4, and every part of a claim counts.

use std::hash::Hasher as _;

use headstart_ebpf::auth::{Carrier, EPOCH_SECONDS, Key, TagClaim, epoch, recent_epoch, siphash24};
use proptest::prelude::*;

const KEY: Key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

const CLAIM: TagClaim =
    TagClaim { epoch: 59_000_000, function: 7, port: 8081, key: 1, on: Carrier::Syn, unique: 0xdead_beef };

/// The standard library's SipHash-2-4 of the same 24 bytes.
fn reference(key: Key, words: [u64; 3]) -> u64 {
    #[expect(deprecated, reason = "the only SipHash-2-4 that the standard library names")]
    let mut hasher = std::hash::SipHasher::new_with_keys(key[0], key[1]);
    for word in words {
        hasher.write(&word.to_le_bytes());
    }
    hasher.finish()
}

#[test]
fn the_vector_of_the_reference_implementation_comes_out() {
    // vectors.h of github.com/veorq/SipHash: key 00..0f, input 00..17, output number 24.
    let words = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, 0x1716_1514_1312_1110];
    let expected = u64::from_le_bytes([0x94, 0xaf, 0x49, 0xf6, 0xc6, 0x50, 0xad, 0xb8]);
    assert_eq!(siphash24(KEY, words), expected);
    assert_eq!(reference(KEY, words), expected);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn the_hash_is_the_standard_librarys(key: [u64; 2], words: [u64; 3]) {
        prop_assert_eq!(siphash24(key, words), reference(key, words));
    }
}

#[test]
fn a_claim_is_hashed_as_three_words() {
    // Fixed here because clients and nodes of different versions must agree on it.
    let what = 7 | 8081 << 32 | 1 << 48 | 1 << 56;
    assert_eq!(CLAIM.tag(KEY), reference(KEY, [59_000_000, what, 0xdead_beef]));
    let knock = TagClaim { on: Carrier::Knock, port: 0, key: 15, unique: u64::MAX, ..CLAIM };
    assert_eq!(knock.tag(KEY), reference(KEY, [59_000_000, 7 | 15 << 48 | 2 << 56, u64::MAX]));
}

#[test]
fn every_bit_of_a_claim_and_of_the_key_changes_the_tag() {
    let mut tags = vec![CLAIM.tag(KEY), TagClaim { on: Carrier::Knock, ..CLAIM }.tag(KEY)];
    for bit in 0..64 {
        tags.push(TagClaim { epoch: CLAIM.epoch ^ 1 << bit, ..CLAIM }.tag(KEY));
        tags.push(TagClaim { unique: CLAIM.unique ^ 1 << bit, ..CLAIM }.tag(KEY));
        tags.push(CLAIM.tag([KEY[0] ^ 1 << bit, KEY[1]]));
        tags.push(CLAIM.tag([KEY[0], KEY[1] ^ 1 << bit]));
    }
    for bit in 0..32 {
        tags.push(TagClaim { function: CLAIM.function ^ 1 << bit, ..CLAIM }.tag(KEY));
    }
    for bit in 0..16 {
        tags.push(TagClaim { port: CLAIM.port ^ 1 << bit, ..CLAIM }.tag(KEY));
    }
    for bit in 0..4 {
        tags.push(TagClaim { key: CLAIM.key ^ 1 << bit, ..CLAIM }.tag(KEY));
    }
    let made = tags.len();
    tags.sort_unstable();
    tags.dedup();
    assert_eq!(tags.len(), made);
}

#[test]
fn epochs_change_every_thirty_seconds() {
    assert_eq!(EPOCH_SECONDS, 30);
    assert_eq!([0, 29, 30, 59, 60].map(epoch), [0, 0, 1, 1, 2]);
    assert_eq!(epoch(u64::MAX), u64::MAX / 30);
}

#[test]
fn the_last_the_current_and_the_next_epoch_are_accepted_and_no_other() {
    // Far from, at and across a wrap of the lowest byte.
    for now in [1, 0x7f, 0xff, 0x100, 0x101, 59_000_000, 0x1_0000_0000, u64::MAX - 1] {
        for low in 0..=u8::MAX {
            let expected = [now - 1, now, now + 1].into_iter().find(|epoch| *epoch as u8 == low);
            assert_eq!(recent_epoch(now, low), expected, "{low:#x} at {now:#x}");
        }
    }
}

#[test]
fn the_first_and_the_last_epoch_have_neighbours_too() {
    assert_eq!(recent_epoch(0, 0xff), Some(u64::MAX));
    assert_eq!(recent_epoch(0, 1), Some(1));
    assert_eq!(recent_epoch(u64::MAX, 0), Some(0));
    assert_eq!(recent_epoch(u64::MAX, 0xfe), Some(u64::MAX - 1));
    assert_eq!(recent_epoch(u64::MAX, 1), None);
}

#[test]
fn a_tag_does_not_come_back_when_the_lowest_byte_of_the_epoch_does() {
    let later = TagClaim { epoch: CLAIM.epoch + 256, ..CLAIM };
    assert_eq!(later.epoch as u8, CLAIM.epoch as u8);
    assert_ne!(later.tag(KEY), CLAIM.tag(KEY));
}
