//! Host and kernel on the same noise.

use headstart_ebpf::event::Stat;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::kernel::{Hook, Kernel, Run, untimed};
use crate::model::Model;
use crate::mutate;

/// Runs `frames` mutants on a node with every kind of function: each must do what the model says, and none is
/// dropped but what an operator closed, and knocks.
pub fn compare(hook: Hook, frames: u32, seed: u64) {
    let Some(mut kernel) = Kernel::open() else { return };
    let mut model = Model::of_every_kind(&mut kernel);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_ne_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = mutate::frames();
    let (mut compared, mut dropped, mut open, mut authenticated) = (0, 0, 0, 0);
    while compared < frames {
        let frame = strategy.new_tree(&mut runner).expect("frames are not filtered").current();
        if !hook.takes(&frame) {
            continue;
        }
        let run = untimed(kernel.run(hook, &frame));
        assert_eq!(run, model.run(&frame), "{hook:?}: {frame:02x?}");
        assert_eq!(run.dropped, is_asked_for(&run), "{hook:?}: {frame:02x?}");
        compared += 1;
        dropped += u32::from(run.dropped);
        open += run.open.len() as u32;
        authenticated += run.authenticated.len() as u32;
    }
    println!(
        "{hook:?}: {compared} frames, {dropped} dropped, {open} open, {authenticated} authenticated events"
    );
    let telling = dropped > frames / 50 && open > frames / 50 && authenticated > frames / 500;
    assert!(telling, "says little about frames that matter");
}

/// Whether an operator asked for a packet of this outcome to be dropped.
fn is_asked_for(run: &Run) -> bool {
    [Stat::Refused, Stat::Knock, Stat::KnockReplayed].iter().any(|stat| run.counted[*stat as usize] == 1)
}
