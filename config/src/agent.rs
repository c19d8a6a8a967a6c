//! `[agent]`: the daemon itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::config::{MAX_FUNCTIONS, USERS_EACH};
use crate::image::IMAGE_DIR;
use crate::problem::Origin;
use crate::table::{Report, Table, Value};

/// Longest `state_dir` in bytes. A file name has at most 255, and some bytes need more than one in the name of a cgroup.
const STATE_DIR_MAX: usize = 200;

/// The daemon's own settings. All have defaults, so the section may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Where the eBPF programs that see packets are attached. Default `[]`: nowhere, starts are then triggered
    /// by the socket lookup ([`Syn::lookup`]), and by the accept queue.
    ///
    /// [`Syn::lookup`]: crate::Syn::lookup
    pub interfaces: Interfaces,
    /// Where `/metrics` and the API are served, for reading. Default `127.0.0.1:9464`. Port 0 takes a free port.
    pub admin: SocketAddr,
    /// Directory of the agent's own files (control sockets, parked containers); an absolute path of at most 200 bytes. Default
    /// `/run/headstart`.
    pub state_dir: PathBuf,
    /// The cgroup that holds those of the instances, except Docker's; an absolute path from the root of the hierarchy.
    /// Default `/headstart`, which the agent makes; any other must exist.
    pub cgroup_parent: PathBuf,
    /// Socket of the Docker API; an absolute path. Default `/var/run/docker.sock`.
    pub docker_socket: PathBuf,
    /// Where images are that were pulled ([`crate::image`]); an absolute path. Default `/var/lib/headstart/images`.
    pub image_dir: PathBuf,
    /// The OCI runtime: an absolute path, or a name that is looked up in `PATH`. Default `runc`.
    pub runc: PathBuf,
    /// The first process of instances of programs that know nothing of Headstart; an absolute path. Default:
    /// `headstart-init` beside the agent's program.
    pub init: Option<PathBuf>,
    /// Users of functions with the runtimes `oci` and `process`, two for each function; from 65536 on, and enough for
    /// [`MAX_FUNCTIONS`]. Default `None`: all are 65534 (`nobody`).
    ///
    /// [`MAX_FUNCTIONS`]: crate::MAX_FUNCTIONS
    pub uids: Option<RangeInclusive<u32>>,
    /// Whether each container of the runtime `oci` has a user namespace of its own. Needs [`Agent::uids`]. Default: `true`
    /// with them.
    pub user_namespaces: bool,
    /// Threads that carry bytes between functions and backends: TLS that the agent speaks for functions, the sockets of
    /// `backend_sockets` and `backend_ports`, and logins. Starts are decided on a thread of their own. 1 to 256. Default:
    /// one less than the processors that the agent may use, and at least 1.
    pub data_threads: usize,
    /// As long as the node has less memory available than this (`MemAvailable`, proc(5)), idle instances give up theirs: 16 MiB
    /// to 1024 GiB. Default `None`: `false`, never.
    pub memory_reserve: Option<u64>,
    /// Form of the log. Default `text`.
    pub log: LogFormat,
    /// Where this section is in the file.
    pub origin: Origin,
}

/// The network interfaces on which SYNs are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// `["auto"]`: the interfaces that carry a default route, and those of VXLAN and Geneve tunnels.
    Auto,
    /// These interfaces, without repetition.
    Named(Vec<String>),
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `text`: for people.
    Text,
    /// `json`: one JSON object a line.
    Json,
}

impl Default for Agent {
    /// As if the section were left out.
    fn default() -> Self {
        Self::read(Table::absent(&Report::new("", ""), "agent"))
    }
}

impl Agent {
    pub(crate) fn read(mut table: Table<'_>) -> Self {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 9464));
        let uids = table.or("uids", None, |v| uids(&v).map(Some));
        Self {
            interfaces: table.or("interfaces", Interfaces::Named(Vec::new()), |v| interfaces(&v)),
            admin: table.or("admin", admin, |v| v.socket_address()),
            state_dir: table.or("state_dir", "/run/headstart".into(), |v| {
                let path = v.absolute_path()?;
                let message =
                    || format!("must have at most {STATE_DIR_MAX} bytes: cgroups are named after it");
                if path.as_os_str().len() <= STATE_DIR_MAX { Some(path) } else { v.fail(message()) }
            }),
            cgroup_parent: table.or("cgroup_parent", "/headstart".into(), |v| v.absolute_path()),
            docker_socket: table.or("docker_socket", "/var/run/docker.sock".into(), |v| v.absolute_path()),
            image_dir: table.or("image_dir", IMAGE_DIR.into(), |v| v.absolute_path()),
            init: table.or("init", None, |v| v.absolute_path().map(Some)),
            runc: table.or("runc", "runc".into(), |v| program(&v)),
            user_namespaces: table.or("user_namespaces", uids.is_some(), |v| match v.boolean()? {
                true if uids.is_none() => v.fail("needs `uids`, from which each function gets its users"),
                wanted => Some(wanted),
            }),
            uids,
            data_threads: table.or("data_threads", data_threads(), |v| v.integer(1..=256)),
            memory_reserve: table.or("memory_reserve", None, |v| v.false_or_size(16 << 20..=1 << 40)),
            log: table.or("log", LogFormat::Text, |v| {
                v.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
            }),
            origin: table.finish(),
        }
    }
}

/// User numbers are up to 4294967294: the last is "no user" (chown(2)).
fn uids(value: &Value<'_>) -> Option<RangeInclusive<u32>> {
    let needed = MAX_FUNCTIONS * USERS_EACH;
    let range = |text: &str| -> Option<RangeInclusive<u32>> {
        let (first, last) = text.split_once('-')?;
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        let count = u64::from(last).checked_sub(u64::from(first))? + 1;
        (first > 65_535 && last < u32::MAX && count >= needed as u64).then_some(first..=last)
    };
    let rule = format!("a range of at least {needed} users from 65536 on, as in \"1900000000-1900065535\"");
    value.matching(&rule, |text| range(text).is_some()).and_then(|text| range(&text))
}

fn data_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.saturating_sub(1).clamp(1, 256)
}

fn interfaces(value: &Value<'_>) -> Option<Interfaces> {
    let items = value.list()?;
    let alone = items.len() == 1;
    let mut names: Vec<String> = Vec::new();
    let mut auto = false;
    for item in &items {
        let Some(name) = item.matching("the name of a network interface, 1 to 15 characters", is_interface)
        else {
            continue;
        };
        if name == "auto" && !alone {
            item.fail::<()>("\"auto\" must stand alone, as in [\"auto\"]");
        } else if names.contains(&name) {
            item.fail::<()>(format!("{name:?} is listed twice"));
        }
        auto |= name == "auto";
        names.push(name);
    }
    Some(if auto { Interfaces::Auto } else { Interfaces::Named(names) })
}

/// As the kernel's `dev_valid_name`; names are at most `IFNAMSIZ` - 1 bytes (linux/if.h).
fn is_interface(name: &str) -> bool {
    let odd =
        |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte.is_ascii_control();
    (1..=15).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(odd)
}

fn program(value: &Value<'_>) -> Option<PathBuf> {
    let rule = "an absolute path, or a name without \"/\" that is looked up in PATH";
    let valid = |text: &str| text.starts_with('/') || (!text.is_empty() && !text.contains('/'));
    value.matching(rule, valid).map(PathBuf::from)
}
