//! The kernel programs of a node: they see connections being asked for, tell user space about those that
//! matter, and drop only what an operator closed.
//!
//! In reading order: [`sense`] is what XDP and tcx do with a packet, [`who`] finds the function and checks
//! tags, [`budget`] bounds what strangers cause; [`lookup`] is the second sensor, [`listener`] the last gate;
//! [`frame`] and [`tables`] are packets and maps. On any target but `bpf` this is an empty program, so that
//! it can be linted.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![expect(unsafe_code, reason = "to a kernel program, map memory is raw pointers")]

mod budget;
mod frame;
mod listener;
mod lookup;
mod object;
mod sense;
mod tables;
mod who;

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::bindings::tcx_action_base::{TCX_DROP, TCX_NEXT};
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::{classifier, sk_lookup, socket_filter, xdp};
use aya_ebpf::programs::{SkBuffContext, SkLookupContext, TcContext, XdpContext};

/// On an interface, first of all; multi-buffer, so that it may be attached to those with a large MTU.
#[xdp(frags)]
fn headstart_syn(ctx: XdpContext) -> u32 {
    if sense::sense(&ctx) { XDP_DROP } else { XDP_PASS }
}

/// The same where XDP is taken: tcx ingress.
#[classifier]
fn headstart_tcx(ctx: TcContext) -> i32 {
    if sense::sense(&ctx) { TCX_DROP } else { TCX_NEXT }
}

/// In a network namespace: once per new connection. It never refuses one.
#[sk_lookup]
fn headstart_lookup(ctx: SkLookupContext) -> u32 {
    lookup::look_up(&ctx);
    SK_PASS
}

/// On a listener: 0 drops a packet, anything else is how much of it to keep.
#[socket_filter]
fn headstart_gate(ctx: SkBuffContext) -> i64 {
    if listener::refuses(&ctx) { 0 } else { i64::from(u32::MAX) }
}

/// What a program costs that does nothing; benches subtract it.
#[xdp(frags)]
fn headstart_floor(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this program runs in the kernel: build it with ebpf/build.sh");
}
