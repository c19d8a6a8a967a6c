//! The control socket after the lease: grants and orders come in, requests and answers go out.
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
//! A slot asks for one connection at a time, so at most
//! [`MAX_BACKENDS`](headstart_wire::MAX_BACKENDS) small messages are on their
//! way to the agent: they fit the socket's buffer many times over, and sending
//! never waits.

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

use crate::rest::Order;
use crate::{Error, Reason, now_ns, report};

/// The agent, as the function sees it.
#[derive(Debug)]
pub(crate) struct Agent {
    control: Channel,
    /// Goes before anything else.
    unsaid: Mutex<Vec<ToAgent>>,
    /// A duplicate of the control socket, only to learn when there is something
    /// to read: the safe way to have tokio watch a socket type it does not know.
    readiness: UnixStream,
    slots: BTreeMap<String, Slot>,
    /// Who answers questions about freezing, until the agent is gone.
    orders: Mutex<Option<mpsc::Sender<Order>>>,
    /// Who waits for the next key of a connection.
    keys: Mutex<Vec<KeyWaiter>>,
    gone: AtomicBool,
}

/// A connection, one of its directions, and where the answer goes.
type KeyWaiter = (u64, Flow, oneshot::Sender<Option<TrafficKey>>);

/// What came with a grant.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) socket: OwnedFd,
    pub(crate) session: Session,
    pub(crate) expires_ns: Option<u64>,
    /// The TLS session that the socket leads into.
    pub(crate) tls: Option<Box<TlsSession>>,
}

/// One configured backend.
#[derive(Debug)]
struct Slot {
    /// Held from asking until having: requests of one backend do not overlap.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Wakes the holder of the turn.
    changed: Notify,
}

#[derive(Debug)]
enum State {
    Ready(Box<Granted>),
    Waiting,
    Failed(Reason),
    Taken,
}

