//! Layouts shared by the kernel program and user space: the ring's record, the maps' keys and values.
//!
//! Everything is `repr(C)`, native-endian, with padding spelled out as fields that are always zero: the
//! kernel compares map keys byte by byte, and ring records must not carry uninitialised memory. The object
//! is little-endian (`bpfel`), so user space must run on a little-endian machine.

use core::mem::size_of;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::packet::{IpWords, Syn};

/// Name of the XDP program (section `xdp.frags`) in the object.
pub const PROGRAM: &str = "headstart_syn";
/// Name of the hash map [`PortKey`] -> [`FunctionEntry`] that user space fills.
pub const MAP_FUNCTIONS: &str = "FUNCTIONS";
/// Name of the ring buffer of [`SynEvent`].
pub const MAP_EVENTS: &str = "EVENTS";
/// Name of the per-CPU array whose only element (index 0) is [`Counters`].
pub const MAP_STATS: &str = "STATS";

/// Most entries that [`MAP_FUNCTIONS`] holds; the loader may override it.
pub const FUNCTIONS_MAX: usize = 16_384;
/// Size of [`MAP_EVENTS`] in bytes: about 4,000 events of 56 bytes and an 8-byte header each.
pub const EVENTS_BYTES: usize = 256 * 1024;

/// An address as 16 bytes in network order; IPv4 is v4-mapped, `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
pub type Addr = [u8; 16];

/// What saw the connection attempt ([`SynEvent::kind`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// The XDP program saw a SYN.
    Syn = 1,
    /// The socket lookup saw a new connection (reserved for the `sk_lookup` program).
    Lookup = 2,
}

/// One record of [`MAP_EVENTS`]: a client has just asked for a connection to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SynEvent {
    /// When the program ran, in nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`).
    pub timestamp_ns: u64,
    /// The function's number, copied from [`FunctionEntry::function`].
    pub function: u32,
    /// The client's initial sequence number, host order.
    pub isn: u32,
    /// The client's address.
    pub src: Addr,
    /// The address the client asked for.
    pub dst: Addr,
    /// The client's port, host order.
    pub src_port: u16,
    /// The port the client asked for, host order.
    pub dst_port: u16,
    /// An [`EventKind`] as its number; see [`SynEvent::kind`].
    pub kind: u8,
    /// 4 or 6, as on the wire.
    pub ip_version: u8,
    /// Always zero.
    pub pad: [u8; 2],
}

/// Key of [`MAP_FUNCTIONS`]: where a function listens. Three aligned words, no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PortKey {
    /// The listener's address; all zero for "any address", of either IP version.
    addr: IpWords,
    /// The listener's port, host order.
    port: u64,
}

/// Value of [`MAP_FUNCTIONS`]: whose port it is, and whether its SYNs are worth an event.
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

/// Index into [`Counters`]. Every packet counts once in `Packets` and once in exactly one of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stat {
    /// Frames the program was given.
    Packets = 0,
    /// Frames whose headers contradict themselves or are cut off.
    Malformed = 1,
    /// Frames that start no connection: no TCP, no SYN, later fragments, impossible addresses.
    NotSyn = 2,
    /// SYNs to an address and port that no function owns.
    Unowned = 3,
    /// SYNs to a function marked [`FUNCTION_WARM`].
    Warm = 4,
    /// SYNs written to the ring.
    Event = 5,
    /// SYNs lost because the ring was full; the function's start then waits for the accept queue.
    RingFull = 6,
}

impl Stat {
    /// Every counter, in index order.
    pub const ALL: [Self; 7] = [
        Self::Packets,
        Self::Malformed,
        Self::NotSyn,
        Self::Unowned,
        Self::Warm,
        Self::Event,
        Self::RingFull,
    ];
}

/// One CPU's counters since the program was loaded, indexed by [`Stat`].
pub type Counters = [u64; Stat::ALL.len()];

/// Sums the per-CPU values of [`MAP_STATS`].
pub fn total<'a>(per_cpu: impl IntoIterator<Item = &'a Counters>) -> Counters {
    let mut sum = Counters::default();
    for counters in per_cpu {
        for (into, value) in sum.iter_mut().zip(counters) {
            *into = into.wrapping_add(*value);
        }
    }
    sum
}

const _: () = assert!(size_of::<SynEvent>() == SynEvent::SIZE && align_of::<SynEvent>() == 8);
const _: () = assert!(size_of::<PortKey>() == 24 && align_of::<PortKey>() == 8);
const _: () = assert!(size_of::<FunctionEntry>() == 8 && align_of::<FunctionEntry>() == 4);

impl SynEvent {
    /// Length of a record in bytes.
    pub const SIZE: usize = 56;

    /// The record for `syn`, seen now.
    #[inline(always)]
    pub fn new(syn: &Syn, function: u32, kind: EventKind, timestamp_ns: u64) -> Self {
        Self {
            timestamp_ns,
            function,
            isn: syn.isn,
            src: syn.src.octets(),
            dst: syn.dst.octets(),
            src_port: syn.src_port,
            dst_port: syn.dst_port,
            kind: kind as u8,
            ip_version: syn.ip_version,
            pad: [0; 2],
        }
    }

    /// Decodes a ring record of any alignment; `None` when its length is not [`SynEvent::SIZE`].
    pub fn from_bytes(record: &[u8]) -> Option<Self> {
        if record.len() != Self::SIZE {
            return None;
        }
        Some(Self {
            timestamp_ns: u64::from_ne_bytes(field(record, 0)?),
            function: u32::from_ne_bytes(field(record, 8)?),
            isn: u32::from_ne_bytes(field(record, 12)?),
            src: field(record, 16)?,
            dst: field(record, 32)?,
            src_port: u16::from_ne_bytes(field(record, 48)?),
            dst_port: u16::from_ne_bytes(field(record, 50)?),
            kind: *record.get(52)?,
            ip_version: *record.get(53)?,
            pad: field(record, 54)?,
        })
    }

    /// What saw it; `None` for a number this build does not know.
    pub fn kind(&self) -> Option<EventKind> {
        match self.kind {
            1 => Some(EventKind::Syn),
            2 => Some(EventKind::Lookup),
            _ => None,
        }
    }

    /// The client, IPv4 as IPv4.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.src).to_canonical(), self.src_port)
    }

    /// The address and port the client asked for, IPv4 as IPv4.
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.dst).to_canonical(), self.dst_port)
    }
}

/// `N` bytes of `record` from `at`.
fn field<const N: usize>(record: &[u8], at: usize) -> Option<[u8; N]> {
    record.get(at..)?.first_chunk().copied()
}

impl PortKey {
    /// The key of one address and port.
    #[inline(always)]
    pub const fn exact(addr: IpWords, port: u16) -> Self {
        Self { addr, port: port as u64 }
    }

    /// The key of a port on any address.
    #[inline(always)]
    pub const fn any(port: u16) -> Self {
        Self::exact(IpWords::ZERO, port)
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
