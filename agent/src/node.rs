//! The one task that owns the state of every function, and carries out what is decided.

mod allow;
mod containers;
mod entry;
mod handle;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::decision::{Action, Admission, Reason};
use crate::event::{Demand, Event, FunctionId, Trigger};
use crate::measure::{self, Starts, now_ns};
use crate::syn::Sensor;
pub use allow::Allow;
use entry::Entry;
pub use entry::{FunctionStatus, Service};
use handle::Message;
pub use handle::{Handle, Operation};

/// Events that may wait for the owner of the state. Senders other than the
/// ring wait for room; a SYN that finds none is left to the accept queue.
const INBOX_MAX: usize = 4096;

/// Containers created at the same time: creating is CPU work beside the starts.
const PREPARES_MAX: usize = 2;

/// The owner of the state.
pub struct Node {
    entries: Vec<Entry>,
    admission: Admission,
    sensor: Option<Sensor>,
    starts: Arc<Starts>,
    timers: BinaryHeap<Reverse<(u64, FunctionId)>>,
    inbox: mpsc::Receiver<Message>,
    handle: Handle,
    tasks: JoinSet<()>,
    prepares: Arc<Semaphore>,
    /// Tells containers of this agent's life from those of an earlier one.
    boot: u32,
}

impl Node {
    /// A node that serves these functions; a function's number is its place in `services`. No budget of
    /// `admission` applies to the sources in `allow`.
    #[must_use]
    pub fn new(
        services: Vec<Service>,
        admission: Admission,
        allow: Allow,
        sensor: Option<Sensor>,
        starts: Arc<Starts>,
    ) -> (Self, Handle) {
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let handle = Handle { inbox: sender, allow: Arc::new(allow) };
        let entries = services.into_iter().enumerate();
        let node = Self {
            entries: entries.map(|(number, service)| Entry::new(id(number), service)).collect(),
            admission,
            sensor,
            starts,
            timers: BinaryHeap::new(),
            inbox,
            handle: handle.clone(),
            tasks: JoinSet::new(),
            prepares: Arc::new(Semaphore::new(PREPARES_MAX)),
            boot: boot_number(),
        };
        (node, handle)
    }

    /// Serves until [`Handle::shutdown`], then stops every instance and removes every container.
    pub async fn run(mut self) {
        for function in 0..self.entries.len() {
            self.event(id(function), Event::Configured);
        }
        while let Some(message) = self.next().await {
            if matches!(message, Message::Shutdown) {
                break;
            }
            self.take(message);
        }
        self.close().await;
    }

