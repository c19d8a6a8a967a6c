//! What the sensors on an interface, XDP and tcx, do with a packet.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use headstart_ebpf::event::{EventKind, Stat};
use headstart_ebpf::maps::{
    FUNCTION_AUTH_CONNECT, FUNCTION_OPTION, FunctionEntry, OpenedKey, PortKey, Settings, SourceRule,
};
use headstart_ebpf::packet::{Bytes, Options, Packet, Skip, Syn, Udp, read};
use headstart_ebpf::replay::TagUse;

use crate::budget::{announce, announce_authenticated, spend, spend_allowed};
use crate::frame::{CopiedPacket, LinearPacket, PacketBuffer};
use crate::request::{flow, is_none, is_opened, requested_function, tag, use_tag, wants_key};
use crate::tables::{
    OPENED, STATS, STEERED, entry, exact_entry, forget_other, is_ignored, is_owned, remember_reported,
    settings, source_rule,
};

/// A bit beside the number of a [`Stat`]: drop the packet. Both are in one number, so that functions can return it.
const DROP: u32 = 1 << 16;

/// Handles and counts a packet; true when the program must drop it.
#[inline(always)]
pub(crate) fn sense<B: PacketBuffer>(buffer: &B) -> bool {
    let Some(counters) = STATS.get_ptr_mut(0) else { return false };
    let mut verdict = look(&LinearPacket(buffer));
    let unread = verdict == Stat::Malformed as u32 || verdict == Stat::KnockInvalid as u32;
    if unread && CopiedPacket(buffer).has_more() {
        verdict = look_at_split(buffer);
    }
    let stat = (verdict & !DROP) as usize;
    // SAFETY: the array's element is this CPU's own, and programs that see packets do not nest on a CPU.
    unsafe {
        (*counters)[Stat::Packets as usize] += 1;
        if stat < Stat::ALL.len() {
            (*counters)[stat] += 1;
        }
    }
    verdict & DROP != 0
}

/// Handles a packet whose headers may be split over buffers. This is rare, so it is a function in the kernel too.
#[inline(never)]
fn look_at_split<B: PacketBuffer>(buffer: &B) -> u32 {
    look(&CopiedPacket(buffer))
}

#[inline(always)]
fn look<B: Bytes>(frame: &B) -> u32 {
    match read(frame) {
        Ok(Packet::Syn(syn, options)) => at_syn(frame, &syn, &options),
        Ok(Packet::Udp(udp)) => at_udp(frame, &udp),
        Err(Skip::Malformed) => Stat::Malformed as u32,
        Err(Skip::NotTcp | Skip::NotSyn | Skip::Fragment | Skip::Refused) => Stat::NotSyn as u32,
    }
}

#[inline(always)]
fn at_syn<B: Bytes>(frame: &B, syn: &Syn, options: &Options) -> u32 {
    if !is_owned(syn.dst_port) {
        return Stat::Unowned as u32;
    }
    let Some(default) = entry(syn.dst, syn.dst_port, 0) else { return Stat::Unowned as u32 };
    let Some(settings) = settings() else { return Stat::Unowned as u32 };
    let plain = default.flags & FUNCTION_OPTION == 0 && !wants_key(default);
    if plain {
        if is_none(default) {
            return Stat::Unowned as u32;
        }
        if default.is_warm() {
            return Stat::Warm as u32;
        }
        // SAFETY: the helper has no preconditions.
        return at_cold(syn, default, false, unsafe { bpf_ktime_get_ns() }, settings);
    }
    let requested = requested_function(frame, syn, options, default, settings);
    let entry = requested.entry;
    if !requested.is_steered {
        // A client uses a port again, or somebody else has used its address.
        forget_other(flow(syn), entry.function);
    }
    if is_none(entry) {
        return Stat::Unowned as u32;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let trusted = requested.is_tagged || wants_key(entry) && is_opened(syn.src, entry.function, now_ns);
    if entry.flags & FUNCTION_AUTH_CONNECT != 0 && !trusted {
        return Stat::Refused as u32 | DROP;
    }
    if requested.is_steered {
        // If the insertion fails, the connection goes to the port's default function.
        let _unsteered = STEERED.insert(flow(syn), entry.function, u64::from(BPF_ANY));
    }
    if entry.is_warm() {
        return Stat::Warm as u32;
    }
    at_cold(syn, entry, trusted, now_ns, settings)
}

/// Handles a SYN to a function without an instance.
#[inline(always)]
fn at_cold(syn: &Syn, entry: FunctionEntry, trusted: bool, now_ns: u64, settings: &Settings) -> u32 {
    let rule = source_rule(settings, syn.src);
    if is_ignored(rule) {
        return Stat::Ignored as u32;
    }
    remember_reported(syn, entry.function, settings);
    let stat = if trusted {
        match announce_authenticated(syn, entry.function, EventKind::Syn, now_ns) {
            true => Stat::Authenticated,
            false => Stat::AuthenticatedRingFull,
        }
    } else if wants_key(entry) {
        Stat::Unauthenticated
    } else {
        let budget = match rule == SourceRule::Allow as u32 {
            true => spend_allowed(now_ns, settings),
            false => spend(syn, entry.function, now_ns, settings),
        };
        match budget {
            Err(used_up) => used_up,
            Ok(()) if announce(syn, entry.function, EventKind::Syn, now_ns) => Stat::Event,
            Ok(()) => Stat::RingFull,
        }
    };
    stat as u32
}

#[inline(always)]
fn at_udp<B: Bytes>(frame: &B, udp: &Udp) -> u32 {
    match settings() {
        Some(settings) if settings.knock_port != 0 && settings.knock_port == udp.dst_port => {
            at_knock(frame, udp, settings)
        }
        _ => Stat::NotSyn as u32,
    }
}

#[inline(always)]
fn at_knock<B: Bytes>(frame: &B, udp: &Udp, settings: &Settings) -> u32 {
    let Some((sender, knock)) = udp.knock(frame) else { return Stat::KnockInvalid as u32 };
    // The epoch is at most one early or one late.
    let is_recent = knock.epoch.wrapping_sub(settings.epoch).wrapping_add(1) <= 2;
    let claim = knock.claim();
    if !is_recent || tag(&claim) != Some(knock.tag) {
        return Stat::KnockInvalid as u32;
    }
    let Some(entry) = exact_entry(PortKey::id(knock.function)) else { return Stat::KnockInvalid as u32 };
    if use_tag(&sender, &claim, knock.tag, settings) != TagUse::First {
        return Stat::KnockReplayed as u32 | DROP;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let opened = OpenedKey { network: sender.src.network(), function: entry.function, pad: 0 };
    // If the insertion fails, the function still starts.
    let _closed = OPENED.insert(opened, now_ns.wrapping_add(settings.opened_ns), u64::from(BPF_ANY));
    if !entry.is_warm() && !announce_authenticated(&sender, entry.function, EventKind::Knock, now_ns) {
        return Stat::AuthenticatedRingFull as u32 | DROP;
    }
    Stat::Knock as u32 | DROP
}
