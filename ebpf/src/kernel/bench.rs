//! Programs for `benches/packet_cost` only.
//!
//! `vary_*` change a frame and then tail-call the measured program, so that no two runs see the same frame. The same
//! with `headstart_floor` as the measured program is the cost to subtract.
//!
//! The other programs each do one kind of work that the sensor does: they measure what that work costs on this
//! processor. For a target other than `bpf` this is an empty program, so that lints can check it.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![expect(unsafe_code, reason = "a packet is raw pointers")]

mod exchange;
mod object;

use core::cell::Cell;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, ProgramArray, RingBuf};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use headstart_ebpf::auth::{Key, siphash24};
use headstart_ebpf::event::SynEvent;
use headstart_ebpf::knock::{self, Knock};
use headstart_ebpf::maps::{EVENTS_BYTES, OpenedKey, REMEMBERED_MAX};
use headstart_ebpf::option::{FunctionOption, LEN};
use headstart_ebpf::packet::IpWords;
use headstart_ebpf::replay::SETS;

use crate::exchange::exchange;

/// Offsets in a frame without VLAN tags or IPv4 options.
const V4_SOURCE_AT: usize = 14 + 12;
const TCP_AT: usize = 14 + 20;
const SEQUENCE_AT: usize = TCP_AT + 4;
const OPTIONS_AT: usize = TCP_AT + 20;
const UDP_PAYLOAD_AT: usize = TCP_AT + 8;

/// The parts of a tag.
#[repr(C)]
struct BenchTag {
    key: Key,
    epoch: u64,
    function: u32,
    port: u32,
}

/// The measured program, which `vary_*` tail-call.
#[btf_map]
static NEXT: ProgramArray<1> = ProgramArray::new();

#[btf_map]
static TAG: Array<BenchTag, 1> = Array::new();

/// The table of `look_up`: a time by a key as long as those of functions.
#[btf_map]
static SEEN: HashMap<[u32; 6], u64, 1024> = HashMap::new();

/// The result of the last `hash`, from which the next one starts, so that none can be computed ahead.
#[btf_map]
static HASH: Array<u64, 1> = Array::new();

/// The table of `recall`, as large as the sensor's memory of tags: a cache line by a random number.
#[btf_map]
static LINES: Array<[Cell<u64>; 8], SETS> = Array::new();

/// The table of `remember`, as large as the sensor's memory of knocks.
#[btf_map]
static REMEMBERED: LruHashMap<OpenedKey, u64, REMEMBERED_MAX> = LruHashMap::new();

/// The ring of `announce`.
#[btf_map]
static RING: RingBuf<SynEvent, EVENTS_BYTES> = RingBuf::new();

/// SipHashes in one run of `hash`: the kernel reports whole nanoseconds.
const HASHES: u32 = 4;

/// Reads the clock and looks into a hash table.
#[xdp(frags)]
fn look_up(_ctx: XdpContext) -> u32 {
    // SAFETY: the helper has no preconditions, and no program writes to the table while this runs.
    let (now, seen) = unsafe { (bpf_ktime_get_ns(), SEEN.get([1; 6])) };
    if seen.is_some_and(|at| *at < now) { XDP_PASS } else { XDP_ABORTED }
}

/// Computes [`HASHES`] SipHashes of as many bytes as a tag covers, each of the one before.
#[xdp(frags)]
fn hash(_ctx: XdpContext) -> u32 {
    let (Some(tag), Some(last)) = (TAG.get(0), HASH.get_ptr_mut(0)) else { return XDP_ABORTED };
    // SAFETY: an array's element does not move, and only this program uses it.
    let last = unsafe { &mut *last };
    for _ in 0..HASHES {
        *last = siphash24(tag.key, [tag.epoch, u64::from(tag.function), *last]);
    }
    XDP_PASS
}

/// Replaces, atomically, the smallest of four words in a cache line of a large array. Line and word are others in each
/// run, so that no processor predicts them; the sensor's memory of tags is like that.
#[xdp(frags)]
fn recall(_ctx: XdpContext) -> u32 {
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    let Some(line) = LINES.get_ptr(random & (SETS as u32 - 1)) else { return XDP_ABORTED };
    // SAFETY: an array's element does not move; `exchange` changes its words atomically.
    let line = unsafe { &*line };
    let mut smallest = &line[0];
    for word in &line[1..4] {
        if word.get() < smallest.get() {
            smallest = word;
        }
    }
    if exchange(smallest, smallest.get(), u64::from(random)) { XDP_PASS } else { XDP_ABORTED }
}

/// Only draws the random number of `recall`; benches subtract its cost.
#[xdp(frags)]
fn random(_ctx: XdpContext) -> u32 {
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    if random & (SETS as u32 - 1) < SETS as u32 { XDP_PASS } else { XDP_ABORTED }
}

/// Writes an entry of an LRU table.
#[xdp(frags)]
fn remember(_ctx: XdpContext) -> u32 {
    let key = OpenedKey { network: IpWords::from_v4([192, 0, 2, 1]), function: 1, pad: 0 };
    if REMEMBERED.insert(key, 1, u64::from(BPF_ANY)).is_ok() { XDP_PASS } else { XDP_ABORTED }
}

/// Writes a record to a ring.
#[xdp(frags)]
fn announce(_ctx: XdpContext) -> u32 {
    let Some(mut record) = RING.reserve(0) else { return XDP_ABORTED };
    // SAFETY: zero is a valid value of every field of the record.
    record.write(unsafe { core::mem::zeroed() });
    record.submit(0);
    XDP_PASS
}

/// Writes another source address.
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

/// Writes another sequence number, and the tag for it.
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

/// Writes another nonce, and the tag for it.
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
    // SAFETY: the bench puts only XDP programs there. The call returns only when there is none.
    unsafe { NEXT.tail_call(ctx, 0) };
    XDP_PASS
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this program runs in the kernel: build it with ebpf/build.sh");
}
