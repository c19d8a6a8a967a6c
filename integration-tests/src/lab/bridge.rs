//! A bridge for the containers of a daemon of our own, without any filter or translation of addresses.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};

use super::claim::NumberClaim;
use super::command::{ip, run};
use super::netns::Link;
use super::scratch::prefix;

/// The private range that the bridges share: 10.214.0.0/16, in pieces of 256 addresses.
const SUBNETS: u32 = 1 << 8;

/// A bridge with an address of this host. Removed on drop.
#[derive(Debug)]
pub struct Bridge {
    name: String,
    subnet: NumberClaim,
}

impl Bridge {
    pub(super) fn new() -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{}vb{}", prefix(), NEXT.fetch_add(1, Ordering::Relaxed));
        let bridge = Self { name, subnet: NumberClaim::take("bridge", SUBNETS)? };
        let name = &bridge.name;
        ip(&format!("link add {name} type bridge"))?;
        ip(&format!("address add {}/24 dev {name}", bridge.address(1)))?;
        ip(&format!("link set {name} up"))?;
        Ok(bridge)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        let [.., low] = self.subnet.number().to_be_bytes();
        Ipv4Addr::new(10, 214, low, host)
    }

    /// Containers on the bridge and the other end of `link` can reach each other from now on.
    pub fn route(&self, link: &Link) -> Result<()> {
        for interface in [&self.name, link.host_if()] {
            let file = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
            fs::write(&file, "1").with_context(|| file)?;
        }
        let (subnet, via) = (self.address(0), link.host(0).ip());
        let mut command = Command::new("ip");
        command.args(["route", "replace", &format!("{subnet}/24"), "via", &via.to_string()]);
        link.namespace().enter(|| run(&mut command))??;
        Ok(())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("link delete {}", self.name)) {
            eprintln!("{error:#}");
        }
    }
}
