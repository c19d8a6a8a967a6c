//! What the program costs per packet: `cargo bench -p headstart-ebpf` (root).
//!
//! The kernel repeats one frame (`BPF_PROG_TEST_RUN`) and reports the mean; its own loop, some 10-30 ns, is
//! included. The best of several rounds is printed, as everything else on the machine only adds.

#[path = "../tests/common"]
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
mod common {
    pub(crate) mod frames;
    pub(crate) mod kernel;
}

use aya::programs::TestRunOptions;
use common::frames::*;
use common::kernel::Kernel;
use headstart_ebpf::event::{FUNCTION_WARM, PortKey};

/// Fits into the empty ring.
const REPEAT_EVENTS: u32 = 4_000;
const REPEAT: u32 = 1_000_000;
const ROUNDS: u32 = 7;

/// Name, frame, how often, and the flags of the function that owns the port, if any.
type Case = (&'static str, Vec<u8>, u32, Option<u32>);

fn cases() -> Vec<Case> {
    let tagged_syn = tagged(&[(0x88a8, 1), (0x8100, 1)], IPV4, &ipv4(TCP, &[], &tcp(ACK, &[], &[])));
    let options = (DESTINATION, extension(0, 1));
    let five =
        vec![(HOP_BY_HOP, extension(0, 0)), options.clone(), options.clone(), options.clone(), options];
    vec![
        ("UDP", with(tcp_v4(ACK, &[], &[]), V4_AT + 9, &[17]), REPEAT, None),
        ("ACK, IPv4", tcp_v4(ACK, &[], &[]), REPEAT, None),
        ("ACK, IPv4, two tags", tagged_syn, REPEAT, None),
        ("ACK, IPv6", tcp_v6(ACK), REPEAT, None),
        ("SYN, IPv4, unowned", tcp_v4(SYN, &[], &[]), REPEAT, None),
        ("SYN, IPv6, unowned", tcp_v6(SYN), REPEAT, None),
        ("SYN, IPv6, five extension headers, unowned", chained_v6(&five), REPEAT, None),
        ("SYN, IPv4, warm", tcp_v4(SYN, &[], &[]), REPEAT, Some(FUNCTION_WARM)),
        ("SYN, IPv4, cold, to the ring", tcp_v4(SYN, &[], &[]), REPEAT_EVENTS, Some(0)),
        ("SYN, IPv6, cold, to the ring", tcp_v6(SYN), REPEAT_EVENTS, Some(0)),
    ]
}

fn main() {
    let Some(mut kernel) = Kernel::open() else { return };
    for (name, frame, repeat, flags) in cases() {
        // Somebody always listens somewhere: an empty map would be cheaper to search.
        kernel.own(PortKey::any(PORT + 1), 1, 0);
        if let Some(flags) = flags {
            kernel.own(PortKey::any(PORT), 1, flags);
        }
        let best_ns = (0..ROUNDS)
            .map(|_| {
                let options = TestRunOptions { data_in: Some(&frame), repeat, ..TestRunOptions::default() };
                kernel.run_with(options).expect("the program runs").mean_ns
            })
            .min();
        println!("{:>5} ns  {name}", best_ns.unwrap_or_default());
    }
}
