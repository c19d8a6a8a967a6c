//! The two IP headers: the position of the TCP or UDP header, and the addresses.

use super::{Bytes, IpPacket, Skip};
use crate::event::Addr;

/// IPv4 (RFC 791, 3.1).
const V4_LEN: usize = 20;
const V4_SOURCE: usize = 12;
const V4_FRAGMENT_OFFSET: u16 = 0x1fff;

/// IPv6 (RFC 8200, 3), and the lower half of the prefix of v4-mapped addresses (RFC 4291, 2.5.5.2).
const V6_LEN: usize = 40;
const V6_SOURCE: usize = 8;
const V4_MAPPED: u64 = 0xffff << 32;

/// Protocol numbers (IANA), the same for IPv4's protocol and IPv6's next header.
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Most extension headers that [`v6`] walks; RFC 8200 (4.1) allows at most six before TCP.
const EXTENSIONS_MAX: usize = 6;
/// The shortest extension header, and the unit of their length field (RFC 8200, 4.2).
const EXTENSION_UNIT: usize = 8;

/// Reads the IPv4 header at `header`.
///
/// A first fragment (offset 0) carries the TCP header, so it counts as the packet.
#[inline(always)]
pub(super) fn v4<B: Bytes + ?Sized>(frame: &B, header: usize) -> Result<IpPacket, Skip> {
    let ip: [u8; V4_LEN] = frame.load(header).ok_or(Skip::Malformed)?;
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || header_len < V4_LEN {
        return Err(Skip::Malformed);
    }
    let is_udp = is_udp(ip[9])?;
    if u16::from_be_bytes([ip[6], ip[7]]) & V4_FRAGMENT_OFFSET != 0 {
        return Err(Skip::Fragment);
    }
    let end = header + usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    Ok(IpPacket { ip_version: 4, is_udp, header, transport: header + header_len, end })
}

/// Reads the IPv6 header at `header` and walks its extension headers.
///
/// Hop-by-hop options are legal in first place only (RFC 8200, 4.1). An atomic fragment (RFC 6946) is a
/// packet, and a first fragment must hold all headers (RFC 7112), so the walk goes on after both.
#[inline(always)]
pub(super) fn v6<B: Bytes + ?Sized>(frame: &B, header: usize) -> Result<IpPacket, Skip> {
    let ip: [u8; V6_LEN] = frame.load(header).ok_or(Skip::Malformed)?;
    if ip[0] >> 4 != 6 {
        return Err(Skip::Malformed);
    }
    let mut next = ip[6];
    let mut offset = header + V6_LEN;
    for _ in 0..EXTENSIONS_MAX {
        match next {
            HOP_BY_HOP if offset != header + V6_LEN => return Err(Skip::Malformed),
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS => {}
            _ => break,
        }
        let extension: [u8; EXTENSION_UNIT] = frame.load(offset).ok_or(Skip::Malformed)?;
        offset += extension_len(next, &extension)?;
        next = extension[0];
    }
    let is_udp = is_udp(next)?;
    let end = header + V6_LEN + usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    Ok(IpPacket { ip_version: 6, is_udp, header, transport: offset, end })
}

/// Whether a packet is UDP; false for TCP. Other protocols are skipped.
#[inline(always)]
fn is_udp(protocol: u8) -> Result<bool, Skip> {
    match protocol {
        TCP => Ok(false),
        UDP => Ok(true),
        _ => Err(Skip::NotTcp),
    }
}

/// Length in bytes of an extension header of type `kind` that starts with `extension`.
#[inline(always)]
fn extension_len(kind: u8, extension: &[u8; EXTENSION_UNIT]) -> Result<usize, Skip> {
    match kind {
        // Bits 3..16 are the offset; the reserved bits and "more fragments" do not matter here.
        FRAGMENT if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 => Err(Skip::Fragment),
        FRAGMENT => Ok(EXTENSION_UNIT),
        // Segments are left: the destination address is not the final one.
        ROUTING if extension[3] != 0 => Err(Skip::Refused),
        _ => Ok((usize::from(extension[1]) + 1) * EXTENSION_UNIT),
    }
}

