//! Ranges of addresses in CIDR notation (RFC 4632; RFC 4291, 2.3).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most prefixes of one list.
pub const MAX_CIDRS: usize = 2_048;

/// A range of addresses, as `10.0.0.0/8`. A single address has all its bits, `192.0.2.1/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// The first address: bits beyond the prefix are zero. Never IPv4 inside IPv6.
    pub address: IpAddr,
    /// Length of the prefix in bits, 0 to 32 for IPv4 and 0 to 128 for IPv6.
    pub bits: u8,
}

impl Cidr {
    /// Reads `"10.0.0.0/8"`, `"2001:db8::/32"` or an address alone; the error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let form =
            || "must be a network, as in \"10.0.0.0/8\" or \"2001:db8::/32\", or an address".to_owned();
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) if !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(|| format!("the number after \"/\" must be 0 to {most}"))?,
            Some(_) => return Err(form()),
        };
        Self::new(address, bits)
    }

    fn new(address: IpAddr, bits: u8) -> Result<Self, String> {
        let network = network(address, bits);
        if let IpAddr::V6(v6) = address {
            match v6.to_ipv4_mapped() {
                Some(v4) if bits >= MAPPED_BITS => {
                    let v4 = network_of_v4(v4, bits - MAPPED_BITS);
                    return Err(format!(
                        "is IPv4 inside IPv6: write it as IPv4, \"{v4}/{}\"",
                        bits - MAPPED_BITS
                    ));
                }
                _ if network == self::network(MAPPED.into(), bits) => {
                    return Err(
                        "includes all of IPv4 (as ::ffff:0:0/96): write \"2000::/3\" for the global \
                                addresses of IPv6, \"0.0.0.0/0\" for IPv4"
                            .to_owned(),
                    );
                }
                _ => {}
            }
        }
        let cidr = Self { address: network, bits };
        if network != address {
            return Err(format!("has bits set beyond the prefix: write \"{cidr}\""));
        }
        Ok(cidr)
    }
}

/// Where IPv4 lies in IPv6 (RFC 4291, 2.5.5.2). The kernel programs look both up in one table.
const MAPPED: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
const MAPPED_BITS: u8 = 96;

/// `address` with the bits beyond the prefix cleared.
fn network(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => network_of_v4(v4, bits).into(),
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

fn network_of_v4(v4: Ipv4Addr, bits: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    Ipv4Addr::from_bits(v4.to_bits() & mask)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}
