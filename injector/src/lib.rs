//! Pools of backend connections that are already logged in, ready to be handed over as descriptors.
//!
//! A function that starts cold spends most of its first request on connecting and logging in. This
//! crate does that work before: one [`Pool`] per backend keeps a few idle connections, checks that each is
//! alive when it is leased, replaces it in the background, and never takes back a connection that was handed over.
//!
//! ```text
//! BackendSpec ─> Pool ─ lease() / try_lease() ─> Lease ─ hand_over() ─> fd, session, TLS keys ─> the function
//!                                                                    └─> slot: stays here until the instance is gone
//! ```
//!
//! # A connection on its way
//! * It is handed over only when quiet: the server said `ReadyForQuery` (idle), and nothing waits
//!   unread in our buffer or in the kernel's.
//! * It has `TCP_NODELAY`, keep-alive after 30 s, `O_CLOEXEC`, and is **non-blocking**. That mode is
//!   shared by all duplicates of a descriptor: a receiver that wants a blocking one switches it.
//! * It is discarded after use. Dropping the [`LeaseSlot`] makes room for a new one, nothing else. (What clients of
//!   [`Sockets`] have used never leaves this process, and may be cleaned and kept for their function.)
//!
//! # What stays here
//! Passwords ([`Secret`]) and cancel keys. A [`Session`] tells a function what it needs to act as if
//! it had logged in, and nothing with which it could log in again or cancel the query of another instance.

pub mod backend;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod pool;
mod reason;
mod secret;
mod sockets;
mod spec;

pub use backend::{
    BackendKind, ConnectCause, ConnectError, MysqlLogin, PostgresLogin, ProtocolError, RedisLogin, Session,
    Tls, TlsSettings, TlsSettingsError, can_tell_sockets,
};
pub use pool::{
    HandOver, Lease, LeaseError, LeaseSlot, Pool, PoolStatus, ServerQuotas, TakenPlace, Tally, TlsMode,
};
pub use reason::{DiscardReason, FailureReason, FallbackReason};
pub use secret::{PasswordFileError, Secret};
pub use sockets::{AUDIT, Sockets};
pub use spec::{Address, BackendSpec, PoolSettings, SpecError};
