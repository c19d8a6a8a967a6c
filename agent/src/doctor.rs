//! `headstart doctor`: what this host can do, and what each lack costs.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit};

use crate::syn::{Sensor, uplinks};

/// Descriptors for a node of a few hundred functions with their pools.
const OPEN_FILES_MIN: u64 = 65_536;

/// One thing that was looked at.
struct Finding {
    what: &'static str,
    /// What was found; or what is missing, what that costs, and what to do.
    found: Result<String, String>,
}

/// Prints one line for each thing that Headstart can use.
pub fn print() {
    for Finding { what, found } in findings() {
        match found {
            Ok(found) => println!("ok       {what:<14} {found}"),
            Err(lack) => println!("missing  {what:<14} {lack}"),
        }
    }
}

fn findings() -> Vec<Finding> {
    vec![
        Finding { what: "kernel", found: kernel() },
        Finding { what: "privileges", found: privileges() },
        Finding { what: "xdp", found: xdp() },
        Finding { what: "interfaces", found: interfaces() },
        Finding { what: "accept queue", found: Ok("always there: starts functions without eBPF".into()) },
        Finding { what: "cgroups", found: cgroups() },
        Finding {
            what: "runc",
            found: version("runc", "--version", "runtime = \"oci\" does not work: install runc"),
        },
        Finding { what: "docker", found: docker() },
        Finding { what: "syn cookies", found: syn_cookies() },
        Finding { what: "open files", found: open_files() },
    ]
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn kernel() -> Result<String, String> {
    read("/proc/sys/kernel/osrelease").ok_or_else(|| "/proc is not mounted: nothing works without it".into())
}

fn privileges() -> Result<String, String> {
    if nix::unistd::geteuid().is_root() {
        Ok("root".into())
    } else {
        Err("not root: no XDP, no containers, only a look around; run it as root or through the systemd unit"
            .into())
    }
}

fn xdp() -> Result<String, String> {
    match Sensor::load(headstart_ebpf::OBJECT) {
        Ok(_) => Ok("the program loads; `headstart run` logs the mode of each interface".into()),
        Err(error) => {
            Err(format!("starts happen at the end of the handshake, one round trip later: {error}"))
        }
    }
}

fn interfaces() -> Result<String, String> {
    let uplinks = uplinks();
    if uplinks.is_empty() {
        return Err(
            "no interface has a default route: name them in `interfaces`, [\"auto\"] finds none".into()
        );
    }
    Ok(format!("[\"auto\"] means {}", uplinks.join(", ")))
}

fn cgroups() -> Result<String, String> {
    let v2 = read("/sys/fs/cgroup/cgroup.controllers").is_some_and(|list| list.contains("memory"));
    let v1 = Path::new("/sys/fs/cgroup/memory").is_dir() && Path::new("/sys/fs/cgroup/pids").is_dir();
    match (v2, v1) {
        (true, _) => Ok("v2".into()),
        (false, true) => Ok("v1".into()),
        (false, false) => {
            Err("memory and pids limits are not enforced: mount cgroup v2 on /sys/fs/cgroup".into())
        }
    }
}

fn version(program: &str, flag: &str, lack: &str) -> Result<String, String> {
    let output = Command::new(program).arg(flag).output().map_err(|_| lack.to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or("installed").to_owned())
}

fn docker() -> Result<String, String> {
    let socket = "/var/run/docker.sock";
    match UnixStream::connect(socket) {
        Ok(_) => Ok(format!("a daemon listens on {socket}")),
        Err(error) => Err(format!("runtime = \"docker\" does not work: {socket}: {error}; start dockerd")),
    }
}

fn syn_cookies() -> Result<String, String> {
    match read("/proc/sys/net/ipv4/tcp_syncookies").as_deref() {
        Some("0") => Err("a SYN flood can fill the listeners: sysctl net.ipv4.tcp_syncookies=1".into()),
        _ => Ok("on: listeners survive a SYN flood".into()),
    }
}

fn open_files() -> Result<String, String> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| error.to_string())?;
    if soft < OPEN_FILES_MIN {
        return Err(format!(
            "{soft} bounds functions and pooled connections: LimitNOFILE={OPEN_FILES_MIN} in the unit"
        ));
    }
    Ok(soft.to_string())
}
