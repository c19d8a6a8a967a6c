//! `[[function]]`: what is started and served.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::problem::Origin;

mod contract;
mod files;
mod from_image;
mod read;
mod rootfs;
mod runtime;
mod stop_signal;

pub use contract::{Contract, LAMBDA_CONCURRENCY_MAX};
pub use files::{Mount, SECRETS_PATH, Secret};
pub use runtime::{DockerNetwork, NOBODY, NOBODY_ID, Runtime};
pub use stop_signal::StopSignal;

/// The most backends of one function.
pub const MAX_FUNCTION_BACKENDS: usize = 16;

/// A program that is started when a client comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Unique; 1 to 63 of a-z, 0-9 and "-". Metrics and container names use it.
    pub name: String,
    /// The number by which clients name the function in a SYN or a knock; unique, not 0. Default none.
    pub id: Option<u32>,
    /// The address the agent binds for the function; the port is not 0, and no other function (nor `admin`)
    /// overlaps with it, except that functions with different `id`s may share one address. One of these may
    /// have no `id`: it gets the connections that name no function.
    pub listen: SocketAddr,
    /// The hosts that mean the function at every front, in lower case, `*.` for one label; at most 64. Default none.
    pub hosts: Vec<String>,
    /// The beginnings of paths that mean it there, at most 64. Not without `hosts`. Default none: all paths.
    pub paths: Vec<String>,
    /// What clients without a key may do. Default [`RequireAuth::No`].
    pub require_auth: RequireAuth,
    /// How an instance is run.
    pub runtime: Runtime,
    /// How an instance gets its connections. Default [`Contract::Headstart`].
    pub contract: Contract,
    /// What a client of the Runtime API is to run, as in "app.handler": the variable `_HANDLER`. Only with
    /// [`Contract::Lambda`]. Default none.
    pub handler: Option<String>,
    /// User of its processes, for the runtimes that do not name one: one of [`Agent::uids`] which no other function has, or
    /// that of its image, or 65534.
    ///
    /// [`Agent::uids`]: crate::Agent::uids
    pub user: u32,
    /// Their group. The same number, unless its image says otherwise.
    pub group: u32,
    /// The user of the host that is root in the user namespace of an instance. `None`: there is no such namespace.
    pub namespace_root: Option<u32>,
    /// Program and arguments. Never empty, and an absolute path first, except with an image: there it may be
    /// empty, which means the image's own command.
    pub command: Vec<String>,
    /// The directory in which the program starts; an absolute path. Default: that of the image, or `/`. With Docker
    /// this key cannot change it.
    pub workdir: PathBuf,
    /// Environment of the instance, beside what the agent adds. Default empty.
    pub env: Env,
    /// Files and directories of the host that instances see, at most 16. Default none.
    pub mounts: Vec<Mount>,
    /// Files of which instances get the content in memory, at most 16. Not with Docker. Default none.
    pub secrets: Vec<Secret>,
    /// Names of the backends of which the function gets connections, at most [`MAX_FUNCTION_BACKENDS`]. Each
    /// exists, none twice. Default none.
    pub backends: Vec<String>,
    /// Containers to prepare ahead, 0 to 64. Default 1; 0 turns preparing off.
    pub prepared: usize,
    /// Memory limit of an instance in bytes, 6 MiB (less Docker refuses) to 1024 GiB. Default 128 MiB.
    pub memory_bytes: u64,
    /// The most processor time of an instance, in thousandths of a processor, 10 to 1024000. Default `None`: all.
    pub cpu_millis: Option<u32>,
    /// The share of processor time when several want more than there is, 1 to 10000. Default `None`: the kernel's, 100.
    pub cpu_weight: Option<u32>,
    /// The same for block devices.
    pub io_weight: Option<u32>,
    /// The most processes and threads of an instance, 1 to 4194304 (the kernel's own limit). Default 512.
    pub pids: u32,
    /// Deadline from the start of an instance to its being ready, 100 ms to 1 h. Default 30 s.
    pub init_timeout: Duration,
    /// What asks the program to stop, if its contract is not one that speaks to the agent. Default `None`: that of its image,
    /// or SIGTERM.
    pub stop_signal: Option<StopSignal>,
    /// Time between that and SIGKILL, 0 to 10 m. Default 10 s.
    pub stop_grace: Duration,
    /// Connections the kernel keeps for the function while it starts (the backlog of `listen`), 1 to 65535.
    /// Default 1024. The kernel cuts it to `net.core.somaxconn`.
    pub backlog: u16,
    /// Ceiling of the back-off after failed starts, 100 ms to 1 h. Default 30 s.
    pub retry_max: Duration,
    /// Connections that one instance serves at a time, 1 to 65535. Default `None`: `"unlimited"`, except with
    /// [`Contract::Lambda`]: 1, and at most [`LAMBDA_CONCURRENCY_MAX`].
    pub concurrency: Option<u32>,
    /// Instances that are started ahead, initialised and kept ready, 0 to 64 and at most `max_instances`.
    /// Default 0.
    pub min_ready: u32,
    /// Instances that are initialised ahead and sleep until a client comes, 0 to 64 and at most `max_instances`; needs
    /// `freeze_after`. Default 0.
    pub standby: u32,
    /// The most instances at a time, 0 to 1000. Default 16; 0 turns the function off, its connections get the
    /// [`Overload`] answer.
    pub max_instances: u32,
    /// How long a connection may wait in the accept queue before it gets the [`Overload`] answer, 100 ms to
    /// 1 h. Default 30 s.
    pub queue_timeout: Duration,
    /// What connections get that no instance can take. Default [`Overload::Http503`].
    pub overload: Overload,
    /// Idle time after which an instance is frozen, 10 ms to 24 h and less than `stop_after`. Default `None`:
    /// `false`, never.
    pub freeze_after: Option<Duration>,
    /// Idle time after which the memory of a frozen instance is written to swap, between `freeze_after` and `stop_after`.
    /// Default `None`: `false`, never.
    pub hibernate_after: Option<Duration>,
    /// Idle time after which an instance is stopped, 10 ms to 24 h. `None` is `false`, never. Default 15 m.
    pub stop_after: Option<Duration>,
    /// What happens to an instance's backend connections while it is frozen. Default
    /// [`FreezeBackends::Keep`].
    pub freeze_backends: FreezeBackends,
    /// Instances find their backends as sockets, for drivers that know nothing of Headstart, and get no
    /// connections by the shim. Default `false`.
    pub backend_sockets: bool,
    /// Backends that instances find at ports of 127.0.0.1 too, for drivers that know only TCP; 1024 to 65535. Only with
    /// `backend_sockets`, and if the instance's network namespace exists before it: runtimes `oci` and `process`. Default
    /// none.
    pub backend_ports: Vec<(String, u16)>,
    /// The kernel continues TLS sessions that the agent began, if they are TLS 1.3 with a key of 256 bits. If it cannot, the
    /// instance does: its shim must speak TLS for that, as the Rust one with its feature `tls`. Not with `backend_sockets`.
    /// Default `false`: the agent speaks TLS for instances.
    pub tls_hand_over: bool,
    /// The fewest failed starts in a row before the function rests, 1 to 10. Default 3. The first time they are repeated for
    /// a second.
    pub start_attempts: u32,
    /// How long a function that failed so often is left alone at most, 100 ms to 1 h: 1 s the first time, twice as long each
    /// further time. Its connections get the [`Overload`] answer meanwhile. Default 30 s.
    pub cooldown: Duration,
    /// Which files of the host instances begin with, as they were when the configuration was loaded: where links led, and when
    /// programs were changed. Empty where only a text was parsed.
    pub found: String,
    /// Where this section is in the file.
    pub origin: Origin,
}

