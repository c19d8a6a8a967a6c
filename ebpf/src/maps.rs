//! The contract between the kernel programs and user space: names of programs and maps, keys and values.
//!
//! The layout rules of [`crate::event`] apply. A change of a layout here or there changes what a pinned map holds:
//! raise [`LAYOUT`] with it.

use core::mem::size_of;
use core::net::{IpAddr, SocketAddr};

use crate::event::Addr;
use crate::packet::IpWords;

/// Number of this layout of maps and events. It is part of the name under which maps are pinned, so that an agent
/// never reads maps of another layout.
pub const LAYOUT: u32 = 3;

/// The XDP program (section `xdp.frags`).
pub const PROGRAM_XDP: &str = "headstart_syn";
/// The tcx program, for interfaces that refuse XDP.
pub const PROGRAM_TCX: &str = "headstart_tcx";
/// The `sk_lookup` program.
pub const PROGRAM_LOOKUP: &str = "headstart_lookup";
/// The socket filter on the listeners of functions that are closed to unauthenticated clients.
pub const PROGRAM_GATE: &str = "headstart_gate";

/// An XDP program that only passes packets; benches subtract its cost.
pub const PROGRAM_FLOOR: &str = "headstart_floor";

/// Hash: [`PortKey`] -> [`FunctionEntry`].
pub const FUNCTIONS: &str = "FUNCTIONS";
/// Array of 1,024 `u64`: bit `port % 64` of word `port / 64` is set when the port has an entry in [`FUNCTIONS`].
/// For most SYNs this is the only look-up.
pub const PORTS: &str = "PORTS";
/// Array with one [`Settings`].
pub const SETTINGS: &str = "SETTINGS";
/// Array of [`KEYS_MAX`] [`KeySlot`], by key number; number 0 stays empty.
pub const KEYS: &str = "KEYS";
/// LPM trie: prefix length in bits (up to 128, IPv4 as v4-mapped) and [`Addr`] -> `u32`, a [`SourceRule`].
pub const SOURCES: &str = "SOURCES";
/// Array of [`FUNCTIONS_MAX`] `u64`: the rate limit of each function's open events, see [`crate::rate_limit`].
pub const FUNCTION_GATES: &str = "FUNCTION_GATES";
/// Array with two `u64`: the rate limits of the node's open events, [`GATE_OPEN`] and [`GATE_ALLOWED`].
pub const GLOBAL_GATE: &str = "GLOBAL_GATE";
/// Of sources of which nothing is known.
pub const GATE_OPEN: u32 = 0;
/// Of sources that the operator allows, which may be forged.
pub const GATE_ALLOWED: u32 = 1;
/// Per-CPU array with one [`crate::sketch::Sketch`]: the number of open events of each source.
pub const SKETCH: &str = "SKETCH";
/// Array of [`crate::replay::SETS`] [`crate::replay::ReplaySet`]: the connection that first used each tag.
pub const REPLAYS: &str = "REPLAYS";
/// Per-CPU array with one [`ReportedSyns`]: SYNs that the XDP or tcx program has just reported.
pub const TOLD: &str = "TOLD";
/// LRU hash: [`OpenedKey`] -> `u64`, the end of the time for which a knock opens the function (`CLOCK_MONOTONIC`, ns).
pub const OPENED: &str = "OPENED";
/// LRU hash: [`PacketFlow`] -> `u32`, the number of the function that the connection's SYN named.
pub const STEERED: &str = "STEERED";
/// Sock map of [`LISTENERS_MAX`] listening sockets, by function number; the lobby is at [`LOBBY`].
pub const LISTENERS: &str = "LISTENERS";
/// Ring of [`crate::event::SynEvent`] of authenticated clients.
pub const EVENTS_AUTHENTICATED: &str = "EVENTS_AUTH";
/// Ring of [`crate::event::SynEvent`] of all other clients.
pub const EVENTS_OPEN: &str = "EVENTS_OPEN";
/// Per-CPU array with one [`crate::event::SensorCounters`].
pub const STATS: &str = "STATS";

