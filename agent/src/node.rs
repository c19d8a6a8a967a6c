//! The one task that owns the state of every function, and carries out what is decided.

mod entry;
mod handle;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::decision::Action;
use crate::event::{Demand, Event, FunctionId, InstanceId, Trigger};
use crate::instance::{self, Birth, Report, Reporter};
use crate::measure::{self, Starts, now_ns};
use crate::start::Parked;
use crate::syn::Sensor;
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
    /// A node that serves these functions; a function's number is its place in `services`.
    #[must_use]
    pub fn new(services: Vec<Service>, sensor: Option<Sensor>, starts: Arc<Starts>) -> (Self, Handle) {
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let handle = Handle(sender);
        let entries = services.into_iter().map(Entry::new).collect();
        let node = Self {
            entries,
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
        self.entries.get_mut(usize::try_from(function).ok()?)
    }

    fn event(&mut self, function: FunctionId, event: Event) {
        let Some(entry) = self.entry(function) else { return };
        match &event {
            Event::Demand(demand) => measure::record_syn(&entry.service.name, demand),
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
        let Some(entry) = self.entry(function) else { return };
        for action in entry.state.on(event, now_ns()) {
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
            Action::Suppress(..) => {}
            Action::Watch => {
                let handle = self.handle.clone();
                if let Some(entry) = self.entry(function) {
                    entry.watch.arm(async move |at_ns| {
                        let demand = Demand { trigger: Trigger::Accept, at_ns, seen_ns: at_ns };
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

    fn prepare(&mut self, function: FunctionId, instance: InstanceId) {
        let boot = self.boot;
        let Some(entry) = self.entry(function) else { return };
        let runtime = Arc::clone(&entry.service.runtime);
        let service = entry.service.name.clone();
        let name = instance_name(&service, boot, instance);
        let (prepares, handle) = (Arc::clone(&self.prepares), self.handle.clone());
        self.tasks.spawn(async move {
            // The semaphore is never closed; without a permit there would only be less order.
            let _permit = prepares.acquire_owned().await.ok();
            let parked = runtime.prepare(&name).await.map_err(|error| {
                tracing::error!(
                    function = service,
                    reason = error.reason(),
                    "no container prepared: {error}"
                );
                error.to_string()
            });
            handle.send(Message::Prepared(function, instance, parked)).await;
        });
    }

    fn prepared(&mut self, function: FunctionId, instance: InstanceId, parked: Result<Parked, String>) {
        let handle = self.handle.clone();
        let event = match parked {
            Ok(parked) => {
                let process = Arc::clone(&parked.process);
                let watch = self.tasks.spawn(async move {
                    process.exited().await;
                    handle.event(function, Event::Gone { instance, clean: false }).await;
                });
                let Some(entry) = self.entry(function) else { return };
                entry.parked.insert(instance, (parked, watch));
                Event::Parked(instance)
            }
            Err(error) => {
                if let Some(entry) = self.entry(function) {
                    entry.last_error = Some(error);
                }
                Event::PrepareFailed(instance)
            }
        };
        self.event(function, event);
    }

    fn release(&mut self, function: FunctionId, instance: InstanceId, demand: Demand) {
        let (starts, handle, boot) = (Arc::clone(&self.starts), self.handle.clone(), self.boot);
        let Some(entry) = self.entry(function) else { return };
        let Some((parked, watch)) = entry.parked.remove(&instance) else { return };
        watch.abort();
        let service = &entry.service;
        let birth = Birth {
            name: instance_name(&service.name, boot, instance),
            runtime: service.runtime.name(),
            parked,
            demand,
            dowry: service.dowry.clone(),
            stop_grace: service.stop_grace,
            connected_ns: entry.watch.connected_ns(),
            starts,
        };
        let (stop, stopped) = mpsc::channel(1);
        entry.running.insert(instance, stop);
        self.tasks.spawn(async move {
            let teller = Teller { handle, function, instance };
            instance::run(birth, stopped, &teller).await;
            teller.handle.send(Message::Removed(function)).await;
        });
    }

    fn remove(&mut self, function: FunctionId, parked: Parked) {
        let handle = self.handle.clone();
        let Some(entry) = self.entry(function) else { return };
        entry.removing += 1;
        let name = entry.service.name.clone();
        self.tasks.spawn(async move {
            if let Err(error) = parked.process.remove().await {
                tracing::error!(function = name, "a parked container cannot be removed: {error}");
            }
            handle.send(Message::Removed(function)).await;
        });
    }

    fn warm(&mut self, function: FunctionId, warm: bool) {
        let Some(listen) = self.entry(function).map(|entry| entry.service.listen) else { return };
        if let Some(sensor) = &mut self.sensor
            && let Err(error) = sensor.set(listen, function, warm)
        {
            tracing::warn!("the kernel half keeps an old state of {listen}: {error}");
        }
    }

    fn operate(&mut self, name: &str, operation: Operation) -> bool {
        let Some(function) = self.entries.iter().position(|entry| entry.service.name == name) else {
            return false;
        };
        let event = match operation {
            Operation::Stop => Event::Stop,
            Operation::Wake => {
                let now = now_ns();
                Event::Demand(Demand { trigger: Trigger::Api, at_ns: now, seen_ns: now })
            }
        };
        self.event(id(function), event);
        true
    }

    fn scrape(&self) {
        for entry in &self.entries {
            entry.scrape();
        }
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

/// Turns what an instance's task reports into events.
struct Teller {
    handle: Handle,
    function: FunctionId,
    instance: InstanceId,
}

impl Reporter for Teller {
    async fn report(&self, report: Report) {
        let instance = self.instance;
        let event = match report {
            Report::Ready => Event::Ready(instance),
            Report::Gone { wrong } => {
                let clean = wrong.is_none();
                if let Some(error) = wrong {
                    self.handle.send(Message::Failed(self.function, error)).await;
                }
                Event::Gone { instance, clean }
            }
        };
        self.handle.event(self.function, event).await;
    }
}

fn id(function: usize) -> FunctionId {
    FunctionId::try_from(function).unwrap_or(FunctionId::MAX)
}

fn instance_name(function: &str, boot: u32, instance: InstanceId) -> String {
    format!("{function}-{boot:08x}{:08x}", instance & 0xffff_ffff)
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
