//! Recognises the one packet that matters: the SYN with which a client opens a TCP connection.
//!
//! Ethernet, up to two VLAN tags, IPv4 with options or IPv6 with extension headers, TCP. [`parse`] is the
//! same code in the kernel, where [`Bytes`] is an XDP frame, and on the host, where it is a slice. The
//! order of the checks serves the packets that are *not* SYNs, which are nearly all: they are left after
//! one look at each header; addresses and lengths are read for SYNs only.
//!
//! Checksums are not verified: a SYN from the same machine carries only the pseudo-header's sum. Tunnels
//! (IPIP, GRE, VXLAN) are not opened: the inner SYN is for somebody else until the kernel has unwrapped it.

mod ip;

pub use ip::IpWords;

/// Bytes of a frame that may be read; every read is bounds-checked.
pub trait Bytes {
    /// `N` bytes at `offset`, or `None` when they are not all there.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Whether the frame has at least `len` bytes, also where only its start can be read (multi-buffer XDP).
    fn reaches(&self, len: usize) -> bool;
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn reaches(&self, len: usize) -> bool {
        len <= self.len()
    }
}

/// A client's request for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn {
    /// The client's address.
    pub src: IpWords,
    /// The address asked for.
    pub dst: IpWords,
    /// The client's port, host order.
    pub src_port: u16,
    /// The port asked for, host order.
    pub dst_port: u16,
    /// The client's initial sequence number, host order.
    pub isn: u32,
    /// 4 or 6.
    pub ip_version: u8,
}

/// Why a frame starts nothing. It is passed on untouched all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Another protocol, a tunnel, more than two VLAN tags or more than six extension headers.
    NotTcp,
    /// TCP, but not the first packet of a connection.
    NotSyn,
    /// A fragment other than the first: it has no TCP header.
    Fragment,
    /// A SYN that no client sends, and that Linux would not answer: port 0, a multicast, broadcast,
    /// loopback, unspecified or v4-mapped IPv6 address, source and destination identical (LAND), or
    /// routed to some other host first. Real loopback traffic is the socket lookup's business.
    Refused,
    /// Cut off, or with lengths or versions that contradict each other.
    Malformed,
}

/// Ethernet header, and the types read here (IEEE 802.3; `include/uapi/linux/if_ether.h`).
const ETHERNET_LEN: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_PROVIDER_VLAN: u16 = 0x88a8;
const VLAN_TAG_LEN: usize = 4;
const VLAN_TAGS_MAX: usize = 2;

/// TCP header without options, offsets into it, and its flag bits (RFC 9293, 3.1).
const TCP_LEN: usize = 20;
const TCP_DST_PORT: usize = 2;
const TCP_SEQUENCE: usize = 4;
const TCP_DATA_OFFSET: usize = 12;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Where the parts of an IP packet are, as offsets into the frame.
struct Network {
    ip_version: u8,
    /// Of the IP header.
    header: usize,
    /// Of the TCP header.
    tcp: usize,
    /// Of the first byte after the packet, by the IP header's own account.
    end: usize,
}

/// Reads a frame that starts with its Ethernet header.
///
/// # Errors
/// [`Skip`] says why the frame is no request for a connection.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B) -> Result<Syn, Skip> {
    let (ethertype, header) = ethernet(frame)?;
    let network = match ethertype {
        ETHERTYPE_IPV4 => ip::v4(frame, header)?,
        ETHERTYPE_IPV6 => ip::v6(frame, header)?,
        _ => return Err(Skip::NotTcp),
    };
    let [data_offset, flags] = frame.load(network.tcp + TCP_DATA_OFFSET).ok_or(Skip::Malformed)?;
    // As Linux treats a listening socket: ACK is reset, RST and SYN+FIN are dropped, and the other flags
    // (URG, PSH, ECE, CWR) do not matter (tcp_rcv_state_process; RFC 9293, 3.10.7.2).
    if flags & (SYN | ACK | RST | FIN) != SYN {
        return Err(Skip::NotSyn);
    }
    let tcp_len = usize::from(data_offset >> 4) * 4;
    if tcp_len < TCP_LEN || network.tcp + tcp_len > network.end || !frame.reaches(network.end) {
        return Err(Skip::Malformed);
    }
    request(frame, &network)
}

/// The SYN, once it is known to be one: from here on, a packet in a thousand.
#[inline(always)]
fn request<B: Bytes + ?Sized>(frame: &B, network: &Network) -> Result<Syn, Skip> {
    let (src, dst) = ip::addresses(frame, network)?;
    let syn = Syn {
        src,
        dst,
        src_port: u16::from_be_bytes(frame.load(network.tcp).ok_or(Skip::Malformed)?),
        dst_port: u16::from_be_bytes(frame.load(network.tcp + TCP_DST_PORT).ok_or(Skip::Malformed)?),
        isn: u32::from_be_bytes(frame.load(network.tcp + TCP_SEQUENCE).ok_or(Skip::Malformed)?),
        ip_version: network.ip_version,
    };
    if is_group_frame(frame) || syn.src_port == 0 || syn.dst_port == 0 || is_land(&syn) {
        return Err(Skip::Refused);
    }
    Ok(syn)
}

/// The EtherType and the offset of what it announces, after at most two VLAN tags of any VID.
#[inline(always)]
fn ethernet<B: Bytes + ?Sized>(frame: &B) -> Result<(u16, usize), Skip> {
    let mut offset = ETHERNET_LEN;
    for _ in 0..=VLAN_TAGS_MAX {
        let ethertype = u16::from_be_bytes(frame.load(offset - 2).ok_or(Skip::Malformed)?);
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_PROVIDER_VLAN {
            return Ok((ethertype, offset));
        }
        offset += VLAN_TAG_LEN;
    }
    Err(Skip::NotTcp)
}

/// Whether the frame was sent to a multicast or broadcast MAC; Linux accepts no TCP from those. This also
/// covers a subnet's own broadcast address, which an IP header alone does not give away.
#[inline(always)]
fn is_group_frame<B: Bytes + ?Sized>(frame: &B) -> bool {
    matches!(frame.load(0), Some([first]) if first & 1 == 1)
}

/// A SYN that claims to come from the very socket it is sent to (CERT CA-1997-28).
#[inline(always)]
fn is_land(syn: &Syn) -> bool {
    syn.src_port == syn.dst_port && syn.src == syn.dst
}
