//! What the sensors on the way in, XDP and tcx, do with a packet.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use headstart_ebpf::event::{EventKind, Stat};
use headstart_ebpf::maps::{
    FUNCTION_AUTH_CONNECT, FUNCTION_OPTION, FunctionEntry, OpenedKey, PortKey, Settings, Source,
};
use headstart_ebpf::packet::{Bytes, Options, Packet, Skip, Syn, Udp, read};
use headstart_ebpf::replay::Use;

use crate::budget::{announce, announce_authenticated, spend};
use crate::frame::{Buffer, Copied, Linear};
use crate::tables::{OPENED, STATS, STEERED, entry, exactly, is_ignored, is_owned, settings, source, tell};
use crate::who::{asked, flow, is_none, is_opened, tag, use_tag, wants_key};

/// Beside the number of a [`Stat`]: drop the packet. One number, so that functions can return it.
const DROP: u32 = 1 << 16;

/// Looks at a packet and counts it; true when it is to be dropped.
#[inline(always)]
pub(crate) fn sense<B: Buffer>(buffer: &B) -> bool {
    let Some(counters) = STATS.get_ptr_mut(0) else { return false };
    let mut verdict = look(&Linear(buffer));
    let unread = verdict == Stat::Malformed as u32 || verdict == Stat::KnockInvalid as u32;
    if unread && Copied(buffer).has_more() {
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

/// The headers may be split over buffers. A function of its own in the kernel, too: it is rare.
#[inline(never)]
fn look_at_split<B: Buffer>(buffer: &B) -> u32 {
    look(&Copied(buffer))
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
    let asked = asked(frame, syn, options, default, settings);
    let entry = asked.entry;
    if is_none(entry) {
        return Stat::Unowned as u32;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let trusted = asked.is_tagged || wants_key(entry) && is_opened(syn.src, entry.function, now_ns);
    if entry.flags & FUNCTION_AUTH_CONNECT != 0 && !trusted {
        return Stat::Refused as u32 | DROP;
    }
    if asked.is_steered {
        // Without memory for it, the connection goes to the port's own function.
        let _unsteered = STEERED.insert(flow(syn), entry.function, u64::from(BPF_ANY));
    }
    if entry.is_warm() {
        return Stat::Warm as u32;
    }
    at_cold(syn, entry, trusted, now_ns, settings)
}

/// A SYN to a function without an instance.
#[inline(always)]
fn at_cold(syn: &Syn, entry: FunctionEntry, trusted: bool, now_ns: u64, settings: &Settings) -> u32 {
    let source = source(settings, syn.src);
    if is_ignored(source) {
        return Stat::Ignored as u32;
    }
    tell(syn, entry.function, settings);
    let stat = if trusted {
        match announce_authenticated(syn, entry.function, EventKind::Syn, now_ns) {
            true => Stat::Authenticated,
            false => Stat::AuthenticatedRingFull,
        }
    } else if wants_key(entry) {
        Stat::Unauthenticated
    } else {
        let budget = match source == Source::Allow as u32 {
            true => Ok(()),
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
    // One epoch early, in time, or one late.
    let is_recent = knock.epoch.wrapping_sub(settings.epoch).wrapping_add(1) <= 2;
    let claim = knock.claim();
    if !is_recent || tag(&claim) != Some(knock.tag) {
        return Stat::KnockInvalid as u32;
    }
    let Some(entry) = exactly(PortKey::id(knock.function)) else { return Stat::KnockInvalid as u32 };
    if use_tag(&sender, &claim, knock.tag, settings) != Use::First {
        return Stat::KnockReplayed as u32 | DROP;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let opened = OpenedKey { network: sender.src.network(), function: entry.function, pad: 0 };
    // Without memory for it, the function starts all the same.
    let _closed = OPENED.insert(opened, now_ns.wrapping_add(settings.opened_ns), u64::from(BPF_ANY));
    if !entry.is_warm() && !announce_authenticated(&sender, entry.function, EventKind::Knock, now_ns) {
        return Stat::AuthenticatedRingFull as u32 | DROP;
    }
    Stat::Knock as u32 | DROP
}
