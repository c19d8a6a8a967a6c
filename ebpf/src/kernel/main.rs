//! The kernel programs of a node. They see requests for connections, report those that matter to user space, and
//! drop only what an operator has closed.
//!
//! In reading order: [`sense`] is what XDP and tcx do with a packet; [`request`] finds the function and verifies
//! tags; [`budget`] bounds the events of clients without a key; [`lookup`] is the second sensor; [`listener`] filters
//! SYNs at a listening socket; [`frame`] reads packets, [`tables`] declares the maps. For a target other than
//! `bpf` this is an empty program, so that lints can check it.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![expect(unsafe_code, reason = "to a kernel program, map memory is raw pointers")]

mod budget;
mod exchange;
mod frame;
mod listener;
mod lookup;
mod object;
mod request;
mod sense;
mod tables;

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::bindings::tcx_action_base::{TCX_DROP, TCX_NEXT};
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::{classifier, sk_lookup, socket_filter, xdp};
use aya_ebpf::programs::{SkBuffContext, SkLookupContext, TcContext, XdpContext};

/// Runs first on each frame of an interface. Multi-buffer (`frags`), for interfaces with a large MTU.
#[xdp(frags)]
fn headstart_syn(ctx: XdpContext) -> u32 {
    if sense::sense(&ctx) { XDP_DROP } else { XDP_PASS }
}

/// The same at tcx ingress, for interfaces whose XDP slot is occupied.
#[classifier]
fn headstart_tcx(ctx: TcContext) -> i32 {
    if sense::sense(&ctx) { TCX_DROP } else { TCX_NEXT }
}

/// Runs in a network namespace, once per new connection. It never refuses a connection.
#[sk_lookup]
fn headstart_lookup(ctx: SkLookupContext) -> u32 {
    lookup::look_up(&ctx);
    SK_PASS
}

/// Runs on a listening socket. The result 0 drops a packet; another result is the number of bytes to keep.
#[socket_filter]
fn headstart_gate(ctx: SkBuffContext) -> i64 {
    if listener::refuses(&ctx) { 0 } else { i64::from(u32::MAX) }
}

/// Does nothing; benches subtract its cost.
#[xdp(frags)]
fn headstart_floor(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this program runs in the kernel: build it with ebpf/build.sh");
}
