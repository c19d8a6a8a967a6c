//! The messages of the control socket, and how a packet contains one.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::WireError;
use crate::session::Session;
use crate::tls::{Flow, TlsSession, TrafficKey};

/// Version of the protocol; both sides close a socket that speaks another one.
pub const VERSION: u8 = 3;

/// Bytes before the JSON body: `H`, `S`, version, zero.
pub const HEADER_BYTES: usize = 4;

/// Most backends one function may be configured with. Far below the 253
/// descriptors that unix(7) allows in one message.
pub const MAX_BACKENDS: usize = 16;

/// One direction of the control socket: its messages and their limit.
pub trait Direction: Serialize + DeserializeOwned {
    /// Largest packet of this direction, header included, in bytes.
    const MAX_BYTES: usize;

    /// How many descriptors must accompany this message.
    fn descriptors(&self) -> usize;

    /// The packet that carries this message.
    ///
    /// # Errors
    /// [`WireError::Oversized`] when it does not fit its direction.
    fn encode(&self) -> Result<Vec<u8>, WireError> {
        let mut packet = vec![b'H', b'S', VERSION, 0];
        serde_json::to_writer(&mut packet, self)?;
        if packet.len() > Self::MAX_BYTES {
            return Err(WireError::Oversized { limit: Self::MAX_BYTES });
        }
        Ok(packet)
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// Every way in which a packet can be wrong, see [`WireError`].
    fn decode(packet: &[u8]) -> Result<Self, WireError> {
        match packet {
            [b'H', b'S', VERSION, 0, body @ ..] => Ok(serde_json::from_slice(body)?),
            [b'H', b'S', got, _, ..] if *got != VERSION => Err(WireError::Version { got: *got }),
            _ => Err(WireError::Header),
        }
    }
}

/// From a function to its agent. Times are nanoseconds of `CLOCK_MONOTONIC`, and only
/// used for measurement: the agent clamps them to its own times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAgent {
    /// The shim has started.
    Hello {
        /// Name and version of the shim, for logs.
        shim: String,
        /// When the shim was entered.
        hello_ns: u64,
    },
    /// The descriptors of a lease or grant arrived; the agent closes its copies.
    Ack {
        /// When they arrived.
        injected_ns: u64,
    },
    /// Initialisation is over; the function accepts connections.
    Ready {
        /// When it was over.
        ready_ns: u64,
    },
    /// The first response left. Sent once in an instance's life.
    Served {
        /// When its connection was accepted.
        accept_ns: u64,
        /// When its first bytes were written.
        first_response_ns: u64,
    },
    /// One more connection of a backend that the function is configured for.
    Request {
        /// The backend's name.
        backend: String,
    },
    /// Answers [`ToFunction::Freeze`]: no connection is open, and none is accepted until the thaw.
    Quiet {},
    /// Answers [`ToFunction::Freeze`]: not now; the function goes on as before.
    Busy {},
    /// Answers [`ToFunction::Thaw`]: connections were checked, the function accepts again.
    Thawed {
        /// Since when.
        thawed_ns: u64,
    },
    /// One connection of this backend, which the agent had given, is closed.
    Returned {
        /// The backend's name.
        backend: String,
        /// Which, when its TLS was handed over: [`TlsSession::connection`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connection: Option<u64>,
    },
    /// The next key of a connection whose TLS was handed over: a `KeyUpdate` (RFC 8446, section 4.6.3) has come or
    /// is about to be sent.
    NextKey {
        /// [`TlsSession::connection`].
        connection: u64,
        /// Whose key.
        flow: Flow,
    },
}

impl Direction for ToAgent {
    const MAX_BYTES: usize = 4 * 1024;

    fn descriptors(&self) -> usize {
        0
    }
}

/// From the agent to a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToFunction {
    /// Everything that an instance starts with. Descriptors: the listening socket,
    /// the page of [`Activity`](crate::Activity), then one per [`GrantStatus::Ready`] in order.
    Lease(Lease),
    /// One backend connection, later: the end of a [`GrantStatus::Pending`], or
    /// the answer to a [`ToAgent::Request`]. One descriptor when it is ready.
    Grant(Grant),
    /// The instance is about to be frozen: stop accepting, and answer [`ToAgent::Quiet`];
    /// or [`ToAgent::Busy`] if that is not possible.
    Freeze {
        /// Before the answer, close all backend connections and send [`ToAgent::Returned`] for each.
        return_backends: bool,
    },
    /// The instance runs again: check the backend connections, accept, and
    /// answer [`ToAgent::Thawed`].
    Thaw {},
    /// Answers [`ToAgent::NextKey`].
    NextKey {
        /// As in the request.
        connection: u64,
        /// As in the request.
        flow: Flow,
        /// None when the agent does not know it: it started after the connection was handed over.
        key: Option<TrafficKey>,
    },
}

impl Direction for ToFunction {
    const MAX_BYTES: usize = 64 * 1024;

    fn descriptors(&self) -> usize {
        match self {
            Self::Lease(lease) => 2 + lease.backends.iter().filter(|grant| grant.is_ready()).count(),
            Self::Grant(grant) => usize::from(grant.is_ready()),
            Self::Freeze { .. } | Self::Thaw {} | Self::NextKey { .. } => 0,
        }
    }
}

/// What an instance starts with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The function's configured name.
    pub function: String,
    /// The instance's identifier, unique on the node while the agent runs.
    pub instance: String,
    /// Client connections that it may have open at a time; no limit if none.
    #[serde(default)]
    pub concurrency: Option<u32>,
    /// One grant per configured backend, in the order of the configuration.
    pub backends: Vec<Grant>,
}

/// One backend connection, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The backend's configured name.
    pub backend: String,
    /// Whether a descriptor comes with it.
    pub status: GrantStatus,
}

impl Grant {
    /// True when a descriptor accompanies this grant.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.status, GrantStatus::Ready { .. })
    }
}

/// Whether a grant comes with a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantStatus {
    /// A descriptor comes with the message. It is non-blocking and close-on-exec,
    /// and has no unread bytes of the login.
    Ready {
        /// What the function must know to act as if it had logged in.
        session: Session,
        /// From when on it is too old to be used after a thaw, in nanoseconds of
        /// `CLOCK_MONOTONIC`; never if none.
        #[serde(default)]
        expires_ns: Option<u64>,
        /// The descriptor belongs to a TLS session, which the function or the kernel continues. None: bytes
        /// written to the descriptor reach the server as they are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tls: Option<Box<TlsSession>>,
    },
    /// The pool was empty; a connection is being made and follows as a [`ToFunction::Grant`].
    Pending,
    /// There will be none.
    Failed {
        /// What went wrong, without secrets.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
