//! A million packets on each hook: the kernel does with every one what the library says it must.
//! `cargo bench -p headstart-ebpf --bench agreement` (root); `HEADSTART_FRAMES` sets another number.

#[path = "../tests/common"]
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
mod common {
    pub(crate) mod agreement;
    pub(crate) mod frames;
    pub(crate) mod kernel;
    pub(crate) mod model;
    pub(crate) mod mutate;
    pub(crate) mod proofs;
    pub(crate) mod rows;
}

use common::kernel::Hook;

const FRAMES: u32 = 1_000_000;

fn main() {
    let frames = match std::env::var("HEADSTART_FRAMES") {
        Ok(number) => number.parse().expect("HEADSTART_FRAMES is a number"),
        Err(_) => FRAMES,
    };
    // Another thousand rows than last time: what fails prints its frame.
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    for hook in Hook::ALL {
        common::agreement::compare(hook, frames, seed);
    }
}
