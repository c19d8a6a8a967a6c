//! The XDP program: sees every frame first, tells user space about the SYNs that matter, drops nothing.
//!
//! Every path returns `XDP_PASS`. On any target but `bpf` this is an empty program, so that it can be linted.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "to a kernel program, map memory is raw pointers")]

mod frame;

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::btf_maps::{HashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use headstart_ebpf::event::{
    Counters, EVENTS_BYTES, EventKind, FUNCTIONS_MAX, FunctionEntry, PortKey, Stat, SynEvent,
};
use headstart_ebpf::packet::{Skip, Syn, parse};

use crate::frame::Frame;

#[btf_map]
static FUNCTIONS: HashMap<PortKey, FunctionEntry, FUNCTIONS_MAX> = HashMap::new();

#[btf_map]
static EVENTS: RingBuf<SynEvent, EVENTS_BYTES> = RingBuf::new();

#[btf_map]
static STATS: PerCpuArray<Counters, 1> = PerCpuArray::new();

/// Entry point; multi-buffer, so that it may be attached to interfaces with a large MTU.
#[xdp(frags)]
fn headstart_syn(ctx: XdpContext) -> u32 {
    if let Some(counters) = STATS.get_ptr_mut(0) {
        let stat = observe(&Frame(&ctx));
        // SAFETY: the array's element is this CPU's own, and XDP programs on a CPU do not nest.
        unsafe {
            (*counters)[Stat::Packets as usize] += 1;
            (*counters)[stat as usize] += 1;
        }
    }
    XDP_PASS
}

#[inline(always)]
fn observe(frame: &Frame<'_>) -> Stat {
    match parse(frame) {
        Ok(syn) => announce(&syn),
        Err(Skip::Malformed) => Stat::Malformed,
        Err(Skip::NotTcp | Skip::NotSyn | Skip::Fragment | Skip::Refused) => Stat::NotSyn,
    }
}

#[inline(always)]
fn announce(syn: &Syn) -> Stat {
    // SAFETY: user space may replace an entry meanwhile; the worst outcome is an event for a function that
    // has just changed, which user space checks against its own state.
    let entry = unsafe {
        FUNCTIONS
            .get(PortKey::exact(syn.dst, syn.dst_port))
            .or_else(|| FUNCTIONS.get(PortKey::any(syn.dst_port)))
    };
    let Some(&entry) = entry else { return Stat::Unowned };
    if entry.is_warm() {
        return Stat::Warm;
    }
    let Some(mut record) = EVENTS.reserve(0) else { return Stat::RingFull };
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    record.write(SynEvent::new(syn, entry.function, EventKind::Syn, now_ns));
    record.submit(0);
    Stat::Event
}

/// The kernel reserves some helpers (`bpf_ktime_get_ns`, the ring buffer's) for programs under the GPL.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this program runs in the kernel: build it with ebpf/build.sh");
}
