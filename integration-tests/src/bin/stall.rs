//! `make bench`, its part about functions that keep the agent busy: what neighbours notice while one does.
//!
//! One function misbehaves, in one of `stall::MODES`. Meanwhile the admin address is asked for `/healthz`, a neighbour that
//! is frozen is woken by a client, and another one is started cold by a client. Blocks of each mode, and of none (`rest`),
//! take turns in a random order.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use headstart_integration_tests::evidence::bench::{self, Run};
use headstart_integration_tests::lab::stall::{MODES, StalledNode};

const FIGURE: &str = "stall_ms";
const REST: &str = "rest";
/// Blocks of each mode, after one that warms caches, and rounds of a block.
const BLOCKS: usize = 10;
const QUICK_BLOCKS: usize = 2;
const ROUNDS: usize = 20;
const QUICK_ROUNDS: usize = 15;

fn main() -> ExitCode {
    bench::main("stall", measure)
}

fn measure(run: &mut Run) -> Result<()> {
    let node = StalledNode::new()?;
    let kinds: Vec<Option<&str>> = std::iter::once(None).chain(MODES.map(|(mode, _)| Some(mode))).collect();
    let (blocks, rounds) = (run.many(BLOCKS, QUICK_BLOCKS), run.many(ROUNDS, QUICK_ROUNDS));
    run.expect((1 + blocks) * kinds.len());
    for block in 0..=blocks {
        for kind in run.order(kinds.len()) {
            let mode = kinds[kind].unwrap_or(REST);
            run.step(&format!("{rounds} rounds beside: {mode}"))?;
            for waits in node.block(kinds[kind], rounds)? {
                // The first warms caches.
                if block == 0 {
                    continue;
                }
                for (of, wait) in [("healthz", waits.healthz), ("cold", waits.cold), ("wake", waits.wake)] {
                    run.samples.add(FIGURE, &[("mode", mode), ("of", of)], "ms", wait.as_secs_f64() * 1e3);
                }
            }
        }
    }
    for (mode, _) in MODES {
        for of in ["healthz", "cold", "wake"] {
            let labels = [("mode", mode), ("of", of)];
            let rest = [("mode", REST), ("of", of)];
            run.samples.derive_ratio("stall_p99_ratio", &labels, 99.0, (FIGURE, &labels), (FIGURE, &rest));
        }
    }
    ensure!(node.agent.stop()?.success());
    Ok(())
}
