//! The interfaces to watch, and changes of interfaces and routes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use headstart_config::Interfaces;
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::fd;

/// Shortest time between two checks: a router's table can change thousands of times a second.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The existing interfaces to watch, by name, with their index.
pub(super) fn wanted(interfaces: &Interfaces) -> BTreeMap<String, u32> {
    let names = match interfaces {
        Interfaces::Auto => automatic(),
        Interfaces::Named(names) => names.clone(),
    };
    names
        .into_iter()
        .filter_map(|name| {
            let index = if_nametoindex(name.as_str()).ok()?;
            Some((name, index))
        })
        .collect()
}

/// What `["auto"]` means now: the interfaces with a default route, IPv4 or IPv6, from `/proc/net` (proc(5)), and the ends
/// of tunnels, since the packets inside cannot be seen in those outside. Ports of a bond or a bridge are left out, because
/// their master sees the same packets. Containers' interfaces have no default route.
#[must_use]
pub fn automatic() -> Vec<String> {
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let interfaces = Path::new("/sys/class/net");
    let mut names: Vec<_> = defaults(&v4, &v6).into_iter().chain(tunnels(interfaces)).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !interfaces.join(name).join("master").exists());
    names
}

/// The interfaces of overlay networks (`DEVTYPE` of `SET_NETDEV_DEVTYPE`, drivers/net/vxlan and geneve.c). Tunnels of IP
/// packets without an Ethernet header are not among them: XDP could not read those.
fn tunnels(interfaces: &Path) -> Vec<String> {
    let is_tunnel = |name: &str| {
        let uevent = fs::read_to_string(interfaces.join(name).join("uevent")).unwrap_or_default();
        uevent.lines().any(|line| matches!(line, "DEVTYPE=vxlan" | "DEVTYPE=geneve"))
    };
    let entries = fs::read_dir(interfaces).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_tunnel(name)).collect()
}

/// Waits for changes of interfaces or routes (rtnetlink(7)). It does not parse the messages, because the kernel may drop
/// some; the caller looks up the current state.
pub(super) struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// Starts to listen; no later change is missed.
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE;
        bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, groups.cast_unsigned()))?;
        Ok(Self(fd::register(netlink, Interest::READABLE)?))
    }

    /// Waits for the next change, and at least [`CHECK_INTERVAL`].
    pub(super) async fn next(&mut self) -> io::Result<()> {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let mut ready = self.0.readable_mut().await?;
        let mut message = [0; 4096];
        loop {
            match recv(ready.get_inner().as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
                // An overrun has lost some messages, which is a change too.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
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
    fn overlay_networks_are_found_by_the_type_of_their_device() {
        let sysfs = tempfile::tempdir().unwrap();
        for (name, uevent) in [
            ("flannel.1", "DEVTYPE=vxlan\nINTERFACE=flannel.1\nIFINDEX=5\n"),
            ("genev_sys", "DEVTYPE=geneve\nINTERFACE=genev_sys\nIFINDEX=6\n"),
            ("wg0", "DEVTYPE=wireguard\nINTERFACE=wg0\nIFINDEX=7\n"),
            ("eth0", "INTERFACE=eth0\nIFINDEX=2\n"),
        ] {
            fs::create_dir(sysfs.path().join(name)).unwrap();
            fs::write(sysfs.path().join(name).join("uevent"), uevent).unwrap();
        }
        fs::write(sysfs.path().join("bonding_masters"), "").unwrap();
        let mut found = tunnels(sysfs.path());
        found.sort_unstable();
        assert_eq!(found, ["flannel.1", "genev_sys"]);
    }

    #[test]
    fn strange_lines_are_passed_over() {
        assert_eq!(defaults("Iface\n\neth0\n", "x\n\n"), Vec::<String>::new());
    }
}
