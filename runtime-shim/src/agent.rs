//! The control socket after the lease. The function receives grants and orders, and sends requests and answers.
//!
//! One task reads the socket. Each backend has a slot:
//!
//! ```text
//!              grant: ready                  backend() takes it
//!   Waiting -------------------> Ready --------------------------> Taken
//!    ^  |   grant: failed, or agent gone      backend() reports it  ^ |
//!    |  +----------------------> Failed ----------------------------+ |
//!    +---------------- backend() sends a Request ---------------------+
//! ```
//!
//! A slot requests one connection at a time, so at most
//! [`MAX_BACKENDS`](headstart_wire::MAX_BACKENDS) small messages are in flight to
//! the agent. The socket's buffer has room for many times that, so sending never
//! waits.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headstart_wire::{
    Channel, Flow, Grant, GrantStatus, ReceivedMessage, Session, TlsSession, ToAgent, ToFunction, TrafficKey,
    WireError,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use crate::freeze::FreezeOrder;
use crate::{Error, Reason, now_ns, report};

/// The function's connection to the agent.
#[derive(Debug)]
pub(crate) struct Agent {
    control: Channel,
    /// Messages that must go before any other.
    unsaid: Mutex<Vec<ToAgent>>,
    /// A duplicate of the control socket, used only to wait until it is readable:
    /// tokio has no type for `SOCK_SEQPACKET`.
    readiness: UnixStream,
    slots: BTreeMap<String, BackendSlot>,
    /// To the task that freezes and thaws; none when the agent is gone.
    orders: Mutex<Option<mpsc::Sender<FreezeOrder>>>,
    /// Tasks that wait for the next key of a connection.
    keys: Mutex<Vec<KeyWaiter>>,
    gone: AtomicBool,
}

/// A connection, one of its directions, and the receiver of the key.
type KeyWaiter = (u64, Flow, oneshot::Sender<Option<TrafficKey>>);

/// The connection of a grant.
#[derive(Debug)]
pub(crate) struct GrantedConnection {
    pub(crate) socket: OwnedFd,
    pub(crate) session: Session,
    pub(crate) expires_ns: Option<u64>,
    /// The TLS session on the socket, if there is one.
    pub(crate) tls: Option<Box<TlsSession>>,
}

/// One configured backend.
#[derive(Debug)]
struct BackendSlot {
    /// Locked from the request until the grant, so that requests of one backend do not overlap.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<SlotState>,
    /// Notifies the task that holds `turn`.
    changed: Notify,
}

#[derive(Debug)]
enum SlotState {
    Ready(Box<GrantedConnection>),
    Waiting,
    Failed(Reason),
    Taken,
}

impl SlotState {
    fn new(status: GrantStatus, descriptor: Option<OwnedFd>) -> Self {
        match (status, descriptor) {
            (GrantStatus::Ready { session, expires_ns, tls }, Some(socket)) => {
                Self::Ready(Box::new(GrantedConnection { socket, session, expires_ns, tls }))
            }
            // The wire crate refuses such a message.
            (GrantStatus::Ready { .. }, None) => Self::Failed(Reason::Failed("no descriptor came".into())),
            (GrantStatus::Pending, _) => Self::Waiting,
            (GrantStatus::Failed { reason }, _) => Self::Failed(Reason::Failed(reason)),
        }
    }
}

impl BackendSlot {
    fn state(&self) -> MutexGuard<'_, SlotState> {
        lock(&self.state)
    }
}

impl Agent {
    /// Takes over the control socket and starts its reader.
    pub(crate) fn new(
        channel: Channel,
        unsaid: Vec<ToAgent>,
        backends: Vec<(Grant, Option<OwnedFd>)>,
        orders: mpsc::Sender<FreezeOrder>,
    ) -> Result<Arc<Self>, Error> {
        let slot = |(grant, descriptor): (Grant, Option<OwnedFd>)| {
            let state = Mutex::new(SlotState::new(grant.status, descriptor));
            (grant.backend, BackendSlot { turn: tokio::sync::Mutex::new(()), state, changed: Notify::new() })
        };
        let slots = backends.into_iter().map(slot).collect();
        let readiness = readiness(&channel).map_err(Error::Runtime)?;
        let orders = Mutex::new(Some(orders));
        let (keys, gone) = (Mutex::default(), AtomicBool::new(false));
        let unsaid = Mutex::new(unsaid);
        let agent = Arc::new(Self { control: channel, unsaid, readiness, slots, orders, keys, gone });
        tokio::spawn(Arc::clone(&agent).read());
        Ok(agent)
    }

    /// The names of the configured backends, sorted.
    pub(crate) fn backends(&self) -> Vec<String> {
        self.slots.keys().cloned().collect()
    }

    /// Sends a message. Only a [`ToAgent::Request`] needs an answer.
    pub(crate) fn tell(&self, message: &ToAgent) -> Result<(), WireError> {
        self.introduce();
        self.control.send(message, &[])
    }

    /// Sends the messages that must go first.
    fn introduce(&self) {
        let mut unsaid = lock(&self.unsaid);
        // If the agent is gone, the reader reports it.
        unsaid.drain(..).for_each(|message| drop(self.control.send(&message, &[])));
    }