impl Function {
    /// Whether `other` says the same, wherever it stands in its file.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

/// What a client needs a key of [`Syn::key_file`] for.
///
/// [`Syn::key_file`]: crate::Syn::key_file
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequireAuth {
    /// `false`: for nothing.
    No,
    /// `"wake"`: to start the function early. Others can connect, and it starts then.
    Wake,
    /// `"connect"`: to connect at all. Others are refused.
    Connect,
}

impl RequireAuth {
    /// What a key is needed for, in one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Wake => "wake",
            Self::Connect => "connect",
        }
    }
}

/// The answer to connections that no instance can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// `"http-503"`: Service Unavailable (RFC 9110, 15.6.4), with Retry-After.
    Http503,
    /// `"http-429"`: Too Many Requests (RFC 6585, 4), with Retry-After.
    Http429,
    /// `"reset"`: none, the connection is reset. For functions that do not speak HTTP.
    Reset,
}

impl Overload {
    /// The word in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http503 => "http-503",
            Self::Http429 => "http-429",
            Self::Reset => "reset",
        }
    }
}

/// What happens to the backend connections of a frozen instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeBackends {
    /// `"keep"`: they stay open, and keep their places in the pools.
    Keep,
    /// `"return"`: they are closed before the freeze, and the instance gets new ones at the thaw.
    Return,
}

impl FreezeBackends {
    /// The word in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Return => "return",
        }
    }
}

/// Environment variables. `Debug` shows their names only: values may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The variables as (name, value), by name. Names are letters, digits and "_", and do not begin with a
    /// digit or with `HEADSTART_`, which is the agent's own.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl FromIterator<(String, String)> for Env {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
