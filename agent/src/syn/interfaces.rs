//! Which interfaces carry clients when the configuration says "auto".

use std::collections::BTreeSet;
use std::fs;

/// The interfaces with a default route, IPv4 or IPv6, from `/proc/net` (proc(5)).
#[must_use]
pub fn uplinks() -> Vec<String> {
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    defaults(&v4, &v6)
}

fn defaults(v4: &str, v6: &str) -> Vec<String> {
    // Columns: Iface Destination Gateway Flags RefCnt Use Metric Mask ...
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        (*columns.get(1)? == "00000000" && *columns.get(7)? == "00000000")
            .then(|| columns.first().copied())?
    });
    // Columns: destination, its prefix length, source, its prefix length, next hop, ..., device.
    let v6 = v6.lines().filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let any = "00000000000000000000000000000000";
        (*columns.first()? == any && *columns.get(1)? == "00").then(|| columns.last().copied())?
    });
    let names: BTreeSet<_> = v4.chain(v6).filter(|name| *name != "lo").collect();
    names.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_default_routes_count_and_each_interface_once() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                  eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  veth1\t000011AC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let any = "0".repeat(32);
        let v6 = format!("{any} 00 {any} 00 {any} 00000001 1 0 1 eth1\n{any} 00 {any} 00 {any} 1 1 0 1 lo\n");
        assert_eq!(defaults(v4, &v6), ["eth0", "eth1"]);
    }

    #[test]
    fn strange_lines_are_passed_over() {
        assert_eq!(defaults("Iface\n\neth0\n", "x\n\n"), Vec::<String>::new());
    }
}
