//! The sketch never undercounts, seldom overcounts, and forgets.

use std::collections::HashSet;

use headstart_ebpf::sketch::{CELLS, Sketch, WINDOW_SHIFT, mix};

const WINDOW_NS: u64 = 1 << WINDOW_SHIFT;
const SEED: u64 = 0x5eed;

#[test]
fn a_source_has_its_limit_in_every_window() {
    let mut sketch = Sketch::default();
    for window in 1..4 {
        for limit in [1, 5] {
            let source = mix(u64::from(limit), SEED);
            let passed =
                (0..100).filter(|tick| sketch.pass(source, window * WINDOW_NS + tick, limit)).count();
            assert_eq!(passed, limit as usize);
        }
    }
}

#[test]
fn no_source_ever_has_more_than_its_limit() {
    let mut sketch = Sketch::default();
    for source in 0..10_000 {
        let passed = (0..10).filter(|_| sketch.pass(mix(source, SEED), WINDOW_NS, 3)).count();
        assert!(passed <= 3, "source {source} passed {passed} times");
    }
}

#[test]
fn a_hundred_sources_at_a_time_do_not_get_into_each_others_way() {
    let mut sketch = Sketch::default();
    for _ in 0..5 {
        for source in 0..100 {
            assert!(sketch.pass(mix(source, SEED), WINDOW_NS, 5), "source {source}");
        }
    }
}

#[test]
fn a_flood_from_everywhere_is_bounded_by_the_cells() {
    let mut sketch = Sketch::default();
    let passed = (0..1_000_000).filter(|source| sketch.pass(mix(*source, SEED), WINDOW_NS, 20)).count();
    assert!((20 * CELLS..=2 * 20 * CELLS).contains(&passed), "{passed} passed");
    assert!(!sketch.pass(mix(u64::MAX, SEED), WINDOW_NS, 20), "and leaves no room for anybody else");
    assert!(sketch.pass(mix(u64::MAX, SEED), 2 * WINDOW_NS, 20), "until the next window");
}

#[test]
fn a_limit_beyond_what_a_cell_holds_is_that() {
    let mut sketch = Sketch::default();
    let passed = (0..70_000).filter(|_| sketch.pass(mix(1, SEED), WINDOW_NS, u32::MAX)).count();
    assert_eq!(passed, 0xffff);
}

#[test]
fn neighbours_are_spread_and_the_seed_decides_where() {
    let cells = |seed| -> HashSet<usize> { (0..1_000).map(|n| mix(n, seed) as usize % CELLS).collect() };
    assert!(cells(SEED).len() > 550, "{} cells for 1,000 neighbours", cells(SEED).len());
    assert!((0..100).any(|n| mix(n, 1) % 1_024 != mix(n, 2) % 1_024));
}
