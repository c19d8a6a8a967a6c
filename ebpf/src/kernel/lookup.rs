//! The second sensor: the socket lookup. It runs once per new connection, after DNAT, also on loopback. It also gives
//! connections to the function that their SYN named.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::SkLookupContext;
use headstart_ebpf::event::{EventKind, Stat};
use headstart_ebpf::maps::{FUNCTION_OPTION, LOBBY, SETTINGS_LOBBY, SourceRule};
use headstart_ebpf::packet::{IpWords, Syn};

use crate::budget::{announce, spend, spend_allowed};
use crate::request::{flow, is_none, wants_key};
use crate::tables::{
    LISTENERS, STEERED, count, entry, is_ignored, is_owned, settings, source_rule, was_reported,
};

/// `include/linux/socket.h`, and the protocol number of TCP.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;

/// Handles a connection for which the kernel looks up the socket.
#[inline(always)]
pub(crate) fn look_up(ctx: &SkLookupContext) {
    // SAFETY: the context is the one the kernel called this program with.
    let Some(syn) = (unsafe { connection(ctx.lookup) }) else { return };
    if !is_owned(syn.dst_port) {
        return;
    }
    let Some(entry) = entry(syn.dst, syn.dst_port, 0) else { return };
    if entry.flags & FUNCTION_OPTION != 0 {
        // SAFETY: one word, read in one access.
        let function = unsafe { STEERED.get(flow(&syn)).copied() };
        if let Some(function) = function
            && LISTENERS.redirect_sk_lookup(ctx, function, 0).is_ok()
        {
            return count(Stat::Steered);
        }
    }
    if is_none(entry) || entry.is_warm() {
        return;
    }
    let Some(settings) = settings() else { return };
    let rule = source_rule(settings, syn.src);
    if is_ignored(rule) {
        let has_lobby = settings.flags & SETTINGS_LOBBY != 0;
        if has_lobby && LISTENERS.redirect_sk_lookup(ctx, LOBBY, 0).is_ok() {
            count(Stat::Lobby);
        }
        return;
    }
    if wants_key(entry) || was_reported(&syn, entry.function, settings) {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let budget = match rule == SourceRule::Allow as u32 {
        true => spend_allowed(now_ns, settings),
        false => spend(&syn, entry.function, now_ns, settings),
    };
    count(if budget.is_err() {
        Stat::LookupBudget
    } else if announce(&syn, entry.function, EventKind::Lookup, now_ns) {
        Stat::LookupEvent
    } else {
        Stat::LookupRingFull
    });
}

/// The connection as a SYN without sequence number; `None` when it is not TCP over IP.
///
/// # Safety
/// `ctx` must be the program's context. This reads it field by field: the kernel rewrites each access, and refuses
/// one that spans two fields.
#[inline(always)]
unsafe fn connection(ctx: *const bpf_sk_lookup) -> Option<Syn> {
    // SAFETY: fields of the context.
    unsafe {
        if read_volatile(addr_of!((*ctx).protocol)) != IPPROTO_TCP {
            return None;
        }
        let family = read_volatile(addr_of!((*ctx).family));
        let (src, dst, ip_version) = match family {
            AF_INET => (
                IpWords::from_v4(read_volatile(addr_of!((*ctx).remote_ip4)).to_ne_bytes()),
                IpWords::from_v4(read_volatile(addr_of!((*ctx).local_ip4)).to_ne_bytes()),
                4,
            ),
            AF_INET6 => (v6(addr_of!((*ctx).remote_ip6).cast()), v6(addr_of!((*ctx).local_ip6).cast()), 6),
            _ => return None,
        };
        Some(Syn {
            src,
            dst,
            // Unlike the local port, in network order.
            src_port: u16::from_be(read_volatile(addr_of!((*ctx).remote_port))),
            dst_port: read_volatile(addr_of!((*ctx).local_port)) as u16,
            isn: 0,
            ip_version,
        })
    }
}

/// # Safety
/// `at` must point to the four words of an address in the program's context.
#[inline(always)]
unsafe fn v6(at: *const u32) -> IpWords {
    // SAFETY: the caller's.
    let word = |index| unsafe { u64::from(read_volatile(at.add(index))) };
    IpWords::from_halves(word(0) | word(1) << 32, word(2) | word(3) << 32)
}
