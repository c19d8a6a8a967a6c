//! The filter on the listeners of functions that are closed to unannounced clients. It refuses SYNs without a key
//! that no sensor has refused, for instance on loopback. To TCP a dropped SYN has never arrived.

use core::ffi::c_void;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes_relative;
use aya_ebpf::programs::SkBuffContext;
use headstart_ebpf::event::Stat;
use headstart_ebpf::maps::FUNCTION_AUTH_CONNECT;
use headstart_ebpf::packet::{Bytes, IpWords, Options, Syn, TCP_LEN, is_syn};

use crate::frame::CopiedPacket;
use crate::request::{flow, is_opened, requested_function};
use crate::tables::{count, entry, forget_other, settings};

/// Offsets of the source address; the destination address follows it (RFC 791, 3.1; RFC 8200, 3).
const V4_SOURCE: u32 = 12;
const V6_SOURCE: u32 = 8;

/// Whether the listener's socket must not see this packet.
#[inline(always)]
pub(crate) fn refuses(ctx: &SkBuffContext) -> bool {
    // A socket filter's packet starts at the TCP header. TCP itself refuses a packet that is no TCP.
    let Some((syn, options)) = syn(ctx) else { return false };
    // Without an entry, the agent has not written it yet, or a local client has found a hidden listener.
    let Some((default, settings)) = entry(syn.dst, syn.dst_port, 0).zip(settings()) else { return refuse() };
    let requested = requested_function(&CopiedPacket(ctx), &syn, &options, default, settings);
    // The socket lookup has led it here because of an earlier connection, which no sensor has seen end.
    if forget_other(flow(&syn), requested.entry.function) {
        return refuse();
    }
    if requested.is_tagged || requested.entry.flags & FUNCTION_AUTH_CONNECT == 0 {
        return false;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if is_opened(syn.src, requested.entry.function, now_ns) {
        return false;
    }
    refuse()
}

#[inline(always)]
fn refuse() -> bool {
    count(Stat::GateRefused);
    true
}

/// The packet as a request for a connection; `None` when it is another packet.
#[inline(always)]
fn syn(ctx: &SkBuffContext) -> Option<(Syn, Options)> {
    let skb = ctx.skb.skb;
    let tcp: [u8; TCP_LEN] = CopiedPacket(ctx).load(0)?;
    let tcp_len = usize::from(tcp[12] >> 4) * 4;
    if !is_syn(tcp[13]) || tcp_len < TCP_LEN {
        return None;
    }
    let [version] = network_header(skb, 0)?;
    let (src, dst, ip_version) = if version >> 4 == 4 {
        let [a, b, c, d, e, f, g, h] = network_header(skb, V4_SOURCE)?;
        (IpWords::from_v4([a, b, c, d]), IpWords::from_v4([e, f, g, h]), 4)
    } else {
        let source: [u8; 16] = network_header(skb, V6_SOURCE)?;
        let destination: [u8; 16] = network_header(skb, V6_SOURCE + 16)?;
        (IpWords::from(source), IpWords::from(destination), 6)
    };
    let syn = Syn {
        src,
        dst,
        src_port: u16::from_be_bytes([tcp[0], tcp[1]]),
        dst_port: u16::from_be_bytes([tcp[2], tcp[3]]),
        isn: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        ip_version,
    };
    Some((syn, Options::new(TCP_LEN, tcp_len - TCP_LEN)))
}

/// `N` bytes of the IP header from `offset`.
#[inline(always)]
fn network_header<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let to: *mut c_void = bytes.as_mut_ptr().cast();
    // SAFETY: the context is the kernel's, and `to` has room for N bytes.
    let error = unsafe { bpf_skb_load_bytes_relative(skb.cast(), offset, to, N as u32, BPF_HDR_START_NET) };
    (error == 0).then_some(bytes)
}
