//! The frame of a SYN, written anew for each: that costs little beside sending it.

use std::net::Ipv4Addr;

use headstart_ebpf::option::{self, FunctionOption};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
const TCP_AT: usize = ETHERNET + IPV4;
const OPTION_AT: usize = TCP_AT + TCP;

const PROTOCOL_TCP: u8 = 6;
const SYN: u8 = 2;

/// A SYN to one machine.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    near: [u8; 6],
    far: [u8; 6],
    target: Ipv4Addr,
}

impl Template {
    /// Between the hardware addresses of the receiver and the sender.
    pub fn new(near: [u8; 6], far: [u8; 6], target: Ipv4Addr) -> Self {
        Self { near, far, target }
    }

    /// Length of the frame in bytes, with or without a function ID.
    pub fn length(&self, option: bool) -> usize {
        OPTION_AT + if option { option::LEN } else { 0 }
    }

    /// Writes the whole frame; its length must be what [`Template::length`] says.
    pub fn write(
        &self,
        frame: &mut [u8],
        source: Ipv4Addr,
        source_port: u16,
        port: u16,
        isn: u32,
        option: Option<FunctionOption>,
    ) {
        let total = (frame.len() - ETHERNET) as u16;
        frame[..6].copy_from_slice(&self.near);
        frame[6..12].copy_from_slice(&self.far);
        frame[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());

        // RFC 791: version and header length, total length, don't fragment, TTL, protocol, checksum, addresses.
        let ip = &mut frame[ETHERNET..TCP_AT];
        ip.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, PROTOCOL_TCP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[12..16].copy_from_slice(&source.octets());
        ip[16..20].copy_from_slice(&self.target.octets());
        let sum = checksum(0, ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());

        // RFC 9293: ports, sequence number, no acknowledgement, data offset and flags, window, checksum.
        let tcp = &mut frame[TCP_AT..];
        let length = tcp.len() as u16;
        tcp[..2].copy_from_slice(&source_port.to_be_bytes());
        tcp[2..4].copy_from_slice(&port.to_be_bytes());
        tcp[4..8].copy_from_slice(&isn.to_be_bytes());
        tcp[8..12].fill(0);
        tcp[12] = (length / 4) as u8 * 16;
        tcp[13] = SYN;
        tcp[14..20].copy_from_slice(&[0xfa, 0xf0, 0, 0, 0, 0]);
        if let Some(option) = option {
            tcp[TCP..].copy_from_slice(&option.encode());
        }
        let pseudo =
            [source, self.target].iter().fold(u32::from(PROTOCOL_TCP) + u32::from(length), |sum, address| {
                let bits = address.to_bits();
                sum + (bits >> 16) + (bits & 0xffff)
            });
        let sum = checksum(pseudo, tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let sum = start + words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use headstart_ebpf::packet;

    #[test]
    fn a_frame_is_a_syn_whose_checksums_are_right() {
        let target = Ipv4Addr::new(10, 213, 0, 1);
        let template = Template::new([2; 6], [4; 6], target);
        for option in [None, Some(FunctionOption::tagged([1, 2], 3, 4, 5, 8081, 0xdead_beef))] {
            let mut frame = vec![0xff; template.length(option.is_some())];
            let source = Ipv4Addr::new(198, 19, 255, 254);
            template.write(&mut frame, source, 65_535, 8081, 0xdead_beef, option);
            // A sum over what holds its own checksum is zero.
            assert_eq!(checksum(0, &frame[ETHERNET..TCP_AT]), 0);
            let words = [source, target].map(Ipv4Addr::to_bits);
            let pseudo = words.iter().map(|bits| (bits >> 16) + (bits & 0xffff)).sum::<u32>();
            let length = (frame.len() - TCP_AT) as u32;
            assert_eq!(checksum(pseudo + 6 + length, &frame[TCP_AT..]), 0);
            if let Some(option) = option {
                assert_eq!(frame[OPTION_AT..], option.encode());
            }
            let syn = packet::parse(frame.as_slice()).expect("what is recognised as a SYN");
            assert_eq!((syn.src_port, syn.dst_port, syn.isn), (65_535, 8081, 0xdead_beef));
            assert_eq!(syn.src, source.to_ipv6_mapped().octets().into());
            assert_eq!(syn.dst, target.to_ipv6_mapped().octets().into());
        }
    }
}