/// Most entries that [`FUNCTIONS`] holds. A function has at most three: by port, by port and ID, by ID.
pub const ENTRIES_MAX: usize = 65_536;
/// Function numbers are below this.
pub const FUNCTIONS_MAX: usize = 16_384;
/// Words of [`PORTS`].
pub const PORT_WORDS: usize = 65_536 / 64;
/// Key numbers are below this: they are four bits in the option.
pub const KEYS_MAX: usize = 16;
/// Most prefixes in [`SOURCES`].
pub const SOURCES_MAX: usize = 4_096;
/// Most entries of [`OPENED`] and [`STEERED`] each; the kernel evicts the least recently used.
pub const REMEMBERED_MAX: usize = 65_536;
/// Sockets in [`LISTENERS`].
pub const LISTENERS_MAX: usize = FUNCTIONS_MAX + 1;
/// Index in [`LISTENERS`] of the socket that answers ignored sources while their function is cold.
pub const LOBBY: u32 = FUNCTIONS_MAX as u32;
/// Size of each ring in bytes: about 4,000 events of 56 bytes and an 8-byte header each.
pub const EVENTS_BYTES: usize = 256 * 1024;

/// Key of [`FUNCTIONS`]: a listener's address and port, a function's ID, or both. Three aligned words, no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PortKey {
    /// The listener's address; all zero for "any address", of either IP version.
    addr: IpWords,
    /// The listener's port, host order; 0 for a look-up by ID alone, which a knock makes.
    port: u32,
    /// The function's ID; 0 for the function that gets the port's connections without an ID.
    id: u32,
}

/// Value of [`FUNCTIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FunctionEntry {
    /// The function's number, chosen by user space.
    pub function: u32,
    /// Bits such as [`FUNCTION_WARM`].
    pub flags: u32,
}

/// [`FunctionEntry::flags`]: an instance is running, so the program counts a SYN and raises no event.
pub const FUNCTION_WARM: u32 = 1;
/// [`FunctionEntry::flags`]: look for the function ID option: the port is shared, or there are keys.
pub const FUNCTION_OPTION: u32 = 2;
/// [`FunctionEntry::flags`]: unauthenticated SYNs raise no event (`require_auth = "wake"`).
pub const FUNCTION_AUTH_WAKE: u32 = 4;
/// [`FunctionEntry::flags`]: unauthenticated SYNs are dropped (`require_auth = "connect"`).
pub const FUNCTION_AUTH_CONNECT: u32 = 8;
/// [`FunctionEntry::flags`]: no function gets this port's connections without an ID; `function` has no meaning.
pub const FUNCTION_NONE: u32 = 16;

/// Value of [`SETTINGS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// The current epoch: Unix time in seconds / [`crate::auth::EPOCH_SECONDS`]. User space updates it.
    pub epoch: u64,
    /// Random, so that a client cannot choose sources that share cells of [`SKETCH`].
    pub seed: u64,
    /// Rate limit of one function's open events: one event per interval, `burst_ns / interval_ns + 1` at once.
    pub function_interval_ns: u64,
    /// See `function_interval_ns`.
    pub function_burst_ns: u64,
    /// Rate limit of the node's open events.
    pub global_interval_ns: u64,
    /// See `global_interval_ns`.
    pub global_burst_ns: u64,
    /// The time for which a knock opens a closed function to its source, in nanoseconds.
    pub opened_ns: u64,
    /// Open events of one source per window ([`crate::sketch::WINDOW_SHIFT`]) and CPU.
    pub source_limit: u32,
    /// UDP port of knocks, host order; 0 for none.
    pub knock_port: u16,
    /// Always zero.
    pub pad: u16,
    /// Bits such as [`SETTINGS_SOURCES`].
    pub flags: u64,
}

/// [`Settings::flags`]: [`SOURCES`] is not empty.
pub const SETTINGS_SOURCES: u64 = 1;
/// [`Settings::flags`]: [`LISTENERS`] has a socket at [`LOBBY`].
pub const SETTINGS_LOBBY: u64 = 2;

