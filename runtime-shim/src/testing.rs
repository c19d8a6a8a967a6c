//! A fake agent for unit tests: the other end of a control socket, in this process.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use headstart_wire::{Activity, Channel, Grant, GrantStatus, Lease, Session, ToAgent, ToFunction};
use tokio::time::{sleep, timeout};

use crate::Function;
use crate::attach::Attachment;

/// Longer than any test takes, so that a failed test ends with a message.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The agent's end.
pub(crate) struct FakeAgent(pub(crate) Channel);

/// An attached function and its agent, which has received hello and acknowledgement.
pub(crate) async fn attached(grants: Vec<(Grant, Option<OwnedFd>)>) -> (FakeAgent, Function) {
    let (agent, channel) = Channel::pair().unwrap();
    let agent = FakeAgent(agent);
    agent.lease(grants);
    let function = Function::new(Attachment::over(channel, 7, PATIENCE).unwrap()).unwrap();
    assert!(matches!(agent.next_message().await, ToAgent::Hello { hello_ns: 7, .. }));
    assert!(matches!(agent.next_message().await, ToAgent::Ack { .. }));
    (agent, function)
}

impl FakeAgent {
    /// Queues a lease with a fresh listening socket.
    pub(crate) fn lease(&self, grants: Vec<(Grant, Option<OwnedFd>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (backends, sockets): (Vec<_>, Vec<_>) = grants.into_iter().unzip();
        let (_, page) = Activity::create().unwrap();
        let (function, instance) = ("orders".into(), "orders-1".into());
        let lease = Lease { function, instance, concurrency: None, backends };
        let mut descriptors = vec![listener.as_fd(), page.as_fd()];
        descriptors.extend(sockets.iter().flatten().map(AsFd::as_fd));
        self.0.send(&ToFunction::Lease(lease), &descriptors).unwrap();
    }

    pub(crate) fn grant(&self, (grant, socket): (Grant, Option<OwnedFd>)) {
        let descriptors: Vec<_> = socket.iter().map(AsFd::as_fd).collect();
        self.0.send(&ToFunction::Grant(grant), &descriptors).unwrap();
    }

    /// The next message of the function.
    pub(crate) async fn next_message(&self) -> ToAgent {
        let next = async {
            loop {
                match self.0.recv::<ToAgent>() {
                    Ok(received) => return received.message,
                    Err(error) => assert!(error.would_block(), "{error}"),
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, next).await.expect("the function sends a message")
    }

    pub(crate) fn assert_no_message(&self) {
        assert!(self.0.recv::<ToAgent>().unwrap_err().would_block());
    }
}

pub(crate) fn ready(backend: &str, session: Session, socket: OwnedFd) -> (Grant, Option<OwnedFd>) {
    (
        Grant {
            backend: backend.into(),
            status: GrantStatus::Ready { session, expires_ns: None, tls: None },
        },
        Some(socket),
    )
}

pub(crate) fn pending(backend: &str) -> (Grant, Option<OwnedFd>) {
    (Grant { backend: backend.into(), status: GrantStatus::Pending }, None)
}

pub(crate) fn failed(backend: &str, reason: &str) -> (Grant, Option<OwnedFd>) {
    let status = GrantStatus::Failed { reason: reason.into() };
    (Grant { backend: backend.into(), status }, None)
}

/// A connection on which the backend has sent one byte, which identifies it.
pub(crate) fn marked(mark: u8) -> (UnixStream, OwnedFd) {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    peer.write_all(&[mark]).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    (peer, socket.into())
}

/// The byte that marks this connection.
pub(crate) fn mark_of(socket: OwnedFd) -> u8 {
    let mut byte = [0];
    UnixStream::from(socket).read_exact(&mut byte).unwrap();
    byte[0]
}
