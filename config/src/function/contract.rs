//! `contract`: how an instance gets its connections.

use std::net::SocketAddr;
use std::num::NonZeroU16;

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
}

#[derive(Clone, Copy)]
enum ContractKind {
    Headstart,
    Port,
    ListenFds,
}

impl ContractKind {
    const WORDS: [(&str, Self); 3] =
        [("headstart", Self::Headstart), ("port", Self::Port), ("listen-fds", Self::ListenFds)];
}

impl Contract {
    /// The word in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Headstart => "headstart",
            Self::Port(_) => "port",
            Self::ListenFds => "listen-fds",
        }
    }

    /// Reads the keys `contract` and `port`. The default port is that of `listen`.
    pub(super) fn read(table: &mut Table<'_>, listen: Option<SocketAddr>) -> Self {
        let kind = table.or("contract", ContractKind::Headstart, |v| v.choice(&ContractKind::WORDS));
        match kind {
            ContractKind::Port => {
                // Any port does where `listen` is wrong.
                let default = listen.map_or(0, |listen| listen.port());
                let port = table.or("port", default, |v| v.integer(1..=u16::MAX));
                Self::Port(NonZeroU16::new(port).unwrap_or(NonZeroU16::MIN))
            }
            ContractKind::Headstart | ContractKind::ListenFds => {
                table.refuse("port", "belongs to contract = \"port\"");
                if matches!(kind, ContractKind::ListenFds) { Self::ListenFds } else { Self::Headstart }
            }
        }
    }
}
