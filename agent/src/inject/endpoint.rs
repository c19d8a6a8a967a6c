//! The socket of a conversation: inherited by the instance, or one that waits for the instance to connect.

use std::os::fd::OwnedFd;

use headstart_wire::{Channel, ToAgent, WireError, close_aside};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::fd;
use crate::measure;
use crate::start::{ControlEnd, Process};

/// The agent's end of the control socket.
pub(super) enum Endpoint {
    /// It listens where only this instance can see it, and the instance has not connected yet.
    Listening(AsyncFd<OwnedFd>),
    /// The instance has the other end.
    Connected(AsyncFd<Channel>),
    /// It is closed.
    Closed,
}

/// What arrived.
pub(super) enum EndpointEvent {
    /// The instance connected.
    Connected,
    /// It sent a message, or reading one failed.
    Message(Result<ToAgent, WireError>),
}

impl Endpoint {
    pub(super) fn new(control: ControlEnd) -> Result<Self, WireError> {
        Ok(match control {
            ControlEnd::Connected(channel) => Self::Connected(fd::register(channel, Interest::READABLE)?),
            ControlEnd::Listening(listener) => Self::Listening(fd::register(listener, Interest::READABLE)?),
        })
    }

    /// The connected socket, when there is one.
    pub(super) fn channel(&self) -> Option<&Channel> {
        match self {
            Self::Connected(channel) => Some(channel.get_ref()),
            Self::Listening(_) | Self::Closed => None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    /// What is unread in the socket may be descriptors, and to close those can take long.
    pub(super) fn close(&mut self) {
        match std::mem::replace(self, Self::Closed) {
            Self::Connected(channel) => close_aside([channel.into_inner().into()]),
            Self::Listening(listener) => close_aside([listener.into_inner()]),
            Self::Closed => {}
        }
    }

    /// The next thing that arrives. Safe to drop and call again. Pends for ever once closed.
    pub(super) async fn next(&mut self, process: &dyn Process) -> EndpointEvent {
        loop {
            match self {
                Self::Closed => std::future::pending().await,
                Self::Connected(channel) => return EndpointEvent::Message(receive(channel).await),
                Self::Listening(listener) => match accept(listener, process).await {
                    Ok(channel) => {
                        *self = Self::Connected(channel);
                        return EndpointEvent::Connected;
                    }
                    Err(error) => return EndpointEvent::Message(Err(error)),
                },
            }
        }
    }
}

async fn receive(channel: &AsyncFd<Channel>) -> Result<ToAgent, WireError> {
    loop {
        let mut guard = channel.readable().await?;
        match channel.get_ref().recv::<ToAgent>() {
            Err(error) if error.would_block() => guard.clear_ready(),
            received => return received.map(|received| received.message),
        }
    }
}

/// Accepts the first peer that runs inside the instance, and closes the connections of others.
async fn accept(listener: &AsyncFd<OwnedFd>, process: &dyn Process) -> Result<AsyncFd<Channel>, WireError> {
    loop {
        let mut guard = listener.readable().await?;
        let channel = match Channel::accept(listener.get_ref()) {
            Err(error) if error.would_block() => {
                guard.clear_ready();
                continue;
            }
            channel => channel?,
        };
        let pid = channel.peer_pid()?;
        if process.owns(pid) {
            return Ok(fd::register(channel, Interest::READABLE)?);
        }
        close_aside([channel.into()]);
        measure::record_refused("peer");
        tracing::warn!(pid, "a process outside the instance connected to its control socket: closed");
    }
}
