//! `contract`: how an instance gets its connections.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use crate::table::Table;

/// How an instance gets its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// `headstart`: it speaks to the agent, by a shim or by itself, and is given its listening socket and its connections.
    Headstart,
    /// `port`: it is any server, which binds this port of its own network (default: that of `listen`). The agent puts its
    /// listening socket there.
    Port(NonZeroU16),
    /// `listen-fds`: it inherits its listening socket as systemd passes it, in `LISTEN_FDS`.
    ListenFds,
    /// `lambda`: it is a client of the Runtime API of AWS Lambda, and gets requests as events.
    Lambda {
        /// How long one invocation may take, 100 ms to 15 m (the most of Lambda). Default 3 s.
        timeout: Duration,
    },
}

/// The most invocations at a time of one instance of [`Contract::Lambda`]: each may have an event of 6 MiB, and the client may
/// make a process for each.
pub const LAMBDA_CONCURRENCY_MAX: u32 = 64;

/// Where `headstart-lambda` listens.
const RUNTIME_API_PORT: u16 = 9001;

const LAMBDAS: &str = "belongs to contract = \"lambda\"";

#[derive(Clone, Copy)]
enum ContractKind {
    Headstart,
    Port,
    ListenFds,
    Lambda,
}

impl ContractKind {
    const WORDS: [(&str, Self); 4] = [
        ("headstart", Self::Headstart),
        ("port", Self::Port),
        ("listen-fds", Self::ListenFds),
        ("lambda", Self::Lambda),
    ];
}

impl Contract {
    /// The word in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Headstart => "headstart",
            Self::Port(_) => "port",
            Self::ListenFds => "listen-fds",
            Self::Lambda { .. } => "lambda",
        }
    }

    /// Whether what runs in an instance speaks to the agent by itself, and counts its connections.
    #[must_use]
    pub fn speaks(self) -> bool {
        match self {
            Self::Headstart | Self::Lambda { .. } => true,
            Self::Port(_) | Self::ListenFds => false,
        }
    }

    /// Whether this port of the instance's loopback is taken.
    pub(super) fn uses(self, port: u16) -> bool {
        matches!(self, Self::Lambda { .. }) && port == RUNTIME_API_PORT
    }

    /// Reads the keys `contract`, `port` and `timeout`. The default port is that of `listen`.
    pub(super) fn read(table: &mut Table<'_>, listen: Option<SocketAddr>) -> Self {
        let kind = table.or("contract", ContractKind::Headstart, |v| v.choice(&ContractKind::WORDS));
        if !matches!(kind, ContractKind::Lambda) {
            table.refuse("timeout", LAMBDAS);
            table.refuse("handler", LAMBDAS);
        }
        match kind {
            ContractKind::Port => {
                // Any port does where `listen` is wrong.
                let default = listen.map_or(0, |listen| listen.port());
                let port = table.or("port", default, |v| v.integer(1..=u16::MAX));
                Self::Port(NonZeroU16::new(port).unwrap_or(NonZeroU16::MIN))
            }
            ContractKind::Headstart | ContractKind::ListenFds | ContractKind::Lambda => {
                table.refuse("port", "belongs to contract = \"port\"");
                match kind {
                    ContractKind::ListenFds => Self::ListenFds,
                    ContractKind::Lambda => {
                        let range = Duration::from_millis(100)..=Duration::from_mins(15);
                        Self::Lambda {
                            timeout: table.or("timeout", Duration::from_secs(3), |v| v.duration(range)),
                        }
                    }
                    ContractKind::Headstart | ContractKind::Port => Self::Headstart,
                }
            }
        }
    }
}
