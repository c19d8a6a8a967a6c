//! `headstart doctor`: what this host can do, and what each lack costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use headstart_config::keys::Keys;
use headstart_config::{Agent, Config};
use headstart_injector::can_tell_sockets;
use headstart_wire::ktls;
use nix::sys::resource::{Resource, getrlimit};
use rustix::thread::CapabilitySet;

use super::arguments;
use crate::setup::contract::{init_file, lambda_file};
use crate::start::{Drivers, Lack};
use crate::syn::{Kernel, KernelProgram, automatic};
use crate::{guard, privilege};

/// Descriptors for a node of a few hundred functions with their pools.
const OPEN_FILES_MIN: u64 = 65_536;

/// `headstart doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// A configuration: its runtimes are checked instead of the defaults, and its key file too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Prints what was found. What is missing is no failure.
pub(super) fn run(args: &DoctorArgs) -> ExitCode {
    match args.config.as_deref().map(arguments::load).transpose() {
        Ok(config) => {
            print(config.as_ref());
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// One thing that was looked at.
struct Finding {
    what: &'static str,
    /// What was found; or what is missing, what that costs, and what to do.
    found: Result<String, Lack>,
}

/// Prints one line for each thing that Headstart can use: of what `config` names, or of the defaults.
fn print(config: Option<&Config>) {
    let default = || Agent { user_namespaces: true, ..Agent::default() };
    let agent = config.map_or_else(default, |config| config.agent.clone());
    let mut findings = findings(&Drivers::new(&agent));
    findings.push(Finding { what: "init", found: init(&agent) });
    for Finding { what, found } in findings.into_iter().chain(config.and_then(keys)) {
        match found {
            Ok(found) => println!("ok       {what:<15} {found}"),
            Err(lack) => println!("missing  {what:<15} {lack}"),
        }
    }
}

fn findings(drivers: &Drivers) -> Vec<Finding> {
    let mut findings = vec![
        Finding { what: "kernel", found: kernel() },
        Finding { what: "privileges", found: privileges() },
        Finding { what: "capabilities", found: capabilities() },
        Finding { what: "btf", found: btf() },
    ];
    findings.extend(sensors());
    findings.extend([
        Finding { what: "pinning", found: pinning() },
        Finding { what: "interfaces", found: interfaces() },
        Finding { what: "accept queue", found: Ok("always there: starts functions without eBPF".into()) },
        Finding { what: "cgroups", found: cgroups() },
        Finding { what: "guard", found: sockets() },
        Finding { what: "swap", found: swap(&read("/proc/swaps").unwrap_or_default(), is_encrypted) },
    ]);
    findings
        .extend(drivers.checks().into_iter().map(|check| Finding { what: check.what, found: check.found }));
    findings.extend([
        Finding { what: "ktls", found: kernel_tls() },
        Finding { what: "passrights", found: passrights() },
        Finding { what: "sock_diag", found: sock_diag() },
        Finding { what: "syn cookies", found: syn_cookies() },
        Finding { what: "open files", found: open_files() },
    ]);
    findings
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn kernel() -> Result<String, Lack> {
    read("/proc/sys/kernel/osrelease").ok_or_else(|| "/proc is not mounted: nothing works without it".into())
}

fn privileges() -> Result<String, Lack> {
    if nix::unistd::geteuid().is_root() {
        Ok("root".into())
    } else {
        Err("not root: no XDP, no containers, only a look around; run it as root or through the systemd unit"
            .into())
    }
}

/// What the kernel half needs, each of which root has.
const CAPABILITIES: [(&str, CapabilitySet); 3] = [
    ("CAP_BPF", CapabilitySet::BPF),
    ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
    ("CAP_PERFMON", CapabilitySet::PERFMON),
];

fn capabilities() -> Result<String, Lack> {
    let own = rustix::thread::capabilities(None).map_err(|error| error.to_string())?.effective;
    let lacking: Vec<_> =
        CAPABILITIES.iter().filter(|(_, needed)| !own.contains(*needed)).map(|(name, _)| *name).collect();
    if lacking.is_empty() {
        return Ok("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, to load and attach the eBPF programs".into());
    }
    Err(format!("no eBPF, starts happen one round trip later: {} is not here", lacking.join(", ")).into())
}

fn btf() -> Result<String, Lack> {
    let path = "/sys/kernel/btf/vmlinux";
    match Path::new(path).exists() {
        true => Ok("the kernel describes its types".into()),
        false => {
            Err(format!("no eBPF, starts happen one round trip later: {path} needs CONFIG_DEBUG_INFO_BTF")
                .into())
        }
    }
}

/// Each program of the kernel half: whether this kernel takes it. Where it can be attached is known only by
/// attaching, which `headstart run` does and logs.
fn sensors() -> Vec<Finding> {
    let kernel = Kernel::load(headstart_ebpf::OBJECT, None);
    let sensor = |part| {
        let (what, does) = match part {
            KernelProgram::Xdp => ("xdp", "loads; native where the driver can, else generic"),
            KernelProgram::Tcx => ("tcx", "loads; for interfaces that refuse XDP or have another program"),
            KernelProgram::Lookup => (
                "sk_lookup",
                "loads; sees loopback, containers of this host, DNAT; shared ports and the lobby",
            ),
            KernelProgram::Gate => ("gate", "loads; require_auth = \"connect\" holds on every path"),
        };
        let found = match &kernel {
            Ok(kernel) => match kernel.refused().get(&part) {
                None if part == KernelProgram::Tcx => tcx(privilege::kernel_release(), does),
                None => Ok(does.to_owned()),
                Some(error) => Err(error.to_string().into()),
            },
            Err(error) => Err(format!("{}: {error}", part.cost()).into()),
        };
        Finding { what, found }
    };
    KernelProgram::ALL.into_iter().map(sensor).collect()
}

/// The program loads also where it cannot be attached.
fn tcx(release: Option<(u32, u32)>, does: &str) -> Result<String, Lack> {
    let (major, minor) = privilege::TC_BY_DESCRIPTOR;
    match release {
        Some(release) if release < privilege::TC_BY_DESCRIPTOR => Err(format!(
            "{}: it loads, but only Linux {major}.{minor} and later can attach it",
            KernelProgram::Tcx.cost()
        )
        .into()),
        _ => Ok(does.to_owned()),
    }
}

/// The key file, when one is configured.
fn keys(config: &Config) -> Option<Finding> {
    let file = config.syn.key_file.as_ref()?;
    let found = match Keys::load(file) {
        Ok(keys) if keys.is_empty() => Err(format!("{}: no client has a key", file.display()).into()),
        Ok(keys) => Ok(format!("{}: {} keys", file.display(), keys.iter().count())),
        Err(error) => Err(format!("no client has a key: {error}").into()),
    };
    Some(Finding { what: "key file", found })
}

fn pinning() -> Result<String, Lack> {
    let mounted = read("/proc/self/mounts").unwrap_or_default();
    let dir = mounted.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let dir = words.next()?;
        (words.next()? == "bpf").then(|| dir.to_owned())
    });
    match dir {
        Some(dir) => Ok(format!("a BPF file system is on {dir}: sensors outlive the agent")),
        None if nix::unistd::geteuid().is_root() && Path::new("/sys/fs/bpf").is_dir() => {
            Ok("no BPF file system is mounted; `headstart run` mounts one on /sys/fs/bpf".into())
        }
        None => Err("while the agent restarts nothing is seen: mount -t bpf bpf /sys/fs/bpf".into()),
    }
}

fn interfaces() -> Result<String, Lack> {
    let found = automatic();
    if found.is_empty() {
        return Err(
            "no interface has a default route or is a tunnel: name them in `interfaces`, [\"auto\"] finds none".into()
        );
    }
    Ok(format!("[\"auto\"] means {}", found.join(", ")))
}

fn cgroups() -> Result<String, Lack> {
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

/// What `hibernate_after` writes memory to (proc(5), `swaps`).
fn swap(swaps: &str, is_encrypted: impl Fn(&str) -> bool) -> Result<String, Lack> {
    let devices: Vec<_> =
        swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next()).collect();
    if devices.is_empty() {
        return Err("hibernate_after has no effect, frozen instances keep their memory: add some; compressed in memory it \
                    is quickest (Debian: apt install zram-tools)"
            .into());
    }
    let is_disk = |device: &&str| !device.starts_with("/dev/zram") && !is_encrypted(device);
    let disks: Vec<_> = devices.iter().copied().filter(is_disk).collect();
    let warning = match disks.is_empty() {
        true => String::new(),
        false => format!("; {} keeps what functions had in memory, unless it is encrypted", disks.join(", ")),
    };
    Ok(format!("{}: hibernate_after writes memory there{warning}", devices.join(", ")))
}

/// Whether it is a device of dm-crypt. Logical volumes have names of the same kind.
fn is_encrypted(device: &str) -> bool {
    let Some(name) = device.strip_prefix("/dev/").filter(|name| name.starts_with("dm-")) else {
        return false;
    };
    std::fs::read_to_string(format!("/sys/block/{name}/dm/uuid")).is_ok_and(|uuid| uuid.starts_with("CRYPT-"))
}

fn sockets() -> Result<String, Lack> {
    guard::check().map_err(|error| error.to_string())?;
    Ok("functions cannot connect or bind anew the sockets that they are given".into())
}

fn kernel_tls() -> Result<String, Lack> {
    match (ktls::load(), ktls::can_rekey()) {
        (true, true) => Ok("tls_hand_over: the kernel goes on with TLS sessions".into()),
        (true, false) => {
            Ok("tls_hand_over: the kernel goes on with TLS sessions, but not when a server changes its \
                             keys (Linux 6.14 does)"
                .into())
        }
        (false, _) => {
            Err("tls_hand_over: functions need the shim's feature `tls`; modprobe tls, or a kernel with \
                           CONFIG_TLS"
                .into())
        }
    }
}

fn passrights() -> Result<String, Lack> {
    let (socket, _) = std::os::unix::net::UnixStream::pair().map_err(|error| error.to_string())?;
    match headstart_wire::refuse_descriptors(&socket) {
        Ok(()) => Ok("functions cannot send descriptors to the agent".into()),
        Err(_) => Err(
            "functions can send descriptors to the agent, and make a relay of backend connections wait that \
                       closes them; Linux 6.16 can forbid it"
                .into(),
        ),
    }
}

fn init(agent: &Agent) -> Result<String, Lack> {
    let (file, lambda) = (init_file(agent), lambda_file(agent));
    if file.is_file() && lambda.is_file() {
        return Ok(format!(
            "{}: unchanged servers, handlers for AWS Lambda, and containers of a daemon that are started ahead",
            file.display()
        ));
    }
    if file.is_file() {
        return Err(format!("no {}: no handlers for AWS Lambda; install it there", lambda.display()).into());
    }
    Err(format!(
        "no {}: only programs with a shim can be functions, and a daemon takes some 200 ms longer for each cold start; \
         install headstart-init there, or name it with `init` in [agent]",
        file.display()
    )
    .into())
}

fn sock_diag() -> Result<String, Lack> {
    match can_tell_sockets().map_err(|error| error.to_string())? {
        true => Ok("the kernel tells when a backend connection of a function is gone, and counts clients of unchanged \
                   servers"
            .into()),
        false => Err(
            "a function that keeps connections that it says it has closed gets more than `max`: modprobe -a \
                      tcp_diag unix_diag"
                .into(),
        ),
    }
}

fn syn_cookies() -> Result<String, Lack> {
    match read("/proc/sys/net/ipv4/tcp_syncookies").as_deref() {
        Some("0") => Err("a SYN flood can fill the listeners: sysctl net.ipv4.tcp_syncookies=1".into()),
        _ => Ok("on: listeners survive a SYN flood".into()),
    }
}

fn open_files() -> Result<String, Lack> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| error.to_string())?;
    open_files_of(hard)
}