impl State {
    fn new(status: GrantStatus, descriptor: Option<OwnedFd>) -> Self {
        match (status, descriptor) {
            (GrantStatus::Ready { session, expires_ns, tls }, Some(socket)) => {
                Self::Ready(Box::new(Granted { socket, session, expires_ns, tls }))
            }
            // The wire crate lets no such message through.
            (GrantStatus::Ready { .. }, None) => Self::Failed(Reason::Failed("no descriptor came".into())),
            (GrantStatus::Pending, _) => Self::Waiting,
            (GrantStatus::Failed { reason }, _) => Self::Failed(Reason::Failed(reason)),
        }
    }
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Agent {
    /// Takes over the control socket and starts its reader.
    pub(crate) fn new(
        channel: Channel,
        unsaid: Vec<ToAgent>,
        backends: Vec<(Grant, Option<OwnedFd>)>,
        orders: mpsc::Sender<Order>,
    ) -> Result<Arc<Self>, Error> {
        let slot = |(grant, descriptor): (Grant, Option<OwnedFd>)| {
            let state = Mutex::new(State::new(grant.status, descriptor));
            (grant.backend, Slot { turn: tokio::sync::Mutex::new(()), state, changed: Notify::new() })
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

    /// Says something. Nothing of the function's depends on it being heard but a [`ToAgent::Request`].
    pub(crate) fn tell(&self, message: &ToAgent) -> Result<(), WireError> {
        self.introduce();
        self.control.send(message, &[])
    }

    /// Says what was kept until the function had taken its first steps.
    fn introduce(&self) {
        let mut unsaid = lock(&self.unsaid);
        // If the agent is gone, the reader will say so.
        unsaid.drain(..).for_each(|message| drop(self.control.send(&message, &[])));
    }

    /// A connection of this backend: the leased one, or one more.
    pub(crate) async fn take(&self, backend: &str, wait: Duration) -> Result<Granted, Reason> {
        let slot = self.slots.get(backend).ok_or(Reason::NotConfigured)?;
        // A late grant stays in the slot, for the next caller.
        timeout(wait, self.take_from(slot, backend)).await.unwrap_or(Err(Reason::Deadline(wait)))
    }

    async fn take_from(&self, slot: &Slot, backend: &str) -> Result<Granted, Reason> {
        let _turn = slot.turn.lock().await;
        loop {
            if let Some(result) = self.try_take(slot, backend) {
                return result;
            }
            slot.changed.notified().await;
        }
    }

    /// None while there is a grant to wait for.
    fn try_take(&self, slot: &Slot, backend: &str) -> Option<Result<Granted, Reason>> {
        let mut state = slot.state();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Ready(granted) => return Some(Ok(*granted)),
            State::Failed(reason) => return Some(Err(reason)),
            State::Waiting => {}
            State::Taken => {
                // Under the slot's lock: `lost` has either been here, or comes after.
                let request = ToAgent::Request { backend: backend.to_owned() };
                if self.gone.load(Ordering::Acquire) || self.tell(&request).is_err() {
                    return Some(Err(Reason::AgentGone));
                }
            }
        }
        *state = State::Waiting;
        None
    }

    /// The key that follows the last one of this direction; each is given once.
    #[cfg(feature = "tls")]
    pub(crate) async fn next_key(&self, connection: u64, flow: Flow) -> Result<TrafficKey, Reason> {
        let (sender, answer) = oneshot::channel();
        lock(&self.keys).push((connection, flow, sender));
        // After the push: `lost` has either been here, or comes after.
        let asked = ToAgent::NextKey { connection, flow };
        if self.gone.load(Ordering::Acquire) || self.tell(&asked).is_err() {
            return Err(Reason::AgentGone);
        }
        let key = answer.await.map_err(|_| Reason::AgentGone)?;
        key.ok_or_else(|| {
            Reason::Failed("the agent was not there when the connection was handed over".into())
        })
    }

    async fn read(self: Arc<Self>) {
        self.introduce();
        let error = loop {
            match self.receive().await {
                Ok(ReceivedMessage { message: ToFunction::Grant(grant), mut descriptors }) => {
                    self.granted(grant, descriptors.pop());
                }
                Ok(ReceivedMessage { message: ToFunction::Lease(_), .. }) => {
                    report::line("the agent sent a second lease, which is ignored");
                }
                Ok(ReceivedMessage { message: ToFunction::Freeze { return_backends }, .. }) => {
                    self.order(Order::Freeze { return_backends });
                }
                Ok(ReceivedMessage { message: ToFunction::Thaw {}, .. }) => self.order(Order::Thaw),
                Ok(ReceivedMessage { message: ToFunction::NextKey { connection, flow, key }, .. }) => {
                    let mut keys = lock(&self.keys);
                    if let Some(at) = keys.iter().position(|(of, way, _)| (*of, *way) == (connection, flow)) {
                        let (_, _, answer) = keys.swap_remove(at);
                        drop(answer.send(key)); // nobody waits any longer: the connection is closed
                    }
                }
                Err(error) => break error,
            }
        };
        self.lost(&error);
    }

    fn order(&self, order: Order) {
        let orders = lock(&self.orders);
        if orders.as_ref().is_some_and(|orders| orders.try_send(order).is_err()) {
            report::line(
                "the agent asks for more freezes and thaws than it can have answers, which are ignored",
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
            // First of all: until then the agent keeps its copy.
            let _ = self.tell(&ToAgent::Ack { injected_ns: now_ns() });
        }
        let Some(slot) = self.slots.get(&grant.backend) else { return };
        let mut state = slot.state();
        // What nobody waits for is closed, not stored: the slot may hold another.
        if matches!(*state, State::Waiting) {
            *state = State::new(grant.status, descriptor);
            slot.changed.notify_one();
        }
    }

    /// The agent is gone: nobody waits for it any longer, everything else goes on.
    fn lost(&self, error: &WireError) {
        report::line(&format!("the agent is gone, serving on without it: {error}"));
        self.gone.store(true, Ordering::Release);
        lock(&self.orders).take();
        lock(&self.keys).clear();
        for slot in self.slots.values() {
            let mut state = slot.state();
            if matches!(*state, State::Waiting) {
                *state = State::Failed(Reason::AgentGone);
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
