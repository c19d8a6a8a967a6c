//! A knock's forty bytes: what goes in comes out, and nothing else passes.

use headstart_ebpf::auth::{Carrier, Key, TagClaim};
use headstart_ebpf::knock::{Knock, LEN, MAGIC, VERSION};
use proptest::prelude::*;

const KEY: Key = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

fn knock() -> Knock {
    Knock::new(KEY, 5, 0x0102_0304_0506_0708, 0x1112_1314, 0x2122_2324_2526_2728)
}

fn verifies(knock: &Knock) -> bool {
    knock.key == 5 && knock.claim().tag(KEY) == knock.tag
}

#[test]
fn the_bytes_stand_where_the_format_says() {
    let bytes = knock().encode();
    assert_eq!(bytes[..16], [b'H', b'S', b'K', b'N', 1, 5, 0, 0, 0x11, 0x12, 0x13, 0x14, 0, 0, 0, 0]);
    assert_eq!(bytes[16..24], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(bytes[24..32], [0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28]);
    assert_eq!(bytes[32..], knock().tag.to_be_bytes());
}

#[test]
fn the_tag_covers_all_that_a_knock_says() {
    let expected = TagClaim {
        epoch: 0x0102_0304_0506_0708,
        function: 0x1112_1314,
        port: 0,
        key: 5,
        on: Carrier::Knock,
        unique: 0x2122_2324_2526_2728,
    };
    assert_eq!(knock().claim(), expected);
    assert_eq!(knock().tag, expected.tag(KEY));
}

#[test]
fn a_flip_of_any_bit_makes_it_foreign_or_void() {
    let sent = knock().encode();
    assert!(verifies(&Knock::decode(&sent).expect("a knock")));
    for at in 0..LEN {
        for bit in 0..8 {
            let mut bytes = sent;
            bytes[at] ^= 1 << bit;
            let read = Knock::decode(&bytes);
            let fixed = at < 5 || [6, 7, 12, 13, 14, 15].contains(&at);
            assert_eq!(read.is_none(), fixed, "byte {at}, bit {bit}");
            assert!(!read.is_some_and(|read| verifies(&read)), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_tag_of_a_knock_is_no_tag_of_a_syn() {
    let claim = knock().claim();
    assert_ne!(TagClaim { on: Carrier::Syn, ..claim }.tag(KEY), knock().tag);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn what_is_encoded_is_decoded(function: u32, key: u8, epoch: u64, nonce: u64, tag: u64) {
        let knock = Knock { function, key, epoch, nonce, tag };
        prop_assert_eq!(Knock::decode(&knock.encode()), Some(knock));
    }

    #[test]
    fn noise_is_either_foreign_or_read_exactly(noise: [u8; 32], more: [u8; 8], ours: bool) {
        let mut bytes = [0; LEN];
        bytes[..32].copy_from_slice(&noise);
        bytes[32..].copy_from_slice(&more);
        if ours {
            bytes[..5].copy_from_slice(&[MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], VERSION]);
            bytes[6..8].fill(0);
            bytes[12..16].fill(0);
        }
        match Knock::decode(&bytes) {
            Some(knock) => prop_assert_eq!(knock.encode(), bytes),
            None => prop_assert!(!ours),
        }
    }
}
