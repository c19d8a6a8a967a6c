//! UDP: its port, and the knock that it may hold.

use super::{Bytes, IpPacket, Skip, Syn, ip};
use crate::knock::{Knock, LEN};

/// Length of the UDP header, and an offset in it (RFC 768).
const UDP_LEN: usize = 8;
const UDP_DST_PORT: usize = 2;

/// A UDP packet of which only the port has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    network: IpPacket,
    /// The destination port, host order.
    pub dst_port: u16,
}

impl Udp {
    #[inline(always)]
    pub(super) fn read<B: Bytes + ?Sized>(frame: &B, network: IpPacket) -> Result<Self, Skip> {
        let port = frame.load(network.transport + UDP_DST_PORT).ok_or(Skip::Malformed)?;
        Ok(Self { network, dst_port: u16::from_be_bytes(port) })
    }

    /// The knock in the payload, not verified, and its addresses and ports as a [`Syn`] without sequence number; `None`
    /// when the payload is no knock. The length comes from the UDP header, since Ethernet pads short packets.
    #[inline(always)]
    pub fn knock<B: Bytes + ?Sized>(&self, frame: &B) -> Option<(Syn, Knock)> {
        let at = self.network.transport;
        if at + UDP_LEN + LEN > self.network.end {
            return None;
        }
        let [p0, p1, _, _, l0, l1, _, _, payload @ ..]: [u8; UDP_LEN + LEN] = frame.load(at)?;
        if usize::from(u16::from_be_bytes([l0, l1])) != UDP_LEN + LEN {
            return None;
        }
        let knock = Knock::decode(&payload)?;
        let (src, dst) = ip::addresses(frame, &self.network).ok()?;
        let sender = Syn {
            src,
            dst,
            src_port: u16::from_be_bytes([p0, p1]),
            dst_port: self.dst_port,
            isn: 0,
            ip_version: self.network.ip_version,
        };
        Some((sender, knock))
    }
}
