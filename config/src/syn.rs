//! `[syn]`: how SYNs are watched, who may wake functions, and what a flood may cost.

use std::path::PathBuf;
use std::time::Duration;

use crate::problem::Origin;

mod cidr;
mod read;

pub use cidr::{Cidr, MAX_CIDRS};

/// The settings of the sensors. All have defaults, so the section may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syn {
    /// Directory on a BPF file system where programs and maps outlive the agent; an absolute path. Default
    /// `/sys/fs/bpf/headstart`.
    pub pin_dir: PathBuf,
    /// Whether the socket lookup is a sensor beside the interfaces: it sees loopback, containers of this host
    /// and ports after DNAT, and gives a shared port's connections to the function they name. Default true.
    pub lookup: bool,
    /// File with the keys of clients (see [`crate::keys`]); an absolute path. Default: no client has a key.
    pub key_file: Option<PathBuf>,
    /// The name of this node, or of its group, from which with each key of `key_file` the one is made that its clients use; 1
    /// to 63 of a-z, 0-9 and "-", and only with `key_file`. Default: the keys of the file.
    pub audience: Option<String>,
    /// UDP port of knocks; not 0, and only with `key_file`. Default: no knocks.
    pub knock_port: Option<u16>,
    /// How long a knock opens a function with [`RequireAuth`] to the knock's source, 1 s to 1 h. Default 30 s.
    ///
    /// [`RequireAuth`]: crate::RequireAuth
    pub knock_opens: Duration,
    /// Sources with a budget of starts of their own and no limit of events; at most [`MAX_CIDRS`], none twice. Default none.
    pub allow: Vec<Cidr>,
    /// Sources that wake no function, as health checkers; at most [`MAX_CIDRS`],
    /// none twice or in `allow`. Default none.
    pub ignore: Vec<Cidr>,
    /// A SYN which no connection follows within this time was unused, 1 s to 5 m. Default 10 s.
    pub unused_after: Duration,
    /// SYNs without a key that may raise events.
    pub events: EventLimits,
    /// Early starts that SYNs without a key may cause.
    pub starts: StartBudget,
    /// Where this section is in the file.
    pub origin: Origin,
}

impl Syn {
    /// Whether `key_file` is written, be it wrong: one mistake is one problem.
    pub(crate) fn has_key_file(&self) -> bool {
        self.origin.lines.contains_key("key_file")
    }
}

/// SYNs without a key that may raise events, per second, 1 to 1000000 each. A SYN above a limit passes; its
/// function starts when the connection is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLimits {
    /// Of one source (an IPv4 address or an IPv6 /64) on each CPU. The kernel counts to 65535. Default 64.
    pub source: u32,
    /// To one function. Default 256.
    pub function: u32,
    /// On this node; sources in `allow` have as many for themselves. Default 1024.
    pub global: u32,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self { source: 64, function: 256, global: 1_024 }
    }
}

/// Early starts that SYNs without a key may cause. Each budget grows while connections follow the SYNs, and is
/// halved when they do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartBudget {
    /// Of one function. Default 1 to 16.
    pub function: BudgetRange,
    /// Of this node. Default 8 to 128.
    pub global: BudgetRange,
    /// Of the sources in `allow`, altogether: the two above do not apply to them. Default 64 to 1024.
    pub allow: BudgetRange,
}

impl Default for StartBudget {
    fn default() -> Self {
        Self {
            function: BudgetRange { min: 1, max: 16 },
            global: BudgetRange { min: 8, max: 128 },
            allow: BudgetRange { min: 64, max: 1_024 },
        }
    }
}

/// Between what a budget moves, in starts per second, 1 to 100000 each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetRange {
    /// Left even under attack; at most `max`.
    pub min: u32,
    /// Never exceeded.
    pub max: u32,
}
