//! The maps, declared once for all programs, and the look-ups that several share.

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap};
use aya_ebpf::macros::btf_map;
use aya_ebpf::maps::lpm_trie::Key as Prefix;
use headstart_ebpf::event::{Addr, Counters, Stat, SynEvent};
use headstart_ebpf::maps::{
    ENTRIES_MAX, EVENTS_BYTES, FUNCTIONS_MAX, Flow, FunctionEntry, KEYS_MAX, KeySlot, LISTENERS_MAX,
    OpenedKey, PORT_WORDS, PortKey, REMEMBERED_MAX, SETTINGS_SOURCES, SOURCES_MAX, Settings, Source,
    TOLD_SLOTS, Told,
};
use headstart_ebpf::packet::options::Area;
use headstart_ebpf::packet::{IpWords, Syn};
use headstart_ebpf::replay::{SETS, Set};
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
pub(crate) static GLOBAL_GATE: Array<u64, 1> = Array::new();

#[btf_map]
pub(crate) static SKETCH: PerCpuArray<Sketch, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static TOLD: PerCpuArray<Told, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static REPLAYS: Array<Set, SETS> = Array::new();

#[btf_map]
pub(crate) static OPENED: LruHashMap<OpenedKey, u64, REMEMBERED_MAX> = LruHashMap::new();

#[btf_map]
pub(crate) static STEERED: LruHashMap<Flow, u32, REMEMBERED_MAX> = LruHashMap::new();

#[btf_map]
pub(crate) static LISTENERS: SockMap<LISTENERS_MAX> = SockMap::new();

#[btf_map]
pub(crate) static EVENTS_AUTH: RingBuf<SynEvent, EVENTS_BYTES> = RingBuf::new();

#[btf_map]
pub(crate) static EVENTS_OPEN: RingBuf<SynEvent, EVENTS_BYTES> = RingBuf::new();

#[btf_map]
pub(crate) static STATS: PerCpuArray<Counters, 1> = PerCpuArray::new();

/// Where the options of the SYN at hand are walked. Not on the stack, which is short.
#[btf_map]
pub(crate) static OPTIONS: PerCpuArray<Area, 1> = PerCpuArray::new();

/// Counts one `stat`.
#[inline(always)]
pub(crate) fn count(stat: Stat) {
    if let Some(counters) = STATS.get_ptr_mut(0) {
        // SAFETY: the array's element is this CPU's own, and programs that see packets do not nest on a CPU.
        unsafe { (*counters)[stat as usize] += 1 };
    }
}

/// Remembers a SYN to `function`, for the socket lookup on this CPU.
#[inline(always)]
pub(crate) fn tell(syn: &Syn, function: u32, settings: &Settings) {
    if let Some(told) = TOLD.get_ptr_mut(0) {
        let word = connection_word(syn, function, settings);
        // SAFETY: the array's element is this CPU's own, and programs that see packets do not nest on a CPU.
        unsafe { (*told)[word as usize & (TOLD_SLOTS - 1)] = word };
    }
}

/// Whether the SYN to `function` was remembered; once.
#[inline(always)]
pub(crate) fn was_told(syn: &Syn, function: u32, settings: &Settings) -> bool {
    let Some(told) = TOLD.get_ptr_mut(0) else { return false };
    let word = connection_word(syn, function, settings);
    // SAFETY: as in `tell`.
    let place = unsafe { &mut (*told)[word as usize & (TOLD_SLOTS - 1)] };
    let is_it = *place == word;
    if is_it {
        *place = 0;
    }
    is_it
}

/// Not the destination: the socket lookup sees the one after DNAT. The function is the same all the same.
#[inline(always)]
fn connection_word(syn: &Syn, function: u32, settings: &Settings) -> u64 {
    let [high, low] = syn.src.words();
    mix(high ^ low.rotate_left(32) ^ u64::from(function) << 16 ^ u64::from(syn.src_port), settings.seed)
}

/// The settings, or all zero.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    // SAFETY: an array's element stays where it is while a program runs. User space may replace it
    // meanwhile: settings of two moments are as good as those of one.
    SETTINGS.get_ptr(0).map(|settings| unsafe { &*settings })
}

/// Whether any function is on `port`.
#[inline(always)]
pub(crate) fn is_owned(port: u16) -> bool {
    PORTS.get(u32::from(port >> 6)).is_some_and(|word| word >> (port & 63) & 1 == 1)
}

/// The entry at an address and port, or else at the port on any address, with the function ID `id` or 0.
#[inline(always)]
pub(crate) fn entry(dst: IpWords, port: u16, id: u32) -> Option<FunctionEntry> {
    exactly(PortKey::exact(dst, port).with_id(id)).or_else(|| exactly(PortKey::any(port).with_id(id)))
}

/// The entry of one key.
#[inline(always)]
pub(crate) fn exactly(key: PortKey) -> Option<FunctionEntry> {
    // SAFETY: user space may replace an entry meanwhile; the worst outcome is an event for a function that
    // has just changed, which user space checks against its own state.
    unsafe { FUNCTIONS.get(key).copied() }
}

/// What the operator said of `src`, as the number of a [`Source`]; 0 for nothing.
#[inline(always)]
pub(crate) fn source(settings: &Settings, src: IpWords) -> u32 {
    if settings.flags & SETTINGS_SOURCES == 0 {
        return 0;
    }
    let [high, low] = src.words();
    let key = AlignedPrefix { pad: 0, bits: u128::BITS, high, low };
    // SAFETY: what follows `pad` is a prefix: packed, so without alignment.
    let key = unsafe { &*core::ptr::from_ref(&key).cast::<u8>().add(4).cast::<Prefix<Addr>>() };
    SOURCES.get(key).copied().unwrap_or(0)
}

/// A [`Prefix`] of an address, whose halves are aligned: the stack, unlike packets, allows nothing else.
#[repr(C)]
struct AlignedPrefix {
    pad: u32,
    bits: u32,
    high: u64,
    low: u64,
}

/// Whether `source` is to be ignored.
#[inline(always)]
pub(crate) const fn is_ignored(source: u32) -> bool {
    source == Source::Ignore as u32
}
