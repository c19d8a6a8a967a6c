//! How others speak to the node.

use headstart_ebpf::event::SynEvent;
use tokio::sync::{mpsc, oneshot};

use super::entry::FunctionStatus;
use crate::event::{Demand, Event, FunctionId, InstanceId, Trigger};
use crate::measure::now_ns;
use crate::start::Parked;

/// What an operator can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Start it as if a client had come.
    Wake,
    /// Stop the running instance.
    Stop,
}

/// What the owner of the state reads.
pub(super) enum Message {
    Event(FunctionId, Event),
    Prepared(FunctionId, InstanceId, Result<Parked, String>),
    /// What went wrong with an instance that is gone.
    Failed(FunctionId, String),
    Removed(FunctionId),
    Operate(String, Operation, oneshot::Sender<bool>),
    Status(oneshot::Sender<Vec<FunctionStatus>>),
    Scrape(oneshot::Sender<()>),
    Shutdown,
}

/// How others speak to the node.
#[derive(Clone)]
pub struct Handle(pub(super) mpsc::Sender<Message>);

impl Handle {
    /// A SYN came out of the ring. False when it had to be left to the accept queue.
    #[must_use]
    pub fn syn(&self, event: &SynEvent) -> bool {
        let demand = Demand { trigger: Trigger::Syn, at_ns: event.timestamp_ns, seen_ns: now_ns() };
        self.0.try_send(Message::Event(event.function, Event::Demand(demand))).is_ok()
    }

    /// Carries out an operation; false when there is no such function.
    pub async fn operate(&self, function: String, operation: Operation) -> bool {
        self.ask(|answer| Message::Operate(function, operation, answer)).await.unwrap_or(false)
    }

    /// The state of every function; empty while the agent is leaving.
    pub async fn status(&self) -> Vec<FunctionStatus> {
        self.ask(Message::Status).await.unwrap_or_default()
    }

    /// Brings gauges and kernel counters up to date.
    pub async fn scrape(&self) {
        self.ask(Message::Scrape).await;
    }

    /// Stops everything; [`super::Node::run`] then returns.
    pub async fn shutdown(&self) {
        self.send(Message::Shutdown).await;
    }

    /// Something happened to a function.
    pub(super) async fn event(&self, function: FunctionId, event: Event) {
        self.send(Message::Event(function, event)).await;
    }

    /// Waits for room; while the agent is leaving there is nobody left to tell.
    pub(super) async fn send(&self, message: Message) {
        drop(self.0.send(message).await);
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.0.send(question(sender)).await.ok()?;
        answer.await.ok()
    }
}