/// An IP address as two machine words of network bytes, IPv4 as v4-mapped. The kernel programs copy two words instead
/// of sixteen single bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct IpWords {
    high: u64,
    low: u64,
}

impl From<Addr> for IpWords {
    fn from(octets: Addr) -> Self {
        let [a, b, c, d, e, f, g, h, rest @ ..] = octets;
        Self { high: u64::from_ne_bytes([a, b, c, d, e, f, g, h]), low: u64::from_ne_bytes(rest) }
    }
}

impl IpWords {
    /// `::`.
    pub const ZERO: Self = Self { high: 0, low: 0 };

    /// The address in network order.
    #[inline(always)]
    pub fn octets(self) -> Addr {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&self.high.to_ne_bytes());
        octets[8..].copy_from_slice(&self.low.to_ne_bytes());
        octets
    }

    /// The source network that has a budget: an IPv4 address, or the /64 of an IPv6 address.
    #[inline(always)]
    pub fn network(self) -> Self {
        let v4 = self.high == 0 && u64::from_be(self.low) >> 32 == V4_MAPPED >> 32;
        if v4 { self } else { Self { high: self.high, low: 0 } }
    }

    /// The IPv4 address of four bytes in network order, v4-mapped.
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self { high: 0, low: (u32::from_be_bytes(octets) as u64 | V4_MAPPED).to_be() }
    }

    /// The address of two words in their order in memory.
    #[inline(always)]
    pub const fn from_halves(high: u64, low: u64) -> Self {
        Self { high, low }
    }

    /// The two words in their order in memory.
    #[inline(always)]
    pub const fn words(self) -> [u64; 2] {
        [self.high, self.low]
    }

    #[inline(always)]
    fn v4<B: Bytes + ?Sized>(frame: &B, at: usize) -> Result<Self, Skip> {
        Ok(Self::from_v4(frame.load(at).ok_or(Skip::Malformed)?))
    }

    #[inline(always)]
    fn v6<B: Bytes + ?Sized>(frame: &B, at: usize) -> Result<Self, Skip> {
        let high = u64::from_ne_bytes(frame.load(at).ok_or(Skip::Malformed)?);
        let low = u64::from_ne_bytes(frame.load(at + 8).ok_or(Skip::Malformed)?);
        Ok(Self { high, low })
    }

    /// Not 0.0.0.0, loopback (127/8), multicast (224/4) or limited broadcast. 240/4 and the rest of 0/8 are
    /// unicast addresses to Linux, and in use.
    #[inline(always)]
    fn v4_possible(self) -> bool {
        let v4 = u64::from_be(self.low) as u32;
        v4 != 0 && v4 >> 24 != 127 && v4 >> 28 != 0xe && v4 != u32::MAX
    }

    /// Not `::`, `::1`, multicast (`ff00::/8`) or v4-mapped. A v4-mapped address must not appear on the wire, and would
    /// look like IPv4 here.
    #[inline(always)]
    fn v6_possible(self) -> bool {
        let (high, low) = (u64::from_be(self.high), u64::from_be(self.low));
        let reserved = high == 0 && (low <= 1 || low & !u64::from(u32::MAX) == V4_MAPPED);
        !reserved && high >> 56 != 0xff
    }
}

/// Source and destination; [`Skip::Refused`] when a TCP connection cannot have such an address.
#[inline(always)]
pub(super) fn addresses<B: Bytes + ?Sized>(
    frame: &B,
    network: &IpPacket,
) -> Result<(IpWords, IpWords), Skip> {
    let (src, dst, possible) = if network.ip_version == 4 {
        let src = IpWords::v4(frame, network.header + V4_SOURCE)?;
        let dst = IpWords::v4(frame, network.header + V4_SOURCE + 4)?;
        (src, dst, src.v4_possible() && dst.v4_possible())
    } else {
        let src = IpWords::v6(frame, network.header + V6_SOURCE)?;
        let dst = IpWords::v6(frame, network.header + V6_SOURCE + 16)?;
        (src, dst, src.v6_possible() && dst.v6_possible())
    };
    if possible { Ok((src, dst)) } else { Err(Skip::Refused) }
}