/// Value of [`KEYS`]. No `Debug`, because it is a secret.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KeySlot {
    /// The key, see [`crate::auth::Key`].
    pub words: [u64; 2],
    /// 1 when this slot holds a key, else 0.
    pub present: u64,
}

/// An operator's rule for a range of sources (values of [`SOURCES`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SourceRule {
    /// No budget applies.
    Allow = 1,
    /// These sources start no function and keep none awake: for health checkers.
    Ignore = 2,
}

/// The two ends of a connection, the client first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PacketFlow {
    /// The client's address.
    pub src: IpWords,
    /// The destination address.
    pub dst: IpWords,
    /// The client's port, host order.
    pub src_port: u16,
    /// The destination port, host order.
    pub dst_port: u16,
    /// Always zero.
    pub pad: u32,
}

/// Key of [`OPENED`]: a source network and the function that is open to it. IPv6 sources count by their /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OpenedKey {
    /// The source network, from [`IpWords::network`].
    pub network: IpWords,
    /// The function's number.
    pub function: u32,
    /// Always zero.
    pub pad: u32,
}

/// Value of [`TOLD`]: one word for each SYN, at the index in its lowest bits. Moments later the same CPU sees the SYN
/// again in the socket lookup, and must neither announce it twice nor charge it to the budgets twice.
pub type ReportedSyns = [u64; REPORTED_SLOTS];

/// Words of [`ReportedSyns`], a power of two: four times the packets that a driver delivers at once (64).
pub const REPORTED_SLOTS: usize = 256;

const _: () = assert!(size_of::<PortKey>() == 24 && align_of::<PortKey>() == 8);
const _: () = assert!(size_of::<FunctionEntry>() == 8 && align_of::<FunctionEntry>() == 4);
const _: () = assert!(size_of::<Settings>() == 72 && align_of::<Settings>() == 8);
const _: () = assert!(size_of::<KeySlot>() == 24 && align_of::<KeySlot>() == 8);
const _: () = assert!(size_of::<PacketFlow>() == 40 && align_of::<PacketFlow>() == 8);
const _: () = assert!(size_of::<OpenedKey>() == 24 && align_of::<OpenedKey>() == 8);

impl PortKey {
    /// The key of one address and port.
    #[inline(always)]
    pub const fn exact(addr: IpWords, port: u16) -> Self {
        Self { addr, port: port as u32, id: 0 }
    }

    /// The key of a port on any address.
    #[inline(always)]
    pub const fn any(port: u16) -> Self {
        Self::exact(IpWords::ZERO, port)
    }

    /// The key of a function's ID alone.
    #[inline(always)]
    pub const fn id(id: u32) -> Self {
        Self { addr: IpWords::ZERO, port: 0, id }
    }

    /// The same address and port, for connections whose SYN names the function `id`.
    #[inline(always)]
    pub const fn with_id(self, id: u32) -> Self {
        Self { id, ..self }
    }

    /// The port, host order; 0 for an ID alone.
    #[inline(always)]
    pub const fn port(self) -> u16 {
        self.port as u16
    }

    /// The key of a listener: `0.0.0.0` and `::` become "any address".
    pub fn listener(listen: SocketAddr) -> Self {
        match listen.ip() {
            ip if ip.is_unspecified() => Self::any(listen.port()),
            IpAddr::V4(ip) => Self::exact(ip.to_ipv6_mapped().octets().into(), listen.port()),
            IpAddr::V6(ip) => Self::exact(ip.octets().into(), listen.port()),
        }
    }
}

impl FunctionEntry {
    /// Whether an instance is running ([`FUNCTION_WARM`]).
    #[inline(always)]
    pub const fn is_warm(self) -> bool {
        self.flags & FUNCTION_WARM != 0
    }
}

/// The key of [`SOURCES`] for the first `bits` of `address`: the prefix length as v4-mapped, and the octets.
pub fn source_prefix(address: IpAddr, bits: u8) -> (u32, Addr) {
    match address {
        IpAddr::V4(v4) => (96 + u32::from(bits), v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => (u32::from(bits), v6.octets()),
    }
}
