//! Frames that are almost right: a row of a table with a few bytes changed, cut, or moved.

use proptest::prelude::*;

use crate::{proofs, rows};

/// Longest base frame in bytes; longer rows are tested as they are.
const BASE_MAX: usize = 300;
/// Bytes that mean something somewhere: protocol numbers, versions, type bytes, extremes.
const TELLING: [u8; 20] =
    [0, 1, 2, 4, 5, 6, 0x08, 0x11, 0x12, 43, 44, 0x45, 0x4f, 60, 0x60, 0x81, 0x86, 0x88, 0xdd, 0xff];

#[derive(Clone, Debug)]
enum Change {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), prop::sample::select(TELLING.to_vec())).prop_map(|(at, byte)| Change::Set(at, byte)),
        2 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        4 => (at(), 0..8_u32).prop_map(|(at, bit)| Change::Flip(at, 1 << bit)),
        1 => at().prop_map(Change::Cut),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        1 => at().prop_map(Change::Remove),
    ]
}

fn apply(frame: &mut Vec<u8>, change: &Change) {
    if frame.is_empty() {
        return;
    }
    let len = frame.len();
    match *change {
        Change::Set(at, byte) => frame[at.index(len)] = byte,
        Change::Flip(at, bit) => frame[at.index(len)] ^= bit,
        Change::Cut(at) => frame.truncate(at.index(len)),
        Change::Insert(at, byte) => frame.insert(at.index(len), byte),
        Change::Remove(at) => drop(frame.remove(at.index(len))),
    }
}

/// A table row with up to three changes.
pub fn frames() -> impl Strategy<Value = Vec<u8>> {
    let bases: Vec<Vec<u8>> = rows::all()
        .into_iter()
        .map(|row| row.frame)
        .chain(proofs::all().into_iter().map(|proof| proof.frame))
        .filter(|frame| (14..BASE_MAX).contains(&frame.len()))
        .collect();
    (prop::sample::select(bases), proptest::collection::vec(change(), 0..=3)).prop_map(
        |(mut frame, changes)| {
            for change in &changes {
                apply(&mut frame, change);
            }
            frame
        },
    )
}
