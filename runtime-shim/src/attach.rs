//! Receives the lease. It blocks, because nothing else runs yet.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use headstart_wire::{
    Activity, CONTROL_PATH, Channel, Grant, Lease, ReceivedMessage, ToAgent, ToFunction, WireError,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Error, Function, control, now_ns};

/// Longest wait for the agent's lease. Normally it is in the control socket before
/// the process exists.
pub const LEASE_WAIT: Duration = Duration::from_secs(10);

const SHIM: &str = concat!("headstart-rust/", env!("CARGO_PKG_VERSION"));

/// Attaches this process to the agent, inside a tokio runtime of your own.
///
/// [`run`](crate::run) does this for you. The runtime needs its I/O and time
/// drivers (`enable_all`); the calling thread blocks until the lease is there,
/// which takes microseconds with an inherited control socket.
///
/// # Errors
/// [`Error::ControlDescriptor`], [`Error::LeaseTimeout`], [`Error::Lease`],
/// [`Error::GrantBeforeLease`] when the agent and this process cannot talk;
/// [`Error::AlreadyAttached`] when called twice under an agent. No agent is not
/// an error.
///
/// ```no_run
/// #[tokio::main(flavor = "current_thread")]
/// async fn main() -> Result<(), headstart::Error> {
///     let function = headstart::attach().await?;
///     function.serve_connections(|_connection| async { /* speak */ }).await
/// }
/// ```
// Async, so that a caller needs a runtime, and so that a later version may wait without blocking.
pub async fn attach() -> Result<Function, Error> {
    Function::new(Attachment::make(now_ns())?)
}

/// What the process has received from the agent, before there is a runtime.
#[derive(Debug)]
pub(crate) enum Attachment {
    /// There is no agent; the environment has the addresses.
    Alone,
    /// The control socket and its lease.
    Agent(Box<ReceivedLease>),
}

/// A lease with its descriptors.
#[derive(Debug)]
pub(crate) struct ReceivedLease {
    pub(crate) channel: Channel,
    /// Messages that must go to the agent before any other. The agent does not wait for them, and sending them later
    /// saves the function the time in which the agent wakes.
    pub(crate) unsaid: Vec<ToAgent>,
    pub(crate) function: String,
    pub(crate) instance: String,
    pub(crate) listener: TcpListener,
    pub(crate) activity: Activity,
    pub(crate) concurrency: Option<u32>,
    /// In the order of the configuration; each ready one has a descriptor.
    pub(crate) backends: Vec<(Grant, Option<OwnedFd>)>,
}

impl Attachment {
    /// Finds the agent and receives the lease. `entered_ns` is the time of the process's entry, in [`now_ns`] time.
    pub(crate) fn make(entered_ns: u64) -> Result<Self, Error> {
        match control::find(Path::new(CONTROL_PATH))? {
            Some(channel) => Self::over(channel, entered_ns, LEASE_WAIT),
            None => Ok(Self::Alone),
        }
    }

    /// Receives the lease on this control socket.
    pub(crate) fn over(channel: Channel, entered_ns: u64, wait: Duration) -> Result<Self, Error> {
        channel.set_nonblocking(true).map_err(Error::Lease)?;
        let mut unsaid = vec![ToAgent::Hello { shim: SHIM.to_owned(), hello_ns: entered_ns }];
        let queued = match channel.recv() {
            Err(error) if error.would_block() => None,
            other => Some(other.map_err(Error::Lease)?),
        };
        let ReceivedMessage { message, descriptors } = match queued {
            Some(received) => received,
            None => {
                // If the agent is gone, receiving fails.
                unsaid.drain(..).for_each(|hello| drop(channel.send(&hello, &[])));
                receive(&channel, wait)?
            }
        };
        let ToFunction::Lease(lease) = message else { return Err(Error::GrantBeforeLease) };
        unsaid.push(ToAgent::Ack { injected_ns: now_ns() });
        Ok(Self::Agent(Box::new(distribute(channel, unsaid, lease, descriptors)?)))
    }
}

fn receive(channel: &Channel, wait: Duration) -> Result<ReceivedMessage<ToFunction>, Error> {
    let deadline = Instant::now() + wait;
    loop {
        match channel.recv() {
            Err(error) if error.would_block() => {}
            other => return other.map_err(Error::Lease),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::LeaseTimeout { waited: wait });
        }
        let mut sockets = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        // One millisecond more, because poll rounds down and would spin at the end.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        // After an interrupted poll the loop repeats with a shorter wait.
        let _ = poll(&mut sockets, timeout);
    }
}

/// Pairs each descriptor with its place in the lease. The wire crate has checked
/// their number.
fn distribute(
    channel: Channel,
    unsaid: Vec<ToAgent>,
    lease: Lease,
    descriptors: Vec<OwnedFd>,
) -> Result<ReceivedLease, Error> {
    let expected = 2 + lease.backends.iter().filter(|grant| grant.is_ready()).count();
    let got = descriptors.len();
    let missing = || Error::Lease(WireError::Descriptors { expected, got });
    let mut descriptors = descriptors.into_iter();
    let listener = descriptors.next().ok_or_else(missing)?;
    let page = descriptors.next().ok_or_else(missing)?;
    let activity = Activity::adopt(page).map_err(|error| Error::Lease(error.into()))?;
    let listener = TcpListener::from(listener);
    // The agent's copy shares the flag, and the agent has set it; tokio panics without it.
    listener.set_nonblocking(true).map_err(Error::Accept)?;
    let backends = lease.backends.into_iter().map(|grant| {
        let descriptor = if grant.is_ready() { descriptors.next() } else { None };
        (grant, descriptor)
    });
    let backends = backends.collect();
    let Lease { function, instance, concurrency, .. } = lease;
    Ok(ReceivedLease { channel, unsaid, function, instance, listener, activity, concurrency, backends })
}

#[cfg(test)]
mod tests;