/// The agent raises its own limit to the hard one. Under systemd it has that of the unit and not that of this shell.
fn open_files_of(hard: u64) -> Result<String, Lack> {
    if hard < OPEN_FILES_MIN {
        return Err(format!(
            "{hard} bounds functions and pooled connections of an agent that this shell starts: `ulimit -Hn \
             {OPEN_FILES_MIN}`, or start it by the unit, which sets LimitNOFILE=1048576"
        )
        .into());
    }
    Ok(format!("{hard} (the hard limit, to which the agent raises its own; the unit sets 1048576)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcx_needs_a_kernel_that_can_attach_it() {
        assert!(tcx(Some((6, 1)), "loads").unwrap_err().to_string().contains("Linux 6.6"));
        for release in [Some((6, 6)), Some((7, 0)), None] {
            assert_eq!(tcx(release, "loads").ok().as_deref(), Some("loads"));
        }
    }

    #[test]
    fn a_disk_that_memory_is_written_to_is_named() {
        let head = "Filename\tType\tSize\tUsed\tPriority\n";
        let swap = |text: &str| super::swap(text, |device| device == "/dev/dm-1");
        assert!(swap(head).unwrap_err().to_string().contains("hibernate_after has no effect"));
        let memory = swap(&format!("{head}/dev/zram0 partition 1024 0 100\n")).ok().unwrap();
        assert!(!memory.contains("encrypted"), "{memory}");
        let both = format!("{head}/dev/zram0 partition 1024 0 100\n/swapfile file 1024 0 -2\n");
        assert!(swap(&both).ok().unwrap().contains("; /swapfile keeps what"));
        let mapped = format!("{head}/dev/dm-0 partition 1024 0 -2\n/dev/dm-1 partition 1024 0 -3\n");
        assert!(swap(&mapped).ok().unwrap().contains("; /dev/dm-0 keeps what"));
    }

    #[test]
    fn the_hard_limit_of_open_files_counts() {
        assert!(open_files_of(4096).unwrap_err().to_string().contains("by the unit"));
        assert!(open_files_of(1 << 20).is_ok());
    }
}