    /// The next message, a timer that is due, or `None` when nobody can send any more.
    async fn next(&mut self) -> Option<Message> {
        loop {
            let due = self.timers.peek().map(|Reverse((at_ns, _))| *at_ns);
            tokio::select! {
                message = self.inbox.recv() => return message,
                () = until(due) => {
                    if due.is_some_and(|at_ns| at_ns <= now_ns())
                        && let Some(Reverse((_, function))) = self.timers.pop()
                    {
                        return Some(Message::Event(function, Event::Timer));
                    }
                }
                Some(ended) = self.tasks.join_next() => {
                    if let Err(error) = ended
                        && !error.is_cancelled()
                    {
                        tracing::error!("a task of the agent failed: {error}");
                    }
                }
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Event(function, event) => self.event(function, event),
            Message::Prepared(function, instance, parked) => self.prepared(function, instance, parked),
            Message::Failed(function, error) => {
                if let Some(entry) = self.entry(function) {
                    entry.last_error = Some(error);
                }
            }
            Message::Removed(function) => {
                if let Some(entry) = self.entry(function) {
                    entry.removing = entry.removing.saturating_sub(1);
                }
            }
            Message::Operate(name, operation, answer) => {
                let _ = answer.send(self.operate(&name, operation));
            }
            Message::Status(answer) => {
                let _ = answer.send(self.entries.iter().map(Entry::status).collect());
            }
            Message::Scrape(answer) => {
                self.scrape();
                let _ = answer.send(());
            }
            Message::Shutdown => {}
        }
    }

    fn entry(&mut self, function: FunctionId) -> Option<&mut Entry> {
        self.entries.get_mut(place(function)?)
    }

    fn event(&mut self, function: FunctionId, event: Event) {
        let Some(entry) = self.entry(function) else { return };
        match &event {
            Event::Gone { instance, .. } => {
                if let Some((parked, _)) = entry.parked.remove(instance) {
                    tracing::warn!(function = entry.service.name, "a container died while it was parked");
                    self.remove(function, parked);
                } else if entry.running.remove(instance).is_some() {
                    // Its own task removes it, and says so.
                    entry.removing += 1;
                }
            }
            Event::Ready(_) => entry.last_error = None,
            _ => {}
        }
        let Some(entry) = place(function).and_then(|at| self.entries.get_mut(at)) else { return };
        let actions = entry.state.on(event, now_ns(), &mut self.admission);
        if let Event::Demand(demand) = &event
            && !actions.iter().any(|action| matches!(action, Action::Suppress(_, Reason::Duplicate)))
        {
            measure::record_syn(&entry.service.name, demand);
        }
        for action in actions {
            self.act(function, action);
        }
    }

    fn act(&mut self, function: FunctionId, action: Action) {
        if let Some(entry) = self.entry(function) {
            entry.record(&action);
        }
        match action {
            Action::Prepare(instance, _) => self.prepare(function, instance),
            Action::Release(instance, demand) => self.release(function, instance, demand),
            Action::Stop(instance, _) => {
                if let Some(stop) = self.entry(function).and_then(|entry| entry.running.get(&instance)) {
                    // Full means that it has been asked already.
                    let _ = stop.try_send(());
                }
            }
            Action::Discard(instance) => {
                if let Some((parked, watch)) =
                    self.entry(function).and_then(|entry| entry.parked.remove(&instance))
                {
                    watch.abort();
                    self.remove(function, parked);
                }
            }
            Action::Suppress(..) | Action::Unused => {}
            Action::Watch => {
                let handle = self.handle.clone();
                if let Some(entry) = self.entry(function) {
                    entry.watch.arm(async move |at_ns| {
                        let demand = Demand::local(Trigger::Accept, at_ns);
                        handle.event(function, Event::Demand(demand)).await;
                    });
                }
            }
            Action::Unwatch => {
                if let Some(entry) = self.entry(function) {
                    entry.watch.disarm();
                }
            }
            Action::Warm(warm) => self.warm(function, warm),
            Action::Timer(at_ns) => self.timers.push(Reverse((at_ns, function))),
        }
    }

    fn warm(&mut self, function: FunctionId, warm: bool) {
        if let Some(sensor) = &mut self.sensor
            && let Err(error) = sensor.warm(function, warm)
            && let Some(entry) = self.entry(function)
        {
            tracing::warn!(function = entry.service.name, "the kernel half keeps an old state: {error}");
        }
    }

    fn operate(&mut self, name: &str, operation: Operation) -> bool {
        let Some(function) = self.entries.iter().position(|entry| entry.service.name == name) else {
            return false;
        };
        let event = match operation {
            Operation::Stop => Event::Stop,
            Operation::Wake => Event::Demand(Demand::local(Trigger::Api, now_ns())),
        };
        self.event(id(function), event);
        true
    }

    fn scrape(&self) {
        for entry in &self.entries {
            entry.scrape();
        }
        measure::scrape::budget(None, self.admission.rate());
        match self.sensor.as_ref().map(Sensor::counters) {
            Some(Ok(counters)) => measure::scrape::syn_counters(&counters),
            Some(Err(error)) => tracing::warn!("the kernel half does not give its counters: {error}"),
            None => {}
        }
    }

    /// Stops everything and waits for it, within the longest grace period.
    async fn close(&mut self) {
        let grace = self.entries.iter().map(|entry| entry.service.stop_grace).max().unwrap_or_default();
        let deadline = Instant::now() + grace + Duration::from_secs(10);
        for function in 0..self.entries.len() {
            self.event(id(function), Event::Shutdown);
        }
        while self.entries.iter().any(|entry| !entry.is_gone()) {
            match tokio::time::timeout_at(deadline, self.next()).await {
                Ok(Some(message)) => self.take(message),
                Ok(None) => break,
                Err(_) => {
                    tracing::error!(
                        "not everything stopped in time; the next start of the agent removes the rest"
                    );
                    break;
                }
            }
        }
    }
}

fn place(function: FunctionId) -> Option<usize> {
    usize::try_from(function).ok()
}

fn id(function: usize) -> FunctionId {
    FunctionId::try_from(function).unwrap_or(FunctionId::MAX)
}

/// A number that differs between two starts of the agent on one node.
fn boot_number() -> u32 {
    // The low bits change every 65 us, the process id besides.
    let clock = u32::try_from((now_ns() >> 16) & 0xffff_ffff).unwrap_or_default();
    clock ^ std::process::id().rotate_left(16)
}

async fn until(at_ns: Option<u64>) {
    match at_ns {
        Some(at_ns) => tokio::time::sleep(Duration::from_nanos(at_ns.saturating_sub(now_ns()))).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
