//! For `benches/packet_cost.rs` only: changes a frame, then goes on to the program that is measured, so that
//! no two runs see the same frame. The same with `headstart_floor` to go on to is what to subtract. And a program to
//! compare others with.
//!
//! On any target but `bpf` this is an empty program, so that it can be linted.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "a packet is raw pointers")]

mod object;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS};
use aya_ebpf::btf_maps::{Array, HashMap, ProgramArray};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use headstart_ebpf::auth::Key;
use headstart_ebpf::knock::{self, Knock};
use headstart_ebpf::option::{FunctionOption, LEN};

/// Offsets in a frame without VLAN tags or IPv4 options.
const V4_SOURCE_AT: usize = 14 + 12;
const TCP_AT: usize = 14 + 20;
const SEQUENCE_AT: usize = TCP_AT + 4;
const OPTIONS_AT: usize = TCP_AT + 20;
const UDP_PAYLOAD_AT: usize = TCP_AT + 8;

/// What a tag is made of.
#[repr(C)]
struct Tag {
    key: Key,
    epoch: u64,
    function: u32,
    port: u32,
}

/// The program to go on to.
#[btf_map]
static NEXT: ProgramArray<1> = ProgramArray::new();

#[btf_map]
static TAG: Array<Tag, 1> = Array::new();

/// What `reference` looks into: when something was seen, by a key as long as those of functions.
#[btf_map]
static SEEN: HashMap<[u32; 6], u64, 1024> = HashMap::new();

/// What others are compared with, the least that a filter with a memory pays: a look at the clock, and one into a hash
/// table.
#[xdp(frags)]
fn reference(_ctx: XdpContext) -> u32 {
    // SAFETY: the helper has no preconditions, and nobody writes to the table while this runs.
    let (now, seen) = unsafe { (bpf_ktime_get_ns(), SEEN.get(&[1; 6])) };
    if seen.is_some_and(|at| *at < now) { XDP_PASS } else { XDP_ABORTED }
}

/// Another source.
#[xdp(frags)]
fn vary_source(ctx: XdpContext) -> u32 {
    let source = ctx.data() + V4_SOURCE_AT;
    if source + 4 > ctx.data_end() {
        return XDP_ABORTED;
    }
    // SAFETY: within the frame, and bytes have no alignment; the helper has no preconditions. The first octet
    // makes it an address that can be a client's.
    unsafe { *(source as *mut [u8; 4]) = (bpf_get_prandom_u32() & 0x1fff_ffff | 0x4000_0000).to_be_bytes() };
    go_on(&ctx)
}

/// Another sequence number, and a new tag for it.
#[xdp(frags)]
fn vary_tag(ctx: XdpContext) -> u32 {
    let (sequence, option) = (ctx.data() + SEQUENCE_AT, ctx.data() + OPTIONS_AT);
    let Some(tag) = TAG.get(0) else { return XDP_ABORTED };
    if option + LEN > ctx.data_end() {
        return XDP_ABORTED;
    }
    // SAFETY: within the frame, and bytes have no alignment; the helper has no preconditions.
    unsafe {
        let isn = bpf_get_prandom_u32();
        *(sequence as *mut [u8; 4]) = isn.to_be_bytes();
        let tagged = FunctionOption::tagged(tag.key, 1, tag.epoch, tag.function, tag.port as u16, isn);
        *(option as *mut [u8; LEN]) = tagged.encode();
    }
    go_on(&ctx)
}

/// Another nonce, and a new tag for it.
#[xdp(frags)]
fn vary_knock(ctx: XdpContext) -> u32 {
    let payload = ctx.data() + UDP_PAYLOAD_AT;
    let Some(tag) = TAG.get(0) else { return XDP_ABORTED };
    if payload + knock::LEN > ctx.data_end() {
        return XDP_ABORTED;
    }
    // SAFETY: within the frame, and bytes have no alignment; the helper has no preconditions.
    unsafe {
        let nonce = u64::from(bpf_get_prandom_u32()) << 32 | u64::from(bpf_get_prandom_u32());
        let knock = Knock::new(tag.key, 1, tag.epoch, tag.function, nonce);
        *(payload as *mut [u8; knock::LEN]) = knock.encode();
    }
    go_on(&ctx)
}

#[inline(always)]
fn go_on(ctx: &XdpContext) -> u32 {
    // SAFETY: the bench puts only XDP programs there. It returns only if there is none.
    unsafe { NEXT.tail_call(ctx, 0) };
    XDP_PASS
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this program runs in the kernel: build it with ebpf/build.sh");
}
