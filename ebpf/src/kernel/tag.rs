//! The client's program. It writes the function ID option into the SYNs of a cgroup's processes.
//!
//! ```text
//! connect(2) ─> CONNECT: a known destination? ─> HDR_OPT_LEN: reserve ─> WRITE_HDR_OPT: store
//!                                 (again for a retransmission)  ─> ESTABLISHED: end the callbacks
//! ```
//!
//! It changes only SYNs to the configured destinations. If a SYN's options leave no room (a Fast Open cookie, an MD5
//! signature), the SYN goes out unchanged. The tag covers the sequence number, which is in the header when the kernel
//! calls WRITE_HDR_OPT. For a target other than `bpf` this is an empty program.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "a kernel program reads its context and packets through raw pointers")]

mod object;

use core::ffi::c_void;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_WRITE_HDR_OPT_CB, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG,
};
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_reserve_hdr_opt, bpf_store_hdr_opt};
use aya_ebpf::macros::{btf_map, sock_ops};
use aya_ebpf::programs::SockOpsContext;
use headstart_ebpf::client::{ClientTag, TAGS_MAX};
use headstart_ebpf::maps::PortKey;
use headstart_ebpf::option::LEN;
use headstart_ebpf::packet::IpWords;

#[btf_map]
static TAGS: HashMap<PortKey, ClientTag, TAGS_MAX> = HashMap::new();

#[btf_map]
static CLOCK: Array<u64, 1> = Array::new();

/// `include/linux/socket.h`.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// TCP flags, and the header up to the sequence number (RFC 9293, 3.1).
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;
const TCP_SEQUENCE: usize = 4;

/// The result: the kernel also runs the programs of the cgroup's ancestors.
const GO_ON: u32 = 1;

/// Entry point.
#[sock_ops]
fn headstart_tag(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => set_option_callbacks(&ctx, true),
        BPF_SOCK_OPS_HDR_OPT_LEN_CB if is_syn(&ctx) => reserve(&ctx),
        BPF_SOCK_OPS_WRITE_HDR_OPT_CB if is_syn(&ctx) => write(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => set_option_callbacks(&ctx, false),
        _ => {}
    }
    GO_ON
}

/// Turns the kernel's callbacks for the options of this socket's packets on or off.
#[inline(always)]
fn set_option_callbacks(ctx: &SockOpsContext, on: bool) {
    if tag(ctx).is_none() {
        return;
    }
    let others = ctx.cb_flags() & !BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
    let flags = if on { others | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG } else { others };
    // If the kernel refuses, the SYN goes out without the option, or later packets cause useless callbacks.
    let _refused = ctx.set_cb_flags(flags as i32);
}

#[inline(always)]
fn reserve(ctx: &SockOpsContext) {
    if tag(ctx).is_some() {
        // SAFETY: the context is the one the kernel called this program with. Without room there is no option.
        let _no_room = unsafe { bpf_reserve_hdr_opt(ctx.ops, LEN as u32, 0) };
    }
}

#[inline(always)]
fn write(ctx: &SockOpsContext) {
    let (Some(tag), Some(isn), Some(&offset_ns)) = (tag(ctx), sequence(ctx), CLOCK.get(0)) else { return };
    // SAFETY: the helper has no preconditions.
    let boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    let option = tag.option(boot_ns, offset_ns, remote_port(ctx), isn).encode();
    // SAFETY: the context is the kernel's, and `option` has the given length. The kernel refuses when no room is
    // reserved, or when another program has written an option of this experiment.
    let _refused = unsafe { bpf_store_hdr_opt(ctx.ops, option.as_ptr().cast::<c_void>(), LEN as u32, 0) };
}

/// What SYNs to this socket's destination carry; `None` for a destination that is not configured.
#[inline(always)]
fn tag(ctx: &SockOpsContext) -> Option<&'static ClientTag> {
    let (addr, port) = (remote_address(ctx)?, remote_port(ctx));
    // SAFETY: user space fills the map before it attaches the program, and never changes it afterwards.
    unsafe { TAGS.get(PortKey::exact(addr, port)).or_else(|| TAGS.get(PortKey::any(port))) }
}

#[inline(always)]
fn is_syn(ctx: &SockOpsContext) -> bool {
    // SAFETY: a field of the context; 0 when the kernel calls without a packet.
    let flags = unsafe { (&raw const (*ctx.ops).skb_tcp_flags).read_volatile() };
    flags & (SYN | ACK) == SYN
}

/// The sequence number of the current packet.
#[inline(always)]
fn sequence(ctx: &SockOpsContext) -> Option<u32> {
    // SAFETY: fields of the context, pointers to the TCP header's start and past its last option so far.
    let (start, end) = unsafe {
        let start = (&raw const (*ctx.ops).__bindgen_anon_3.skb_data).read_volatile();
        let end = (&raw const (*ctx.ops).__bindgen_anon_4.skb_data_end).read_volatile();
        (start as usize, end as usize)
    };
    let at = start + TCP_SEQUENCE;
    if at + 4 > end {
        return None;
    }
    // SAFETY: `at..at + 4` lies before the end (the verifier proves it again), and bytes have no alignment.
    Some(u32::from_be_bytes(unsafe { *(at as *const [u8; 4]) }))
}

/// The destination port. The context holds it in network order, in the upper half of a word.
#[inline(always)]
fn remote_port(ctx: &SockOpsContext) -> u16 {
    u32::from_be(ctx.remote_port()) as u16
}

/// The destination address; v4-mapped for IPv4, also on an IPv6 socket.
#[inline(always)]
fn remote_address(ctx: &SockOpsContext) -> Option<IpWords> {
    let words = match ctx.family() {
        AF_INET => [0, 0, 0xffff_u32.to_be(), ctx.remote_ip4()],
        AF_INET6 => {
            let word = |at: usize| {
                // SAFETY: a field of the context. Volatile, as the kernel allows loads of one word only,
                // which the compiler would join.
                unsafe { (&raw const (*ctx.ops).remote_ip6[at]).read_volatile() }
            };
            [word(0), word(1), word(2), word(3)]
        }
        _ => return None,
    };
    let mut octets = [0; 16];
    for (at, word) in words.into_iter().enumerate() {
        octets[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    Some(octets.into())
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this program runs in the kernel: build it with ebpf/build.sh");
}
