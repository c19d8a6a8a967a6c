//! What a SYN asks for: the entry of its function, and whether a key authenticates it.

use headstart_ebpf::auth::{TagClaim, recent_epoch};
use headstart_ebpf::event::Stat;
use headstart_ebpf::maps::{
    FUNCTION_AUTH_CONNECT, FUNCTION_AUTH_WAKE, FUNCTION_NONE, FUNCTION_OPTION, FunctionEntry, OpenedKey,
    PacketFlow, Settings,
};
use headstart_ebpf::option::{FunctionOption, claim};
use headstart_ebpf::packet::options::ABSENT;
use headstart_ebpf::packet::{Bytes, IpWords, Options, Syn};
use headstart_ebpf::replay::{self, TagUse};

use crate::exchange::exchange;
use crate::tables::{KEYS, OPENED, REPLAYS, count, entry};

/// The bits of a tag that the option carries.
const TAG_SENT: u64 = (1 << 48) - 1;

/// The function that a SYN asks for.
pub(crate) struct RequestedFunction {
    pub(crate) entry: FunctionEntry,
    /// The SYN names another function than the default function of its port.
    pub(crate) is_steered: bool,
    /// The option's tag is correct, and no other connection has used it.
    pub(crate) is_tagged: bool,
}

/// The function that `syn` asks for; `default` is the entry of its port. Counts an incorrect function ID option, and
/// then treats the SYN as one without the option.
#[inline(always)]
pub(crate) fn requested_function<B: Bytes>(
    frame: &B,
    syn: &Syn,
    options: &Options,
    default: FunctionEntry,
    settings: &Settings,
) -> RequestedFunction {
    let mut requested = RequestedFunction { entry: default, is_steered: false, is_tagged: false };
    if default.flags & FUNCTION_OPTION == 0 {
        return requested;
    }
    // A SYN without the option asks for the same as one with an empty option. Each path sets all of `option`: the
    // verifier of Linux 6.1 refuses a program that reads from the stack what one path has not written.
    let option = match options.position(frame) {
        ABSENT => FunctionOption::open(0),
        at => match options.read(frame, at) {
            Ok(option) => option,
            Err(_) => {
                count(Stat::BadOption);
                return requested;
            }
        },
    };
    if option.function != 0
        && let Some(entry) = entry(syn.dst, syn.dst_port, option.function)
    {
        // The listener of the port's default function gets the connection without steering.
        requested.is_steered = is_none(default) || entry.function != default.function;
        requested.entry = entry;
    }
    if option.key != 0 {
        match verify(syn, &option, settings) {
            Ok(()) => requested.is_tagged = true,
            Err(error) => count(error),
        }
    }
    requested
}

/// Verifies the tag of `option`, and uses it.
///
/// # Errors
/// The reason for which the tag is not accepted.
#[inline(always)]
fn verify(syn: &Syn, option: &FunctionOption, settings: &Settings) -> Result<(), Stat> {
    let epoch = recent_epoch(settings.epoch, option.epoch);
    let claim = claim(option.key, epoch.unwrap_or(0), option.function, syn.dst_port, syn.isn);
    // If both the key is unknown and the epoch is wrong, report the unknown key.
    let tag = tag(&claim).ok_or(Stat::UnknownKey)?;
    if epoch.is_none() {
        return Err(Stat::BadEpoch);
    }
    let [a, b, c, d, e, f] = option.tag;
    if u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) != tag & TAG_SENT {
        return Err(Stat::BadTag);
    }
    match use_tag(syn, &claim, tag, settings) {
        TagUse::First | TagUse::Again => Ok(()),
        TagUse::Replayed => Err(Stat::Replayed),
    }
}

/// The tag of `claim`; `None` when this node does not know its key.
#[inline(always)]
pub(crate) fn tag(claim: &TagClaim) -> Option<u64> {
    let slot = KEYS.get_ptr(u32::from(claim.key))?;
    // SAFETY: an array's element does not move while a program runs. If user space replaces the key meanwhile, the
    // program may read a mix of old and new, with which no tag verifies.
    let slot = unsafe { &*slot };
    (claim.key != 0 && slot.present == 1).then(|| claim.tag(slot.words))
}

/// Uses the tag of `claim` for the connection, or the knock, `syn`.
#[inline(always)]
pub(crate) fn use_tag(syn: &Syn, claim: &TagClaim, tag: u64, settings: &Settings) -> TagUse {
    let Some(set) = REPLAYS.get_ptr(replay::set_of(tag)) else { return TagUse::Replayed };
    let owner = replay::owner(&flow(syn), claim.epoch, settings.seed);
    // SAFETY: an array's element does not move; `exchange` changes its words atomically.
    unsafe { &*set }.claim(tag, owner, settings.epoch, exchange)
}

/// Whether a knock from the network of `src` has opened `function`.
#[inline(always)]
pub(crate) fn is_opened(src: IpWords, function: u32, now_ns: u64) -> bool {
    let key = OpenedKey { network: src.network(), function, pad: 0 };
    // SAFETY: one word, read in one access.
    unsafe { OPENED.get(key) }.is_some_and(|until_ns| *until_ns > now_ns)
}

/// Whether a function treats clients without a key differently from clients with one.
#[inline(always)]
pub(crate) const fn wants_key(entry: FunctionEntry) -> bool {
    entry.flags & (FUNCTION_AUTH_WAKE | FUNCTION_AUTH_CONNECT) != 0
}

/// Whether no function gets this port's connections.
#[inline(always)]
pub(crate) const fn is_none(entry: FunctionEntry) -> bool {
    entry.flags & FUNCTION_NONE != 0
}

/// The two ends of the connection that `syn` requests.
#[inline(always)]
pub(crate) const fn flow(syn: &Syn) -> PacketFlow {
    PacketFlow { src: syn.src, dst: syn.dst, src_port: syn.src_port, dst_port: syn.dst_port, pad: 0 }
}
