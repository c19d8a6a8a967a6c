//! What the kernel programs send to user space: the record of the rings, and the counters.
//!
//! Every type is `repr(C)` and native-endian. Padding is an explicit field that is always zero, because the kernel
//! compares map keys byte by byte, and because ring records must not carry uninitialised memory. The object is
//! little-endian (`bpfel`), so user space must run on a little-endian machine.

use core::mem::size_of;
use core::net::{Ipv6Addr, SocketAddr};

use crate::packet::Syn;

/// An address as 16 bytes in network order; IPv4 is v4-mapped, `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
pub type Addr = [u8; 16];

/// Which program saw the connection attempt ([`SynEvent::kind`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// The XDP or tcx program saw a SYN.
    Syn = 1,
    /// The socket lookup saw a new connection. It does not know the sequence number: `isn` is 0.
    Lookup = 2,
    /// A valid knock: `dst_port` is the knock's port, `isn` is 0.
    Knock = 3,
}

/// [`SynEvent::flags`]: the packet proved a key that this node knows.
pub const AUTHENTICATED: u8 = 1;

/// One record of the rings: a client asks for a connection to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SynEvent {
    /// The time at which the program ran, in nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`).
    pub timestamp_ns: u64,
    /// The function's number, copied from [`crate::maps::FunctionEntry::function`].
    pub function: u32,
    /// The client's initial sequence number, host order.
    pub isn: u32,
    /// The client's address.
    pub src: Addr,
    /// The destination address.
    pub dst: Addr,
    /// The client's port, host order.
    pub src_port: u16,
    /// The destination port, host order.
    pub dst_port: u16,
    /// The number of an [`EventKind`]; see [`SynEvent::kind`].
    pub kind: u8,
    /// 4 or 6, as on the wire.
    pub ip_version: u8,
    /// Bits such as [`AUTHENTICATED`].
    pub flags: u8,
    /// Always zero.
    pub pad: u8,
}

/// Index into [`SensorCounters`].
///
/// Each frame of the XDP or tcx program counts once in `Packets`, and once in exactly one of the counters up to
/// `KnockReplayed`. The counters after `KnockReplayed` count in addition, and serve the other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stat {
    /// Frames that a program received.
    Packets,
    /// Frames whose headers contradict themselves or are cut off.
    Malformed,
    /// Frames that start no connection: no TCP, no SYN, later fragments, impossible addresses.
    NotSyn,
    /// SYNs to an address and port that no function owns.
    Unowned,
    /// SYNs to a function with a running instance ([`crate::maps::FUNCTION_WARM`]).
    Warm,
    /// Authenticated SYNs written to their ring.
    Authenticated,
    /// Open SYNs written to their ring.
    Event,
    /// Authenticated SYNs and knocks lost because their ring was full. Such a knock is still consumed, and still
    /// opens its function.
    AuthenticatedRingFull,
    /// SYNs lost because the ring was full; the function then starts when its accept queue becomes readable.
    RingFull,
    /// SYNs from a source that the operator ignores.
    Ignored,
    /// Unauthenticated SYNs, passed without an event, to a function that starts early only for authenticated ones.
    Unauthenticated,
    /// Unauthenticated SYNs, dropped, to a function that is closed to them.
    Refused,
    /// Open SYNs over the budget of their source.
    SourceBudget,
    /// Open SYNs over the budget of their function.
    FunctionBudget,
    /// Open SYNs over the budget of the node.
    GlobalBudget,
    /// Valid knocks; consumed.
    Knock,
    /// Packets to the knock port that hold no valid knock; passed.
    KnockInvalid,
    /// Knocks that arrived before; consumed.
    KnockReplayed,

    /// Tags that do not match.
    BadTag,
    /// Tags of a key that this node does not know.
    UnknownKey,
    /// Tags of an epoch outside the three accepted ones.
    BadEpoch,
    /// Tags that another connection has used.
    Replayed,
    /// Options of our kind and experiment with another length or version, or cut off.
    BadOption,
    /// Connections that the socket lookup gave to the function that their SYN named.
    Steered,
    /// Connections of ignored sources that the socket lookup gave to the agent's lobby instead of a cold function.
    Lobby,
    /// Lookups for a cold function, written to the ring.
    LookupEvent,
    /// Lookups over one of the budgets.
    LookupBudget,
    /// Lookups lost because the ring was full.
    LookupRingFull,
    /// Unauthenticated SYNs that a listener's own filter dropped.
    GateRefused,
}

impl Stat {
    /// Every counter, in index order.
    pub const ALL: [Self; 29] = [
        Self::Packets,
        Self::Malformed,
        Self::NotSyn,
        Self::Unowned,
        Self::Warm,
        Self::Authenticated,
        Self::Event,
        Self::AuthenticatedRingFull,
        Self::RingFull,
        Self::Ignored,
        Self::Unauthenticated,
        Self::Refused,
        Self::SourceBudget,
        Self::FunctionBudget,
        Self::GlobalBudget,
        Self::Knock,
        Self::KnockInvalid,
        Self::KnockReplayed,
        Self::BadTag,
        Self::UnknownKey,
        Self::BadEpoch,
        Self::Replayed,
        Self::BadOption,
        Self::Steered,
        Self::Lobby,
        Self::LookupEvent,
        Self::LookupBudget,
        Self::LookupRingFull,
        Self::GateRefused,
    ];
}

/// One CPU's counters since the maps were made, indexed by [`Stat`].
pub type SensorCounters = [u64; Stat::ALL.len()];

/// Sums the per-CPU values of [`crate::maps::STATS`].
pub fn total<'a>(per_cpu: impl IntoIterator<Item = &'a SensorCounters>) -> SensorCounters {
    let mut sum = SensorCounters::default();
    for counters in per_cpu {
        for (into, value) in sum.iter_mut().zip(counters) {
            *into = into.wrapping_add(*value);
        }
    }
    sum
}

const _: () = assert!(size_of::<SynEvent>() == SynEvent::SIZE && align_of::<SynEvent>() == 8);

impl SynEvent {
    /// Length of a record in bytes.
    pub const SIZE: usize = 56;

    /// The record of `syn`.
    #[inline(always)]
    pub fn new(syn: &Syn, function: u32, kind: EventKind, flags: u8, timestamp_ns: u64) -> Self {
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
            flags,
            pad: 0,
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
            flags: *record.get(54)?,
            pad: *record.get(55)?,
        })
    }

    /// Which program saw it; `None` for a number that this build does not know.
    pub fn kind(&self) -> Option<EventKind> {
        match self.kind {
            1 => Some(EventKind::Syn),
            2 => Some(EventKind::Lookup),
            3 => Some(EventKind::Knock),
            _ => None,
        }
    }

    /// Whether the packet proved a key ([`AUTHENTICATED`]).
    pub fn is_authenticated(&self) -> bool {
        self.flags & AUTHENTICATED != 0
    }

    /// The client's address and port; an IPv4 address as IPv4.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.src).to_canonical(), self.src_port)
    }

    /// The destination address and port; an IPv4 address as IPv4.
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.dst).to_canonical(), self.dst_port)
    }
}

/// `N` bytes of `record` from `at`.
fn field<const N: usize>(record: &[u8], at: usize) -> Option<[u8; N]> {
    record.get(at..)?.first_chunk().copied()
}
