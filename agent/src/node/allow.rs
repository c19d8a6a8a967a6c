//! The sources that an operator allows: no budget applies to them.
//!
//! The kernel half has the same list for its own budgets. Its events do not say whether a source is on it.

use headstart_config::Cidr;
use headstart_ebpf::event::Addr;
use headstart_ebpf::maps::source_prefix;

/// A list of prefixes, at most [`headstart_config::MAX_CIDRS`] of them.
#[derive(Debug, Default)]
pub struct AllowList(Vec<AddressPrefix>);

/// A prefix of addresses as 128-bit numbers, IPv4 as v4-mapped.
#[derive(Debug)]
struct AddressPrefix {
    network: u128,
    mask: u128,
}

impl AllowList {
    /// The configured list.
    #[must_use]
    pub fn new(list: &[Cidr]) -> Self {
        Self(list.iter().map(prefix).collect())
    }

    /// Whether `source` is on the list.
    pub(super) fn contains(&self, source: Addr) -> bool {
        let source = u128::from_be_bytes(source);
        self.0.iter().any(|prefix| source & prefix.mask == prefix.network)
    }
}

fn prefix(cidr: &Cidr) -> AddressPrefix {
    let (bits, address) = source_prefix(cidr.address, cidr.bits);
    // All bits is a shift by nothing, none a shift that would overflow.
    let mask = u128::MAX.checked_shl(128u32.saturating_sub(bits)).unwrap_or(0);
    AddressPrefix { network: u128::from_be_bytes(address) & mask, mask }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    #[test]
    fn prefixes_of_both_versions_hold_their_own_addresses_only() {
        for (prefix, bits, inside, outside) in [
            ("10.0.0.0", 8, "::ffff:10.255.255.255", "::ffff:11.0.0.0"),
            ("198.51.100.7", 32, "::ffff:198.51.100.7", "::ffff:198.51.100.6"),
            ("0.0.0.0", 0, "::ffff:203.0.113.9", "2001:db8::1"),
            ("2001:db8::", 32, "2001:db8:ffff::1", "2001:db9::"),
            ("2001:db8::7", 128, "2001:db8::7", "2001:db8::8"),
        ] {
            let allow = AllowList::new(&[Cidr { address: prefix.parse().unwrap(), bits }]);
            let has = |address: &str| allow.contains(address.parse::<Ipv6Addr>().unwrap().octets());
            assert!(has(inside), "{inside} in {prefix}/{bits}");
            assert!(!has(outside), "{outside} not in {prefix}/{bits}");
        }
        let all = AllowList::new(&[Cidr { address: "::".parse().unwrap(), bits: 0 }]);
        assert!(all.contains([0xff; 16]));
        assert!(!AllowList::default().contains([0; 16]));
    }
}
