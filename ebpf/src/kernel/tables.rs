//! The maps of all programs, and the look-ups that several programs share.

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap};
use aya_ebpf::macros::btf_map;
use aya_ebpf::maps::lpm_trie::Key as Prefix;
use headstart_ebpf::event::{Addr, SensorCounters, Stat, SynEvent};
use headstart_ebpf::maps::{
    ENTRIES_MAX, EVENTS_BYTES, FUNCTIONS_MAX, FunctionEntry, KEYS_MAX, KeySlot, LISTENERS_MAX, OpenedKey,
    PORT_WORDS, PacketFlow, PortKey, REMEMBERED_MAX, REPORTED_SLOTS, ReportedSyns, SETTINGS_SOURCES,
    SOURCES_MAX, Settings, SourceRule,
};
use headstart_ebpf::packet::options::OptionArea;
use headstart_ebpf::packet::{IpWords, Syn};
use headstart_ebpf::replay::{ReplaySet, SETS};
use headstart_ebpf::sketch::{Sketch, mix};

#[btf_map]
pub(crate) static FUNCTIONS: HashMap<PortKey, FunctionEntry, ENTRIES_MAX> = HashMap::new();

#[btf_map]
pub(crate) static PORTS: Array<u64, PORT_WORDS> = Array::new();

#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map]
pub(crate) static KEYS: Array<KeySlot, KEYS_MAX> = Array::new();

#[btf_map]
pub(crate) static SOURCES: LpmTrie<Addr, u32, SOURCES_MAX> = LpmTrie::new();

#[btf_map]
pub(crate) static FUNCTION_GATES: Array<u64, FUNCTIONS_MAX> = Array::new();

#[btf_map]
pub(crate) static GLOBAL_GATE: Array<u64, 2> = Array::new();

#[btf_map]
pub(crate) static SKETCH: PerCpuArray<Sketch, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static TOLD: PerCpuArray<ReportedSyns, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static REPLAYS: Array<ReplaySet, SETS> = Array::new();

#[btf_map]
pub(crate) static OPENED: LruHashMap<OpenedKey, u64, REMEMBERED_MAX> = LruHashMap::new();

#[btf_map]
pub(crate) static STEERED: LruHashMap<PacketFlow, u32, REMEMBERED_MAX> = LruHashMap::new();

#[btf_map]
pub(crate) static LISTENERS: SockMap<LISTENERS_MAX> = SockMap::new();

#[btf_map]
pub(crate) static EVENTS_AUTH: RingBuf<SynEvent, EVENTS_BYTES> = RingBuf::new();

#[btf_map]
pub(crate) static EVENTS_OPEN: RingBuf<SynEvent, EVENTS_BYTES> = RingBuf::new();

#[btf_map]
pub(crate) static STATS: PerCpuArray<SensorCounters, 1> = PerCpuArray::new();

/// A copy of the options of the current SYN; too long for the stack.
#[btf_map]
pub(crate) static OPTIONS: PerCpuArray<OptionArea, 1> = PerCpuArray::new();

/// Forgets where an earlier connection with these two ends went, unless it went to `function`. Whether it did.
#[inline(always)]
pub(crate) fn forget_other(flow: PacketFlow, function: u32) -> bool {
    // SAFETY: one word, read in one access.
    let is_other = unsafe { STEERED.get(flow) }.is_some_and(|steered| *steered != function);
    if is_other {
        // If another program has removed it meanwhile, it is gone all the same.
        let _gone = STEERED.remove(flow);
    }
    is_other
}

/// Counts one `stat`.
#[inline(always)]
pub(crate) fn count(stat: Stat) {
    if let Some(counters) = STATS.get_ptr_mut(0) {
        // SAFETY: the array's element is this CPU's own, and programs that see packets do not nest on a CPU.
        unsafe { (*counters)[stat as usize] += 1 };
    }
}

/// Remembers that a SYN to `function` was reported, for the socket lookup on this CPU.
#[inline(always)]
pub(crate) fn remember_reported(syn: &Syn, function: u32, settings: &Settings) {
    if let Some(reported) = TOLD.get_ptr_mut(0) {
        let word = connection_word(syn, function, settings);
        // SAFETY: the array's element is this CPU's own, and programs that see packets do not nest on a CPU.
        unsafe { (*reported)[word as usize & (REPORTED_SLOTS - 1)] = word };
    }
}

/// Whether [`remember_reported`] has remembered the SYN to `function`. Forgets it.
#[inline(always)]
pub(crate) fn was_reported(syn: &Syn, function: u32, settings: &Settings) -> bool {
    let Some(reported) = TOLD.get_ptr_mut(0) else { return false };
    let word = connection_word(syn, function, settings);
    // SAFETY: as in `remember_reported`.
    let slot = unsafe { &mut (*reported)[word as usize & (REPORTED_SLOTS - 1)] };
    let is_reported = *slot == word;
    if is_reported {
        *slot = 0;
    }
    is_reported
}

/// The word of a connection. It leaves out the destination, which the socket lookup sees after DNAT; the function is
/// the same in both programs.
#[inline(always)]
fn connection_word(syn: &Syn, function: u32, settings: &Settings) -> u64 {
    let [high, low] = syn.src.words();
    mix(high ^ low.rotate_left(32) ^ u64::from(function) << 16 ^ u64::from(syn.src_port), settings.seed)
}

/// The settings; all zero until user space has written them.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    // SAFETY: an array's element does not move while a program runs. User space may replace it meanwhile; a mix of
    // old and new settings does no harm.
    SETTINGS.get_ptr(0).map(|settings| unsafe { &*settings })
}

/// Whether any function listens on `port`.
#[inline(always)]
pub(crate) fn is_owned(port: u16) -> bool {
    PORTS.get(u32::from(port >> 6)).is_some_and(|word| word >> (port & 63) & 1 == 1)
}

/// The entry of an address and port, or else of the port on any address, for the function ID `id` (0 for none).
#[inline(always)]
pub(crate) fn entry(dst: IpWords, port: u16, id: u32) -> Option<FunctionEntry> {
    exact_entry(PortKey::exact(dst, port).with_id(id)).or_else(|| exact_entry(PortKey::any(port).with_id(id)))
}

/// The entry of one key.
#[inline(always)]
pub(crate) fn exact_entry(key: PortKey) -> Option<FunctionEntry> {
    // SAFETY: user space may replace an entry meanwhile. The worst outcome is an event for a function that has just
    // changed; user space checks each event against its own state.
    unsafe { FUNCTIONS.get(key).copied() }
}

/// The operator's rule for `src`, as the number of a [`SourceRule`]; 0 for none.
#[inline(always)]
pub(crate) fn source_rule(settings: &Settings, src: IpWords) -> u32 {
    if settings.flags & SETTINGS_SOURCES == 0 {
        return 0;
    }
    let [high, low] = src.words();
    let key = AlignedPrefix { pad: 0, bits: u128::BITS, high, low };
    // SAFETY: a prefix follows `pad`; it is packed, so it needs no alignment.
    let key = unsafe { &*core::ptr::from_ref(&key).cast::<u8>().add(4).cast::<Prefix<Addr>>() };
    SOURCES.get(key).copied().unwrap_or(0)
}

/// A [`Prefix`] of an address with aligned halves: the verifier allows only aligned access to the stack.
#[repr(C)]
struct AlignedPrefix {
    pad: u32,
    bits: u32,
    high: u64,
    low: u64,
}

/// Whether the rule is to ignore the source.
#[inline(always)]
pub(crate) const fn is_ignored(rule: u32) -> bool {
    rule == SourceRule::Ignore as u32
}
