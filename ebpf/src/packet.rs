//! Recognises the packets that matter: the SYN that opens a TCP connection, and UDP, which may be a knock.
//!
//! It reads Ethernet, up to two VLAN tags, IPv4 with options or IPv6 with extension headers, TCP or UDP. [`read`] is
//! the same code in the kernel, where [`Bytes`] is an XDP frame or a socket buffer, and on the host, where it is a
//! slice. The order of the checks favours packets that are *not* SYNs, which are nearly all: [`read`] leaves them
//! after one look at each header, and reads addresses and lengths of SYNs only.
//!
//! It does not verify checksums: a SYN from the same machine carries only the pseudo-header's sum. It does not open
//! tunnels (IPIP, GRE, VXLAN): the inner SYN has another destination until the kernel has unwrapped it.

mod ip;
pub mod options;
mod udp;

pub use ip::IpWords;
pub use options::{BadOption, Options};
pub use udp::Udp;

/// The readable bytes of a frame; every read is bounds-checked.
pub trait Bytes {
    /// `N` bytes at `offset`; `None` when the frame does not have them all.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Whether the first `len` bytes can be read.
    fn holds(&self, len: usize) -> bool;

    /// Whether the frame has at least `len` bytes, even if only its start can be read.
    fn reaches(&self, len: usize) -> bool;

    /// [`options::find`] in the `len` bytes from `start`. Also [`options::ABSENT`] when the frame does not have them
    /// all, or when `len` exceeds [`options::OPTIONS_MAX`].
    fn find_option(&self, start: usize, len: usize) -> u32;
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn holds(&self, len: usize) -> bool {
        len <= self.len()
    }

    fn reaches(&self, len: usize) -> bool {
        len <= self.len()
    }

    fn find_option(&self, start: usize, len: usize) -> u32 {
        let mut area: options::OptionArea = [0; _];
        let (Some(to), Some(from)) = (area.get_mut(..len), self.get(start..start + len)) else {
            return options::ABSENT;
        };
        to.copy_from_slice(from);
        options::find(&area)
    }
}

/// The content of a frame, if it may matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A request for a connection, and the position of its options.
    Syn(Syn, Options),
    /// UDP; its payload is unread.
    Udp(Udp),
}

/// A client's request for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn {
    /// The client's address.
    pub src: IpWords,
    /// The destination address.
    pub dst: IpWords,
    /// The client's port, host order.
    pub src_port: u16,
    /// The destination port, host order.
    pub dst_port: u16,
    /// The client's initial sequence number, host order.
    pub isn: u32,
    /// 4 or 6.
    pub ip_version: u8,
}

/// Why a frame starts nothing. The programs pass such a frame unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Another protocol, a tunnel, more than two VLAN tags or more than six extension headers; for [`parse`], UDP
    /// too.
    NotTcp,
    /// TCP, but not the first packet of a connection.
    NotSyn,
    /// A fragment other than the first: it has no TCP header.
    Fragment,
    /// A SYN that no client sends, and that Linux does not answer: port 0; a multicast, broadcast, loopback,
    /// unspecified or v4-mapped IPv6 address; source and destination identical (LAND); or a route through another
    /// host first. The socket lookup sees real loopback traffic.
    Refused,
    /// Cut off, or with lengths or versions that contradict each other. Also when [`Bytes::holds`] does not cover
    /// all headers.
    Malformed,
}

/// Length of the Ethernet header, and the EtherTypes that [`read`] knows (IEEE 802.3; `include/uapi/linux/if_ether.h`).
const ETHERNET_LEN: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_PROVIDER_VLAN: u16 = 0x88a8;
const VLAN_TAG_LEN: usize = 4;
const VLAN_TAGS_MAX: usize = 2;

