//! Every row of the table, and mutants of them.

use std::collections::HashSet;

use aya::programs::TestRunOptions;
use headstart_ebpf::maps::PortKey;
use headstart_ebpf::packet::parse;

use super::FUNCTION;
use headstart_ebpf_test_support::frames::*;
use headstart_ebpf_test_support::kernel::{FRAME_MIN, Hook, Kernel, untimed};
use headstart_ebpf_test_support::model::Model;
use headstart_ebpf_test_support::proofs::*;
use headstart_ebpf_test_support::rows;

#[test]
fn every_row_passes_and_does_what_the_table_says() {
    let Some(mut kernel) = Kernel::open() else { return };
    let mut model = Model::default();
    model.own(&mut kernel, PortKey::any(PORT), FUNCTION, 0);
    model.own(&mut kernel, PortKey::any(65_535), FUNCTION, 0);
    for hook in Hook::ALL {
        let mut run = 0;
        for row in rows::all() {
            if !hook.takes(&row.frame) {
                continue;
            }
            assert_eq!(parse(row.frame.as_slice()), row.expect, "{}", row.name);
            assert_eq!(
                untimed(kernel.run(hook, &row.frame)),
                model.run(&row.frame),
                "{hook:?}: {}",
                row.name
            );
            run += 1;
        }
        println!("{hook:?}: {run} rows of {}", rows::all().len());
    }
}

/// Headers split over two buffers, at any byte, are read all the same: of SYNs with and without a tag, and of
/// knocks.
#[test]
fn split_headers_are_read() {
    let Some(mut kernel) = Kernel::open() else { return };
    let mut model = Model::of_every_kind(&mut kernel);
    let chained = chained_v6(&[(HOP_BY_HOP, extension(0, 0)), (DESTINATION, extension(0, 1))]);
    let mut outcomes = HashSet::new();
    for first_buffer in FRAME_MIN..100 {
        let number = first_buffer as u32;
        for frame in [
            tcp_v4(SYN, &[], &[b'x'; 1_000]),
            tagged(&[(0x88a8, 1), (0x8100, 1)], IPV4, &ipv4(TCP, &[1; 8], &tcp(SYN, &[1; 8], b"data"))),
            chained.clone(),
            tagged_syn(CONNECT, number, KEY, 1, EPOCH, CLOSED),
            tagged_syn(CONNECT, number, WRONG_KEY, 1, EPOCH, CLOSED),
            knock(KEY, EPOCH, GUEST, u64::from(number)),
        ] {
            if first_buffer >= frame.len() {
                continue;
            }
            // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
            let context: Vec<u8> =
                [0, number, 0, 0, 0, 0].iter().flat_map(|field| field.to_ne_bytes()).collect();
            let options =
                TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::default() };
            match kernel.run_with(Hook::Xdp, options) {
                Ok(run) => {
                    outcomes.insert(run.counted);
                    assert_eq!(untimed(run), model.run(&frame), "{frame:02x?} split at {first_buffer}");
                }
                Err(error) => {
                    println!("SKIPPED: this kernel (before 6.18) cannot split test frames ({error})");
                    return;
                }
            }
        }
    }
    assert_eq!(outcomes.len(), 4, "an event, an authenticated one, a refusal, a knock");
}

/// A program must stay far from what the verifier gives up at (1,000,000), also as older kernels count.
#[test]
fn the_verifier_is_not_strained() {
    const INSTRUCTIONS_MAX: u32 = 150_000;
    let Some(kernel) = Kernel::open() else { return };
    for (name, program) in kernel.ebpf.programs() {
        let verified = program.info().unwrap().verified_instruction_count().unwrap_or(0);
        println!("{name}: {verified} instructions verified");
        assert!(verified < INSTRUCTIONS_MAX, "{name}: {verified} instructions verified");
    }
}
