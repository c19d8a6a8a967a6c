//! The lease: blocking, because nothing else runs yet.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use headstart_wire::{
    Activity, CONTROL_PATH, Channel, Grant, Lease, ReceivedMessage, ToAgent, ToFunction, WireError,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Error, Function, control, now_ns};

/// How long attaching waits for the agent's lease. It is normally queued on the
/// control socket before the process exists.
pub const LEASE_WAIT: Duration = Duration::from_secs(10);

const SHIM: &str = concat!("headstart-rust/", env!("CARGO_PKG_VERSION"));

/// Attaches this process to the agent, inside a tokio runtime of your own.
///
/// [`run`](crate::run) does this for you. The runtime needs its I/O and time
/// drivers (`enable_all`); the calling thread blocks until the lease is there,
/// which takes microseconds where the control socket is inherited.
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
// Async so that it can only be called where a runtime is, and may wait without blocking one day.
pub async fn attach() -> Result<Function, Error> {
    Function::new(Attachment::make(now_ns())?)
}

/// What the agent gave, before there is a runtime.
#[derive(Debug)]
pub(crate) enum Attachment {
    /// No agent: everything is found in the environment.
    Alone,
    /// The control socket, and what came over it.
    Agent(Box<Attached>),
}

/// A lease that was received.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) channel: Channel,
    /// What the agent is still to be told, before anything else. It waits for nothing of that, and the function should
    /// not wait until the agent is woken.
    pub(crate) unsaid: Vec<ToAgent>,
    pub(crate) function: String,
    pub(crate) instance: String,
    pub(crate) listener: TcpListener,
    pub(crate) activity: Activity,
    pub(crate) concurrency: Option<u32>,
    /// In the order of the configuration; a descriptor with each ready one.
    pub(crate) backends: Vec<(Grant, Option<OwnedFd>)>,
}

impl Attachment {
    /// Finds the agent and takes the lease. `entered_ns` is when the process got here.
    pub(crate) fn make(entered_ns: u64) -> Result<Self, Error> {
        match control::find(Path::new(CONTROL_PATH))? {
            Some(channel) => Self::over(channel, entered_ns, LEASE_WAIT),
            None => Ok(Self::Alone),
        }
    }

    /// The lease on this control socket, and what is to be said of it.
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
                // If the agent is gone, receiving says so.
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
        // One millisecond more: poll rounds down, and would spin at the end.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        // An interrupted poll is one more turn, with a shorter wait.
        let _ = poll(&mut sockets, timeout);
    }
}

/// Gives each descriptor to what it belongs to. The wire crate has checked that
/// there are as many as the lease announces.
fn distribute(
    channel: Channel,
    unsaid: Vec<ToAgent>,
    lease: Lease,
    descriptors: Vec<OwnedFd>,
) -> Result<Attached, Error> {
    let expected = 2 + lease.backends.iter().filter(|grant| grant.is_ready()).count();
    let got = descriptors.len();
    let missing = || Error::Lease(WireError::Descriptors { expected, got });
    let mut descriptors = descriptors.into_iter();
    let listener = descriptors.next().ok_or_else(missing)?;
    let page = descriptors.next().ok_or_else(missing)?;
    let activity = Activity::adopt(page).map_err(|error| Error::Lease(error.into()))?;
    let listener = TcpListener::from(listener);
    // The agent's copy shares the flag and has set it; tokio panics without it.
    listener.set_nonblocking(true).map_err(Error::Accept)?;
    let backends = lease.backends.into_iter().map(|grant| {
        let descriptor = if grant.is_ready() { descriptors.next() } else { None };
        (grant, descriptor)
    });
    let backends = backends.collect();
    let Lease { function, instance, concurrency, .. } = lease;
    Ok(Attached { channel, unsaid, function, instance, listener, activity, concurrency, backends })
}

#[cfg(test)]
mod tests;
