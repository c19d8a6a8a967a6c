//! The contract between the kernel programs and user space: names of programs and maps, keys and values.
//!
//! Same layout rules as [`crate::event`]. A change here, or of the events, changes what a pinned map holds:
//! raise [`LAYOUT`] with it.

use core::mem::size_of;
use core::net::{IpAddr, SocketAddr};

use crate::event::Addr;
use crate::packet::IpWords;

/// Number of this layout of maps and events. Part of the name under which maps are pinned, so that an agent
/// never reads those of another layout.
pub const LAYOUT: u32 = 2;

/// The XDP program (section `xdp.frags`).
pub const PROGRAM_XDP: &str = "headstart_syn";
/// The tcx program, where XDP is refused.
pub const PROGRAM_TCX: &str = "headstart_tcx";
/// The `sk_lookup` program.
pub const PROGRAM_LOOKUP: &str = "headstart_lookup";
/// The socket filter on the listeners of functions that are closed to unauthenticated clients.
pub const PROGRAM_GATE: &str = "headstart_gate";

/// An XDP program that only passes packets, for benches.
pub const PROGRAM_FLOOR: &str = "headstart_floor";

/// Hash: [`PortKey`] -> [`FunctionEntry`].
pub const FUNCTIONS: &str = "FUNCTIONS";
/// Array of 1,024 `u64`: bit `port % 64` of word `port / 64` is set when the port has an entry in
/// [`FUNCTIONS`]. Most SYNs end here.
pub const PORTS: &str = "PORTS";
/// Array with one [`Settings`].
pub const SETTINGS: &str = "SETTINGS";
/// Array of [`KEYS_MAX`] [`KeySlot`]; number 0 stays empty.
pub const KEYS: &str = "KEYS";
/// LPM trie: prefix length in bits (up to 128, IPv4 as v4-mapped) and [`Addr`] -> `u32`, a [`Source`].
pub const SOURCES: &str = "SOURCES";
/// Array of [`FUNCTIONS_MAX`] `u64`: the gate of each function's open events, see [`crate::gate`].
pub const FUNCTION_GATES: &str = "FUNCTION_GATES";
/// Array with one `u64`: the gate of the node's open events.
pub const GLOBAL_GATE: &str = "GLOBAL_GATE";
/// Per-CPU array with one [`crate::sketch::Sketch`]: open events by source.
pub const SKETCH: &str = "SKETCH";
/// Array of [`crate::replay::SETS`] [`crate::replay::Set`]: which connection used a tag first.
pub const REPLAYS: &str = "REPLAYS";
/// Per-CPU array with one [`Told`]: SYNs that the XDP or tcx program has dealt with just now.
pub const TOLD: &str = "TOLD";
/// LRU hash: [`OpenedKey`] -> `u64`, until when (`CLOCK_MONOTONIC`, ns) a knock opens the function.
pub const OPENED: &str = "OPENED";
/// LRU hash: [`Flow`] -> `u32`, the number of the function that the connection's SYN named.
pub const STEERED: &str = "STEERED";
/// Sock map of [`LISTENERS_MAX`] listening sockets: by function number, and the lobby at [`LOBBY`].
pub const LISTENERS: &str = "LISTENERS";
/// Ring of [`crate::event::SynEvent`] for authenticated clients.
pub const EVENTS_AUTHENTICATED: &str = "EVENTS_AUTH";
/// Ring of [`crate::event::SynEvent`] for everybody else.
pub const EVENTS_OPEN: &str = "EVENTS_OPEN";
/// Per-CPU array with one [`crate::event::Counters`].
pub const STATS: &str = "STATS";

/// Most entries that [`FUNCTIONS`] holds. A function has at most three: its port, port and ID, ID.
pub const ENTRIES_MAX: usize = 65_536;
/// Function numbers are below this.
pub const FUNCTIONS_MAX: usize = 16_384;
/// Words of [`PORTS`].
pub const PORT_WORDS: usize = 65_536 / 64;
/// Key numbers are below this: they are four bits in the option.
pub const KEYS_MAX: usize = 16;
/// Most prefixes in [`SOURCES`].
pub const SOURCES_MAX: usize = 4_096;
/// Most entries of [`OPENED`] and [`STEERED`] each; the least recently used goes first.
pub const REMEMBERED_MAX: usize = 65_536;
/// Sockets in [`LISTENERS`].
pub const LISTENERS_MAX: usize = FUNCTIONS_MAX + 1;
/// Index in [`LISTENERS`] of the socket that answers ignored sources while their function is cold.
pub const LOBBY: u32 = FUNCTIONS_MAX as u32;
/// Size of each ring in bytes: about 4,000 events of 56 bytes and an 8-byte header each.
pub const EVENTS_BYTES: usize = 256 * 1024;

