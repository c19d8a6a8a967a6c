//! Who is meant, and who asks: from a SYN to the entry of a function, and whether a key vouches for it.

use core::cell::Cell;

use headstart_ebpf::auth::{Claim, recent_epoch};
use headstart_ebpf::event::Stat;
use headstart_ebpf::maps::{
    FUNCTION_AUTH_CONNECT, FUNCTION_AUTH_WAKE, FUNCTION_NONE, FUNCTION_OPTION, Flow, FunctionEntry,
    OpenedKey, Settings,
};
use headstart_ebpf::option::{FunctionOption, claim};
use headstart_ebpf::packet::{Bytes, IpWords, Options, Syn};
use headstart_ebpf::replay::{self, Use};

use crate::tables::{KEYS, OPENED, REPLAYS, count, entry};

/// The bits of a tag that an option carries.
const TAG_SENT: u64 = (1 << 48) - 1;

/// What a SYN asks for.
pub(crate) struct Asked {
    pub(crate) entry: FunctionEntry,
    /// The SYN names another function than the one that gets its port's connections.
    pub(crate) is_steered: bool,
    /// The tag of its option is right and new.
    pub(crate) is_tagged: bool,
}

/// The function that `syn` is for, `default` being the entry of its port. Counts what is wrong with the
/// function ID option; such a SYN is one without.
#[inline(always)]
pub(crate) fn asked<B: Bytes>(
    frame: &B,
    syn: &Syn,
    options: &Options,
    default: FunctionEntry,
    settings: &Settings,
) -> Asked {
    let mut asked = Asked { entry: default, is_steered: false, is_tagged: false };
    if default.flags & FUNCTION_OPTION == 0 {
        return asked;
    }
    let option = match options.function(frame) {
        Ok(Some(option)) => option,
        Ok(None) => return asked,
        Err(_) => {
            count(Stat::BadOption);
            return asked;
        }
    };
    if option.function != 0
        && let Some(entry) = entry(syn.dst, syn.dst_port, option.function)
    {
        // Where the port's own function is named, its listener gets the connection anyway.
        asked.is_steered = is_none(default) || entry.function != default.function;
        asked.entry = entry;
    }
    if option.key != 0 {
        match verify(syn, &option, settings) {
            Ok(()) => asked.is_tagged = true,
            Err(wrong) => count(wrong),
        }
    }
    asked
}

/// Whether the tag of `option` is right, and not used by another connection before.
#[inline(always)]
fn verify(syn: &Syn, option: &FunctionOption, settings: &Settings) -> Result<(), Stat> {
    let epoch = recent_epoch(settings.epoch, option.epoch);
    let claim = claim(option.key, epoch.unwrap_or(0), option.function, syn.dst_port, syn.isn);
    // An unknown key is the better answer to a tag of an unknown key and a wrong time.
    let tag = tag(&claim).ok_or(Stat::UnknownKey)?;
    if epoch.is_none() {
        return Err(Stat::BadEpoch);
    }
    let [a, b, c, d, e, f] = option.tag;
    if u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) != tag & TAG_SENT {
        return Err(Stat::BadTag);
    }
    match use_tag(syn, &claim, tag, settings) {
        Use::First | Use::Again => Ok(()),
        Use::Replayed => Err(Stat::Replayed),
    }
}

/// The tag of `claim`; `None` when its key is not known here.
#[inline(always)]
pub(crate) fn tag(claim: &Claim) -> Option<u64> {
    let slot = KEYS.get_ptr(u32::from(claim.key))?;
    // SAFETY: an array's element stays where it is while a program runs. A key that user space replaces
    // meanwhile is read half old and half new, and verifies nothing.
    let slot = unsafe { &*slot };
    (claim.key != 0 && slot.present == 1).then(|| claim.tag(slot.words))
}

/// Uses the tag of `claim` for the connection, or knock, `syn`.
#[inline(always)]
pub(crate) fn use_tag(syn: &Syn, claim: &Claim, tag: u64, settings: &Settings) -> Use {
    let Some(set) = REPLAYS.get_ptr(replay::set_of(tag)) else { return Use::Replayed };
    let owner = replay::owner(&flow(syn), claim.epoch, settings.seed);
    // SAFETY: an array's element stays where it is; its words are changed as `exchange` promises.
    unsafe { &*set }.claim(tag, owner, settings.epoch, exchange)
}

/// Compare and exchange: in the instruction set (v3), but not in the core library of this target.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn exchange(word: &Cell<u64>, before: u64, after: u64) -> bool {
    let mut seen = before;
    // SAFETY: an aligned word that lives as long as the reference.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {after})",
            word = in(reg) word.as_ptr(),
            after = in(reg) after,
            inout("r0") seen,
        );
    }
    seen == before
}

#[cfg(not(target_arch = "bpf"))]
fn exchange(word: &Cell<u64>, before: u64, after: u64) -> bool {
    word.get() == before && word.replace(after) == before
}

/// Whether `function` is open to the network of `src` because somebody there knocked.
#[inline(always)]
pub(crate) fn is_opened(src: IpWords, function: u32, now_ns: u64) -> bool {
    let key = OpenedKey { network: src.network(), function, pad: 0 };
    // SAFETY: one word, read at once.
    unsafe { OPENED.get(key) }.is_some_and(|until_ns| *until_ns > now_ns)
}

/// Whether a function treats clients without a key differently.
#[inline(always)]
pub(crate) const fn wants_key(entry: FunctionEntry) -> bool {
    entry.flags & (FUNCTION_AUTH_WAKE | FUNCTION_AUTH_CONNECT) != 0
}

/// Whether nobody gets this port's connections.
#[inline(always)]
pub(crate) const fn is_none(entry: FunctionEntry) -> bool {
    entry.flags & FUNCTION_NONE != 0
}

/// The two ends of the connection that `syn` asks for.
#[inline(always)]
pub(crate) const fn flow(syn: &Syn) -> Flow {
    Flow { src: syn.src, dst: syn.dst, src_port: syn.src_port, dst_port: syn.dst_port, pad: 0 }
}