    /// A connection of this backend: the leased one, or one more.
    pub(crate) async fn take(&self, backend: &str, wait: Duration) -> Result<GrantedConnection, Reason> {
        let slot = self.slots.get(backend).ok_or(Reason::NotConfigured)?;
        // A late grant stays in the slot, for the next caller.
        timeout(wait, self.take_from(slot, backend)).await.unwrap_or(Err(Reason::Deadline(wait)))
    }

    async fn take_from(&self, slot: &BackendSlot, backend: &str) -> Result<GrantedConnection, Reason> {
        let _turn = slot.turn.lock().await;
        loop {
            if let Some(result) = self.try_take(slot, backend) {
                return result;
            }
            slot.changed.notified().await;
        }
    }

    /// The grant, or the reason for which there is none; `None` while a grant is pending.
    fn try_take(&self, slot: &BackendSlot, backend: &str) -> Option<Result<GrantedConnection, Reason>> {
        let mut state = slot.state();
        match std::mem::replace(&mut *state, SlotState::Taken) {
            SlotState::Ready(granted) => return Some(Ok(*granted)),
            SlotState::Failed(reason) => return Some(Err(reason)),
            SlotState::Waiting => {}
            SlotState::Taken => {
                // This holds the slot's lock, so `lost` has already handled the slot, or will.
                let request = ToAgent::Request { backend: backend.to_owned() };
                if self.gone.load(Ordering::Acquire) || self.tell(&request).is_err() {
                    return Some(Err(Reason::AgentGone));
                }
            }
        }
        *state = SlotState::Waiting;
        None
    }

    /// The key that follows the last one of this direction; the agent sends each key once.
    #[cfg(feature = "tls")]
    pub(crate) async fn next_key(&self, connection: u64, flow: Flow) -> Result<TrafficKey, Reason> {
        let (sender, answer) = oneshot::channel();
        lock(&self.keys).push((connection, flow, sender));
        // This comes after the push, so either `gone` is set, or `lost` will clear the list.
        let request = ToAgent::NextKey { connection, flow };
        if self.gone.load(Ordering::Acquire) || self.tell(&request).is_err() {
            return Err(Reason::AgentGone);
        }
        let key = answer.await.map_err(|_| Reason::AgentGone)?;
        key.ok_or_else(|| Reason::Failed("this agent did not hand the connection over".into()))
    }

    async fn read(self: Arc<Self>) {
        self.introduce();
        let error = loop {
            match self.receive().await {
                Ok(ReceivedMessage { message: ToFunction::Grant(grant), mut descriptors }) => {
                    self.granted(grant, descriptors.pop());
                }
                Ok(ReceivedMessage { message: ToFunction::Lease(_), .. }) => {
                    report::line("the agent sent a second lease; it is ignored");
                }
                Ok(ReceivedMessage { message: ToFunction::Freeze { return_backends }, .. }) => {
                    self.order(FreezeOrder::Freeze { return_backends });
                }
                Ok(ReceivedMessage { message: ToFunction::Thaw {}, .. }) => self.order(FreezeOrder::Thaw),
                Ok(ReceivedMessage { message: ToFunction::NextKey { connection, flow, key }, .. }) => {
                    let mut keys = lock(&self.keys);
                    if let Some(at) = keys.iter().position(|(of, way, _)| (*of, *way) == (connection, flow)) {
                        let (_, _, answer) = keys.swap_remove(at);
                        drop(answer.send(key)); // fails if the connection has been closed
                    }
                }
                Err(error) => break error,
            }
        };
        self.lost(&error);
    }

    fn order(&self, order: FreezeOrder) {
        let orders = lock(&self.orders);
        if orders.as_ref().is_some_and(|orders| orders.try_send(order).is_err()) {
            report::line(
                "the agent sent more orders to freeze and thaw than fit the queue; this one is ignored",
            );
        }
    }

    async fn receive(&self) -> Result<ReceivedMessage<ToFunction>, WireError> {
        let receive = || match self.control.recv() {
            Err(error) if error.would_block() => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other),
        };
        self.readiness.async_io(Interest::READABLE, receive).await?
    }

    fn granted(&self, grant: Grant, descriptor: Option<OwnedFd>) {
        if descriptor.is_some() {
            // Acknowledge first: until then the agent keeps its copy.
            let _ = self.tell(&ToAgent::Ack { injected_ns: now_ns() });
        }
        let Some(slot) = self.slots.get(&grant.backend) else { return };
        let mut state = slot.state();
        // A connection without a waiting request is closed, not stored: the slot may hold another one.
        if matches!(*state, SlotState::Waiting) {
            *state = SlotState::new(grant.status, descriptor);
            slot.changed.notify_one();
        }
    }

    /// Ends every wait for the agent, because it is gone. The function goes on.
    fn lost(&self, error: &WireError) {
        report::line(&format!("the agent is gone, the function serves on without it: {error}"));
        self.gone.store(true, Ordering::Release);
        lock(&self.orders).take();
        lock(&self.keys).clear();
        for slot in self.slots.values() {
            let mut state = slot.state();
            if matches!(*state, SlotState::Waiting) {
                *state = SlotState::Failed(Reason::AgentGone);
                slot.changed.notify_one();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn readiness(channel: &Channel) -> io::Result<UnixStream> {
    UnixStream::from_std(std::os::unix::net::UnixStream::from(channel.as_fd().try_clone_to_owned()?))
}

#[cfg(test)]
mod tests;