/// Key of [`FUNCTIONS`]: where a function listens, or which ID it has. Three aligned words, no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PortKey {
    /// The listener's address; all zero for "any address", of either IP version.
    addr: IpWords,
    /// The listener's port, host order; 0 for a function looked up by its ID alone, as a knock does.
    port: u32,
    /// The function's ID; 0 for whoever gets the port's connections without one.
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

/// [`FunctionEntry::flags`]: an instance is running, so a SYN is counted and raises no event.
pub const FUNCTION_WARM: u32 = 1;
/// [`FunctionEntry::flags`]: look for the function ID option: the port is shared, or there are keys.
pub const FUNCTION_OPTION: u32 = 2;
/// [`FunctionEntry::flags`]: unauthenticated SYNs raise no event (`require_auth = "wake"`).
pub const FUNCTION_AUTH_WAKE: u32 = 4;
/// [`FunctionEntry::flags`]: unauthenticated SYNs are dropped (`require_auth = "connect"`).
pub const FUNCTION_AUTH_CONNECT: u32 = 8;
/// [`FunctionEntry::flags`]: nobody gets this port's connections without an ID; `function` means nothing.
pub const FUNCTION_NONE: u32 = 16;

/// Value of [`SETTINGS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// The current epoch: Unix time in seconds / [`crate::auth::EPOCH_SECONDS`]. User space keeps it.
    pub epoch: u64,
    /// Random, so that nobody can choose sources that share cells of [`SKETCH`].
    pub seed: u64,
    /// Gate of one function's open events: one event per interval, `burst_ns / interval_ns + 1` at once.
    pub function_interval_ns: u64,
    /// See `function_interval_ns`.
    pub function_burst_ns: u64,
    /// Gate of the node's open events.
    pub global_interval_ns: u64,
    /// See `global_interval_ns`.
    pub global_burst_ns: u64,
    /// How long a knock opens a closed function to its source.
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

/// Value of [`KEYS`]. No `Debug`: it is a secret.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KeySlot {
    /// The key, see [`crate::auth::Key`].
    pub words: [u64; 2],
    /// 1 when there is a key.
    pub present: u64,
}

/// What an operator said of a range of sources (values of [`SOURCES`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Source {
    /// No budget applies.
    Allow = 1,
    /// Neither wakes nor keeps awake: health checkers.
    Ignore = 2,
}

/// The two ends of a connection, the client first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// The client's address.
    pub src: IpWords,
    /// The address the client asked for.
    pub dst: IpWords,
    /// The client's port, host order.
    pub src_port: u16,
    /// The port the client asked for, host order.
    pub dst_port: u16,
    /// Always zero.
    pub pad: u32,
}

/// Key of [`OPENED`]: to whom which function is open. IPv6 sources count by their /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OpenedKey {
    /// The source, as [`IpWords::network`] gives it.
    pub network: IpWords,
    /// The function's number.
    pub function: u32,
    /// Always zero.
    pub pad: u32,
}

/// Value of [`TOLD`]: one word for each SYN, in the place that its lowest bits name. The same CPU sees the SYN
/// again in the socket lookup moments later, and must neither announce it twice nor take it from budgets twice.
pub type Told = [u64; TOLD_SLOTS];

/// Places in [`Told`], a power of two: some times the packets that a driver hands over in one go (64).
pub const TOLD_SLOTS: usize = 256;

const _: () = assert!(size_of::<PortKey>() == 24 && align_of::<PortKey>() == 8);
const _: () = assert!(size_of::<FunctionEntry>() == 8 && align_of::<FunctionEntry>() == 4);
const _: () = assert!(size_of::<Settings>() == 72 && align_of::<Settings>() == 8);
const _: () = assert!(size_of::<KeySlot>() == 24 && align_of::<KeySlot>() == 8);
const _: () = assert!(size_of::<Flow>() == 40 && align_of::<Flow>() == 8);
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

    /// The same place, for connections whose SYN names the function `id`.
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

/// The prefix length that [`SOURCES`] wants for `bits` of an address that was written as IPv4 or IPv6.
pub fn source_prefix(address: IpAddr, bits: u8) -> (u32, Addr) {
    match address {
        IpAddr::V4(v4) => (96 + u32::from(bits), v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => (u32::from(bits), v6.octets()),
    }
}
