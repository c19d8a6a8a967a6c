//! The messages to the node, and the handle through which they are sent.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use headstart_ebpf::event::{Addr, EventKind};
use tokio::sync::{mpsc, oneshot};

use super::allow::AllowList;
use super::change::FunctionChange;
use crate::api::server::Control;
use crate::api::{FunctionStatus, Operation};
use crate::decision::DecisionReason;
use crate::event::{ClientIdentity, Demand, Event, FailureCause, FunctionId, InstanceId, Standing, Trigger};
use crate::instance::MemoryUse;
use crate::measure::{self, now_ns};
use crate::serve::front::{Announce, Guess, Guesses, is_front};
use crate::start::{PreparedContainer, StartError};
use crate::syn::RingRecord;

/// A message to the node.
pub(super) enum NodeMessage {
    Event(FunctionId, Event),
    Prepared(FunctionId, InstanceId, Result<PreparedContainer, StartError>),
    /// What went wrong with an instance.
    Failed(FunctionId, String),
    /// An instance has not said hello.
    Silent(FunctionId, InstanceId),
    /// An instance is hibernated: where its memory is.
    Memory(FunctionId, InstanceId, MemoryUse),
    Removed(FunctionId),
    /// An instance has ended the listener of its function.
    ListenerEnded(FunctionId),
    /// So many clients that no instance serves were answered; the error says why no more could be.
    Answered(FunctionId, DecisionReason, Option<FailureCause>, u32, io::Result<()>),
    Operate(String, Operation, oneshot::Sender<bool>),
    Change(Vec<FunctionChange>, oneshot::Sender<()>),
    /// Of the function with this name, or of all.
    Status(Option<String>, oneshot::Sender<Vec<FunctionStatus>>),
    Scrape(oneshot::Sender<()>),
    Shutdown,
}

/// Sends messages to the node. Clones share one inbox.
#[derive(Clone)]
pub struct NodeHandle {
    pub(super) inbox: mpsc::Sender<NodeMessage>,
    pub(super) allow: Arc<AllowList>,
    pub(super) guesses: Arc<Guesses>,
}

impl NodeHandle {
    /// Sends the demand that an event of a ring stands for. Events of clients with a key may fill the inbox, the others
    /// only half of it, so that a flood leaves room. False, and counted, when the event is invalid or there is no room;
    /// then the accept queue reports the connection.
    pub fn seen(&self, seen: &RingRecord) -> bool {
        let Some((function, demand)) = self.demand(seen) else { return false };
        let crowded = self.inbox.capacity() <= self.inbox.max_capacity() / 2;
        let authenticated = matches!(seen, RingRecord::Event(event) if event.is_authenticated());
        let message = NodeMessage::Event(function, Event::Demand(demand));
        if (crowded && !authenticated) || self.inbox.try_send(message).is_err() {
            measure::record_lost("inbox_full");
            return false;
        }
        true
    }

    /// The demand that an event of a ring stands for. `None` when it is of a front and nothing is known of its client, and,
    /// counted, when it is stale or invalid.
    pub(super) fn demand(&self, seen: &RingRecord) -> Option<(FunctionId, Demand)> {
        let event = match seen {
            RingRecord::Event(event) => event,
            RingRecord::Stale => return lost("stale"),
            RingRecord::Malformed => return lost("record_length"),
        };
        let trigger = match event.kind() {
            Some(EventKind::Syn) => Trigger::Syn,
            Some(EventKind::Lookup) => Trigger::Lookup,
            Some(EventKind::Knock) => Trigger::Knock,
            None => return lost("record_kind"),
        };
        let standing = match event.is_authenticated() {
            true => Standing::Key,
            false if self.allow.contains(event.src) => Standing::Allowed,
            false => Standing::Open,
        };
        let client = Some(ClientIdentity { address: event.source(), isn: event.isn });
        let (at_ns, seen_ns) = (event.timestamp_ns, now_ns());
        let demand = Demand { trigger, standing, client, alias: None, at_ns, seen_ns };
        if !is_front(event.function) {
            return Some((event.function, demand));
        }
        let function = self.guesses.at_syn(event.function, event.source(), event.isn)?;
        Some((function, Demand { trigger: Trigger::SynGuess, ..demand }))
    }

    /// Changes what is served. The changes hold when this returns; containers are made and removed later.
    pub async fn change(&self, changes: Vec<FunctionChange>) {
        self.ask(|answer| NodeMessage::Change(changes, answer)).await;
    }

    /// Stops everything; [`super::Node::run`] then returns.
    pub async fn shutdown(&self) {
        self.send(NodeMessage::Shutdown).await;
    }

    /// Sends an event of a function.
    pub(super) async fn event(&self, function: FunctionId, event: Event) {
        self.send(NodeMessage::Event(function, event)).await;
    }

    /// Sends a message, waiting for room. While the agent is leaving, the message is dropped.
    pub(super) async fn send(&self, message: NodeMessage) {
        drop(self.inbox.send(message).await);
    }

    /// As [`Self::send`], from a thread that may wait.
    pub(super) fn send_from_thread(&self, message: NodeMessage) {
        drop(self.inbox.blocking_send(message));
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> NodeMessage) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.inbox.send(question(sender)).await.ok()?;
        answer.await.ok()
    }
}

impl Announce for NodeHandle {
    /// As the demand of a SYN: without room the accept queue reports the connection.
    fn announce(
        &self,
        function: FunctionId,
        trigger: Trigger,
        client: SocketAddr,
        from: SocketAddr,
        guess: Option<Guess>,
    ) {
        let guess = guess.filter(|guess| guess.function == function);
        let alias = guess.map(|guess| ClientIdentity { address: client, isn: guess.isn });
        let standing = match self.allow.contains(mapped(client.ip())) {
            true => Standing::Allowed,
            false => Standing::Open,
        };
        let (client, now_ns) = (Some(ClientIdentity { address: from, isn: 0 }), now_ns());
        let demand = Demand { trigger, standing, client, alias, at_ns: now_ns, seen_ns: now_ns };
        let crowded = self.inbox.capacity() <= self.inbox.max_capacity() / 2;
        let message = NodeMessage::Event(function, Event::Demand(demand));
        if crowded || self.inbox.try_send(message).is_err() {
            measure::record_lost("inbox_full");
        }
    }

    fn guesses(&self) -> &Guesses {
        &self.guesses
    }
}

/// As the kernel half writes addresses.
fn mapped(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

impl Control for NodeHandle {
    async fn operate(&self, function: String, operation: Operation) -> bool {
        self.ask(|answer| NodeMessage::Operate(function, operation, answer)).await.unwrap_or(false)
    }

    /// Nothing while the agent is stopping. A function that was removed is there until nothing of it is left.
    async fn status(&self, name: Option<String>) -> Vec<FunctionStatus> {
        self.ask(|answer| NodeMessage::Status(name, answer)).await.unwrap_or_default()
    }

    async fn scrape(&self) {
        self.ask(NodeMessage::Scrape).await;
    }
}

fn lost<T>(reason: &'static str) -> Option<T> {
    measure::record_lost(reason);
    None
}
