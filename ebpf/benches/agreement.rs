//! Compares kernel and library on a million packets for each hook: both must say the same.
//! `cargo bench -p headstart-ebpf --bench agreement` (root); `HEADSTART_FRAMES` sets another number.

use headstart_ebpf_test_support::kernel::Hook;

const FRAMES: u32 = 1_000_000;

fn main() {
    let frames = match std::env::var("HEADSTART_FRAMES") {
        Ok(number) => number.parse().expect("HEADSTART_FRAMES is a number"),
        Err(_) => FRAMES,
    };
    // A new seed for each run; a failure prints its frame.
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    for hook in Hook::ALL {
        headstart_ebpf_test_support::agreement::compare(hook, frames, seed);
    }
}
