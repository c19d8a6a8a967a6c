//! Tags serve one connection each, for as long as they are accepted.

use std::cell::Cell;

use headstart_ebpf::auth::siphash24;
use headstart_ebpf::maps::PacketFlow;
use headstart_ebpf::packet::IpWords;
use headstart_ebpf::replay::{ReplaySet, SETS, TagUse, owner, set_of};

const NOW: u64 = 1_000;

fn exchange(word: &Cell<u64>, before: u64, after: u64) -> bool {
    word.replace(after) == before
}

fn claim(set: &ReplaySet, tag: u64, owner: u64, now: u64) -> TagUse {
    set.claim(tag, owner, now, exchange)
}

fn flow() -> PacketFlow {
    let words = |last| IpWords::from_v4([192, 0, 2, last]);
    PacketFlow { src: words(1), dst: words(2), src_port: 40_000, dst_port: 8_081, pad: 0 }
}

#[test]
fn only_the_first_connection_may_come_again() {
    let set = ReplaySet::default();
    let (one, two) = (owner(&flow(), NOW, 1), owner(&PacketFlow { src_port: 40_001, ..flow() }, NOW, 1));
    assert_eq!(claim(&set, 7, one, NOW), TagUse::First);
    assert_eq!(claim(&set, 7, one, NOW), TagUse::Again);
    assert_eq!(claim(&set, 7, two, NOW), TagUse::Replayed);
    assert_eq!(claim(&set, 7, one, NOW + 1), TagUse::Again);
    assert_eq!(claim(&set, 8, two, NOW), TagUse::First);
}

#[test]
fn four_tags_of_a_set_are_remembered_and_dead_ones_make_room() {
    let set = ReplaySet::default();
    let owner = owner(&flow(), NOW, 1);
    let uses = |now| (1..=4_u64).map(|tag| claim(&set, tag << 32, owner, now)).collect::<Vec<_>>();
    assert_eq!(uses(NOW), [TagUse::First; 4]);
    assert_eq!(uses(NOW + 1), [TagUse::Again; 4], "accepted for one more epoch");
    // A fifth takes the place of one of them, and of one only.
    assert_eq!(claim(&set, 5 << 32, owner, NOW), TagUse::First);
    assert_eq!(claim(&set, 5 << 32, owner + (1 << 8), NOW), TagUse::Replayed);
    let forgotten =
        (1..=4_u64).filter(|tag| claim(&set, tag << 32, owner + (1 << 8), NOW) != TagUse::Replayed);
    assert_eq!(forgotten.count(), 1);
    // Two epochs on, all are dead: four new ones find room, and are remembered.
    let later = |flow: &PacketFlow| headstart_ebpf::replay::owner(flow, NOW + 2, 1);
    for tag in 11..=14_u64 {
        assert_eq!(claim(&set, tag << 32, later(&flow()), NOW + 2), TagUse::First);
    }
    for tag in 11..=14_u64 {
        assert_eq!(claim(&set, tag << 32, later(&flow()), NOW + 2), TagUse::Again);
    }
}

#[test]
fn the_slower_of_two_cpus_is_too_late() {
    let set = ReplaySet::default();
    let lost = set.claim(7, owner(&flow(), NOW, 1), NOW, |_, _, _| false);
    assert_eq!(lost, TagUse::Replayed);
    // The faster one has written the tag, and not yet whose it is.
    let between = |word: &Cell<u64>, before, after| {
        exchange(word, before, after);
        assert_eq!(claim(&set, 9, owner(&flow(), NOW, 2), NOW), TagUse::Replayed);
        true
    };
    assert_eq!(set.claim(9, owner(&flow(), NOW, 1), NOW, between), TagUse::First);
}

#[test]
fn owners_differ_in_every_part_of_a_connection_and_with_the_seed() {
    let base = flow();
    let other = IpWords::from_v4([192, 0, 2, 9]);
    let v6 = IpWords::from([0x20; 16]);
    let flows = [
        base,
        PacketFlow { src: other, ..base },
        PacketFlow { src: v6, ..base },
        PacketFlow { dst: other, ..base },
        PacketFlow { src: base.dst, dst: base.src, ..base },
        PacketFlow { src_port: 1, ..base },
        PacketFlow { dst_port: 1, ..base },
        PacketFlow { src_port: base.dst_port, dst_port: base.src_port, ..base },
    ];
    let owners: std::collections::HashSet<u64> = flows.iter().map(|flow| owner(flow, NOW, 1)).collect();
    assert_eq!(owners.len(), flows.len());
    assert_ne!(owner(&base, NOW, 1), owner(&base, NOW, 2));
    assert_eq!(owner(&base, NOW, 1) & 0xff, NOW & 0xff);
}

/// How many tags of ten thousand clients in 90 seconds are forgotten too early.
#[test]
fn ten_thousand_live_tags_are_remembered_almost_all() {
    let sets: Vec<ReplaySet> = (0..SETS).map(|_| ReplaySet::default()).collect();
    let owner = owner(&flow(), NOW, 1);
    let tags: Vec<u64> = (0..10_000).map(|client| siphash24([1, 2], [client, 0, 0])).collect();
    for tag in &tags {
        assert_eq!(claim(&sets[set_of(*tag) as usize], *tag, owner, NOW), TagUse::First);
    }
    let forgotten =
        tags.iter().filter(|tag| claim(&sets[set_of(**tag) as usize], **tag, owner, NOW) == TagUse::First);
    let count = forgotten.count();
    assert!(count < 20, "{count} of 10,000 tags were forgotten");
}
