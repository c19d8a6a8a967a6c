//! The option's sixteen bytes: what goes in comes out, and nothing else passes.

use headstart_ebpf::auth::{Carrier, Key, TagClaim, recent_epoch};
use headstart_ebpf::option::{EXID, FunctionOption, KIND, LEN, TAG_LEN, VERSION, claim, shorten};
use proptest::prelude::*;

const KEY: Key = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
const EPOCH: u64 = 0x1234_56ff;
const FUNCTION: u32 = 0x0102_0304;
const PORT: u16 = 8081;
const ISN: u32 = 0xdead_beef;

fn tagged() -> FunctionOption {
    FunctionOption::tagged(KEY, 5, EPOCH, FUNCTION, PORT, ISN)
}

/// As a node verifies: the key's number, the epoch, the tag.
fn verifies(option: &FunctionOption, now: u64, port: u16, isn: u32) -> bool {
    option.key == 5
        && recent_epoch(now, option.epoch).is_some_and(|epoch| {
            shorten(claim(option.key, epoch, option.function, port, isn).tag(KEY)) == option.tag
        })
}

#[test]
fn the_bytes_stand_where_the_format_says() {
    let bytes = tagged().encode();
    assert_eq!(bytes[..10], [253, 16, b'H', b'S', 0x15, 0xff, 1, 2, 3, 4]);
    assert_eq!(bytes[10..], claim(5, EPOCH, FUNCTION, PORT, ISN).tag(KEY).to_le_bytes()[..TAG_LEN]);
    assert_eq!(
        FunctionOption::open(FUNCTION).encode(),
        [KIND, LEN as u8, EXID[0], EXID[1], VERSION << 4, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn the_tag_covers_what_the_claim_says() {
    let expected = TagClaim {
        epoch: EPOCH,
        function: FUNCTION,
        port: PORT,
        key: 5,
        on: Carrier::Syn,
        unique: ISN.into(),
    };
    assert_eq!(claim(5, EPOCH, FUNCTION, PORT, ISN), expected);
}

#[test]
fn a_tag_verifies_within_one_epoch_and_for_its_own_syn_only() {
    let option = FunctionOption::decode(&tagged().encode()).expect("ours");
    for (now, expected) in [(-2, false), (-1, true), (0, true), (1, true), (2, false), (256, false)] {
        assert_eq!(verifies(&option, EPOCH.wrapping_add_signed(now), PORT, ISN), expected, "{now}");
    }
    assert!(!verifies(&option, EPOCH, PORT + 1, ISN));
    assert!(!verifies(&option, EPOCH, PORT, ISN + 1));
}

#[test]
fn a_flip_of_any_bit_makes_it_foreign_or_void() {
    let sent = tagged().encode();
    for at in 0..LEN {
        for bit in 0..8 {
            let mut bytes = sent;
            bytes[at] ^= 1 << bit;
            let read = FunctionOption::decode(&bytes);
            let header = at < 4 || at == 4 && bit >= 4;
            assert_eq!(read.is_none(), header, "byte {at}, bit {bit}");
            if let Some(read) = read {
                assert_ne!(read, tagged(), "byte {at}, bit {bit}");
                assert_eq!(read.encode(), bytes, "byte {at}, bit {bit}");
                assert!(!verifies(&read, EPOCH, PORT, ISN), "byte {at}, bit {bit}");
            }
        }
    }
}

#[test]
fn a_key_number_keeps_to_its_four_bits() {
    for number in 0..=u8::MAX {
        let option = FunctionOption { key: number, ..FunctionOption::open(1) };
        assert_eq!(option.encode()[4], VERSION << 4 | number & 0x0f);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn what_is_encoded_is_decoded(
        function: u32, key in 0_u8..16, epoch: u8, tag: [u8; TAG_LEN],
    ) {
        let option = FunctionOption { function, key, epoch, tag };
        prop_assert_eq!(FunctionOption::decode(&option.encode()), Some(option));
    }

    #[test]
    fn noise_is_either_foreign_or_read_exactly(noise: [u8; LEN], ours: bool) {
        let mut bytes = noise;
        if ours {
            bytes[..4].copy_from_slice(&[KIND, LEN as u8, EXID[0], EXID[1]]);
        }
        match FunctionOption::decode(&bytes) {
            Some(option) => prop_assert_eq!(option.encode(), bytes),
            None => prop_assert!(
                bytes[..4] != [KIND, LEN as u8, EXID[0], EXID[1]] || bytes[4] >> 4 != VERSION
            ),
        }
    }
}
