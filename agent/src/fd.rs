//! Descriptors on the reactor.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers what owns a descriptor.
///
/// # Errors
/// When the reactor is full, or gone.
#[expect(
    deprecated,
    reason = "deprecated for types that only claim a number; `AsFd` here makes it an owned one"
)]
pub(crate) fn register<T: AsFd + AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}