/// Length of a TCP header without options, in bytes (RFC 9293, 3.1).
pub const TCP_LEN: usize = 20;
/// The start of a TCP header: ports, sequence number, acknowledgement, data offset, flags.
type TcpStart = [u8; 14];
/// Flag bits.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The positions of an IP packet's parts, as offsets into the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct IpPacket {
    ip_version: u8,
    /// Whether it carries UDP; otherwise it carries TCP.
    is_udp: bool,
    /// Offset of the IP header.
    header: usize,
    /// Offset of the TCP or UDP header.
    transport: usize,
    /// Offset of the first byte after the packet, by the IP header's length field.
    end: usize,
}

/// Reads a frame that starts with its Ethernet header.
///
/// # Errors
/// [`Skip`] says why the frame is neither a request for a connection nor UDP.
#[inline(always)]
pub fn read<B: Bytes + ?Sized>(frame: &B) -> Result<Packet, Skip> {
    let (ethertype, header) = ethernet(frame)?;
    let network = match ethertype {
        ETHERTYPE_IPV4 => ip::v4(frame, header)?,
        ETHERTYPE_IPV6 => ip::v6(frame, header)?,
        _ => return Err(Skip::NotTcp),
    };
    if network.is_udp {
        return Udp::read(frame, network).map(Packet::Udp);
    }
    let tcp = network.transport;
    let start: TcpStart = frame.load(tcp).ok_or(Skip::Malformed)?;
    let [.., data_offset, flags] = start;
    if !is_syn(flags) {
        return Err(Skip::NotSyn);
    }
    let tcp_len = usize::from(data_offset >> 4) * 4;
    if tcp_len < TCP_LEN || tcp + tcp_len > network.end {
        return Err(Skip::Malformed);
    }
    // If the headers are split over buffers, the caller tries again with a `Bytes` that can read all of them.
    let is_whole = frame.holds(network.end) || frame.holds(tcp + tcp_len) && frame.reaches(network.end);
    if !is_whole {
        return Err(Skip::Malformed);
    }
    let syn = request(frame, &network, &start)?;
    Ok(Packet::Syn(syn, Options::new(tcp + TCP_LEN, tcp_len - TCP_LEN)))
}

/// [`read`] for callers to whom only a request for a connection matters.
///
/// # Errors
/// [`Skip`] says why the frame is none.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B) -> Result<Syn, Skip> {
    match read(frame)? {
        Packet::Syn(syn, _) => Ok(syn),
        Packet::Udp(_) => Err(Skip::NotTcp),
    }
}

/// Whether `flags` are those of a connection's first packet.
///
/// As Linux treats a packet to a listening socket: it resets ACK, drops RST and SYN+FIN, and ignores the other flags
/// (URG, PSH, ECE, CWR) (`tcp_rcv_state_process`; RFC 9293, 3.10.7.2).
#[inline(always)]
pub const fn is_syn(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// Reads addresses and ports of a packet that is a SYN. About one packet in a thousand gets here.
#[inline(always)]
fn request<B: Bytes + ?Sized>(frame: &B, network: &IpPacket, tcp: &TcpStart) -> Result<Syn, Skip> {
    let [s0, s1, d0, d1, i0, i1, i2, i3, ..] = *tcp;
    let (src, dst) = ip::addresses(frame, network)?;
    let syn = Syn {
        src,
        dst,
        src_port: u16::from_be_bytes([s0, s1]),
        dst_port: u16::from_be_bytes([d0, d1]),
        isn: u32::from_be_bytes([i0, i1, i2, i3]),
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

/// Whether the frame's destination is a multicast or broadcast MAC; Linux accepts no TCP from those. This also covers
/// a subnet's broadcast address, which the IP header alone does not show.
#[inline(always)]
fn is_group_frame<B: Bytes + ?Sized>(frame: &B) -> bool {
    matches!(frame.load(0), Some([first]) if first & 1 == 1)
}

/// Whether the SYN claims to come from the socket that it is sent to (CERT CA-1997-28).
#[inline(always)]
fn is_land(syn: &Syn) -> bool {
    syn.src_port == syn.dst_port && syn.src == syn.dst
}
