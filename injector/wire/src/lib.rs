//! The control socket between the Headstart agent and one function instance.
//!
//! A `SOCK_SEQPACKET` unix socket carries one message per packet, with
//! descriptors beside it (`SCM_RIGHTS`, unix(7)). The life of an instance:
//!
//! ```text
//! function                         agent
//!    | ------- Hello ------------->  |   (with an inherited socket the lease is queued already)
//!    | <------ Lease + descriptors - |   listener, activity page, then one per granted backend
//!    | ------- Ack ----------------> |   the agent closes its copies
//!    | ------- Ready --------------> |   the function accepts from now on
//!    | ------- Served -------------> |   once, after the first response
//!    | ------- Request ------------> |   any time: one more connection of a configured backend
//!    | <------ Grant + descriptor -- |
//!    | ------- Returned -----------> |   any time: a connection that was given is closed
//!    | ------- NextKey ------------> |   any time: the next key of a TLS session that was given
//!    | <------ NextKey ------------- |
//!    | <------ Freeze -------------- |   stop accepting, you are about to be frozen
//!    | ------- Quiet or Busy ------> |   after Busy the function goes on as before the Freeze
//!    |   (frozen, for any time)      |
//!    | <------ Thaw ---------------- |   also if the instance was not frozen after all
//!    | ------- Thawed -------------> |   the function accepts again
//! ```
//!
//! Each Freeze gets one Quiet or Busy, each Thaw one Thawed. Connections that are closed because of
//! a Freeze or found dead at a Thaw are Returned before its answer. The number of open client
//! connections takes no message: both sides use the [`Activity`] page.
//!
//! A packet is `b"HS"`, the version byte, a zero byte, and a JSON body: small,
//! readable in a trace, and easy to speak from any language. A message is an object whose only key is its name in
//! snake case. So are a [`GrantStatus`] and a [`Session`], or the name alone if it has no fields:
//! `{"grant":{"backend":"db","status":{"ready":{"session":"tcp"}}}}`.

mod activity;
mod channel;
mod heap;
pub mod idmap;
pub mod ktls;
pub mod memory;
mod message;
pub mod netlink;
mod queue;
mod rights;
mod session;
mod tls;

pub use activity::{Activity, ActivityReading, PAGE_BYTES};
pub use channel::{Channel, ReceivedMessage};
pub use heap::share_heaps;
pub use message::{
    Direction, Grant, GrantStatus, HEADER_BYTES, Lease, MAX_BACKENDS, ToAgent, ToFunction, VERSION,
};
pub use queue::accept_queue;
pub use rights::{close_aside, refuse_descriptors};
pub use session::{AuditFields, Session};
pub use tls::{Flow, Suite, TlsSession, TrafficKey, TrafficKeys};

/// Environment variable that names the inherited control descriptor, in decimal.
pub const CONTROL_FD_ENV: &str = "HEADSTART_CONTROL_FD";

/// Descriptor number of an inherited control socket: the first after standard error.
pub const CONTROL_FD: i32 = 3;

/// Where a container that cannot inherit descriptors finds its control socket.
pub const CONTROL_PATH: &str = "/run/headstart/control.sock";

/// Where an instance finds its backends as sockets, each in a directory of the backend's name, if its function has
/// `backend_sockets`.
pub const BACKENDS_PATH: &str = "/run/headstart/backends";

/// Why a packet was refused, or could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer closed its end: an instance that exited, or an agent that stopped.
    #[error("the control socket was closed by the other side")]
    Closed,
    /// The packet is larger than its direction allows.
    #[error("a control message is larger than {limit} bytes")]
    Oversized {
        /// The limit of this direction, in bytes.
        limit: usize,
    },
    /// The packet is shorter than a header, or does not begin with `HS`.
    #[error("a control message has no Headstart header")]
    Header,
    /// The peer speaks another version of this protocol.
    #[error(
        "a control message has version {got}, this side speaks {VERSION}: rebuild the function or the agent"
    )]
    Version {
        /// The version byte that was received.
        got: u8,
    },
    /// The body is not the JSON of a known message.
    #[error("a control message cannot be read: {0}")]
    Body(#[from] serde_json::Error),
    /// The number of descriptors is not what the message announces.
    #[error("a control message came with {got} descriptors instead of {expected}")]
    Descriptors {
        /// How many the message calls for.
        expected: usize,
        /// How many came. All were closed.
        got: usize,
    },
    /// The socket call failed. `WouldBlock` on a non-blocking socket is not a fault.
    #[error("the control socket failed: {0}")]
    Io(#[from] std::io::Error),
}

impl WireError {
    /// A short constant name, for logs and metric labels.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Oversized { .. } => "oversized",
            Self::Header => "header",
            Self::Version { .. } => "version",
            Self::Body(_) => "body",
            Self::Descriptors { .. } => "descriptors",
            Self::Io(_) => "io",
        }
    }

    /// True when a non-blocking socket simply has nothing to read, or no room to write.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock that BPF, agent and functions share.
///
/// # Errors
/// Fails only where the kernel has no such clock.
pub fn monotonic_ns() -> std::io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec()).unwrap_or(0);
    Ok(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}
