//! The one task that owns the state of every function, and carries out what the decision orders.

mod allow;
mod change;
mod complaint;
mod containers;
mod counting;
mod handle;
mod listener;
mod memory;
mod record;
mod service;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::Operation;
use crate::decision::{Action, Admission, DecisionReason, FunctionLoad, InstanceState};
use crate::event::{Demand, Event, FunctionId, Trigger};
use crate::instance::InstanceCommand;
use crate::manager::{DescriptorStore, Watchdog};
use crate::measure::{self, StartHistory, now_ns};
use crate::syn::{self, Reader, Routes, Sensor};
pub use allow::AllowList;
pub use change::FunctionChange;
pub use containers::AdoptedInstance;
pub use handle::NodeHandle;
use handle::NodeMessage;
pub use memory::MemoryWatch;
use record::FunctionRecord;
pub use service::Service;

/// Messages that may wait for the node. Senders other than the rings wait for room. An event of a ring that finds none
/// is dropped; the accept queue reports its connection.
const INBOX_MAX: usize = 4096;

/// Containers created at the same time: creating is CPU work beside the starts.
const PREPARES_MAX: usize = 2;

/// How long instances that did not stop in their grace period may take to be killed and removed.
pub const STOP_MARGIN: Duration = Duration::from_secs(10);

/// The owner of the state of every function.
pub struct Node {
    functions: BTreeMap<FunctionId, FunctionRecord>,
    admission: Admission,
    sensor: Option<Sensor>,
    /// How the fronts are reached. Their numbers are no functions'.
    fronts: Routes,
    starts: Arc<StartHistory>,
    timers: BinaryHeap<Reverse<(u64, FunctionId)>>,
    inbox: mpsc::Receiver<NodeMessage>,
    handle: NodeHandle,
    tasks: JoinSet<()>,
    prepares: Arc<Semaphore>,
    descriptor_store: DescriptorStore,
    /// The rings with SYNs, if the kernel half runs.
    rings: Option<Reader>,
    /// If the service manager asks for it.
    watchdog: Option<Watchdog>,
    /// If the configuration asks for it.
    memory: Option<MemoryWatch>,
    /// Takes the names of functions whose listener an instance has ended.
    ended: Option<mpsc::Sender<String>>,
    /// Told when a removed function is forgotten.
    forgotten: Arc<Notify>,
}

impl Node {
    /// A node that serves these functions; a function's number is its place in `services`. No budget of
    /// `admission` applies to the sources in `allow`.
    #[must_use]
    pub fn new(
        services: Vec<Service>,
        admission: Admission,
        allow: AllowList,
        sensor: Option<Sensor>,
        starts: Arc<StartHistory>,
        descriptor_store: DescriptorStore,
    ) -> (Self, NodeHandle) {
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let handle = NodeHandle { inbox: sender, allow: Arc::new(allow), guesses: Arc::default() };
        let functions =
            (0..).zip(services).map(|(number, service)| (number, FunctionRecord::new(number, service)));
        let node = Self {
            functions: functions.collect(),
            admission,
            sensor,
            fronts: Routes::new(),
            starts,
            timers: BinaryHeap::new(),
            inbox,
            handle: handle.clone(),
            tasks: JoinSet::new(),
            prepares: Arc::new(Semaphore::new(PREPARES_MAX)),
            descriptor_store,
            rings: None,
            watchdog: None,
            memory: None,
            ended: None,
            forgotten: Arc::default(),
        };
        (node, handle)
    }

    /// Gives the node the rings with SYNs. It reads them before it decides about connections, because a connection that
    /// waits may have a SYN in a ring.
    pub fn read_rings(&mut self, rings: Reader) {
        self.rings = Some(rings);
    }

    /// Tells the node how the kernel half reaches the fronts, which it knows already.
    pub fn set_fronts(&mut self, fronts: Routes) {
        self.fronts = fronts;
    }

    /// Gives the node the service manager's watchdog. The node's own loop sends the pings, so that the manager restarts an
    /// agent whose loop hangs.
    pub fn set_watchdog(&mut self, watchdog: Option<Watchdog>) {
        self.watchdog = watchdog;
    }

    /// Sends the names of functions whose listener has ended to the one who can bind it anew.
    pub fn report_ended_listeners(&mut self, to: mpsc::Sender<String>) {
        self.ended = Some(to);
    }

    /// Is told when a removed function is forgotten.
    #[must_use]
    pub fn forgotten(&self) -> Arc<Notify> {
        Arc::clone(&self.forgotten)
    }

    /// Serves until [`NodeHandle::shutdown`], then stops every instance and removes every container.
    pub async fn run(mut self) {
        for function in self.function_ids() {
            self.event(function, Event::Configured);
        }
        while let Some(message) = self.next().await {
            if matches!(message, NodeMessage::Shutdown) {
                break;
            }
            self.take(message);
        }
        self.close().await;
    }

    /// The next message or timer event; `None` when all senders are gone.
    async fn next(&mut self) -> Option<NodeMessage> {
        loop {
            let due = self.timers.peek().map(|Reverse((at_ns, _))| *at_ns);
            tokio::select! {
                message = self.inbox.recv() => return message,
                () = until(due) => {
                    if due.is_some_and(|at_ns| at_ns <= now_ns())
                        && let Some(Reverse((_, function))) = self.timers.pop()
                    {
                        return Some(NodeMessage::Event(function, Event::Timer));
                    }
                }
                () = ping(self.watchdog.as_mut()) => {}
                look = look_at_memory(self.memory.as_mut()) => self.looked_at_memory(look),
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

    fn take(&mut self, message: NodeMessage) {
        match message {
            NodeMessage::Event(function, event) => self.event(function, event),
            NodeMessage::Prepared(function, instance, parked) => self.prepared(function, instance, parked),
            NodeMessage::Failed(function, error) => {
                if let Some(record) = self.record(function) {
                    record.last_error = Some(error);
                }
            }
            NodeMessage::Silent(function, instance) => {
                if let Some(record) = self.record(function) {
                    record.silent(instance);
                }
            }
            NodeMessage::Memory(function, instance, memory) => {
                let record = self.record(function);
                if let Some(running) = record.and_then(|record| record.running.get_mut(&instance)) {
                    running.memory = Some(memory);
                }
            }
            NodeMessage::Removed(function) => {
                if let Some(record) = self.record(function) {
                    record.removing = record.removing.saturating_sub(1);
                }
                self.forget(function);
            }
            NodeMessage::ListenerEnded(function) => self.listener_ended(function),
            NodeMessage::Answered(function, reason, cause, taken, result) => {
                if let Some(record) = self.record(function) {
                    record.answered(reason, cause, taken, result);
                }
                self.forget(function);
            }
            NodeMessage::Operate(name, operation, answer) => {
                let _ = answer.send(self.operate(&name, operation));
            }
            NodeMessage::Change(changes, answer) => {
                self.change(changes);
                let _ = answer.send(());
            }
            NodeMessage::Status(name, answer) => {
                let asked =
                    |record: &&FunctionRecord| name.as_ref().is_none_or(|name| record.service.name == *name);
                let _ =
                    answer.send(self.functions.values().filter(asked).map(FunctionRecord::status).collect());
            }
            NodeMessage::Scrape(answer) => {
                self.scrape();
                let _ = answer.send(());
            }
            NodeMessage::Shutdown => {}
        }
    }

    fn function_ids(&self) -> Vec<FunctionId> {
        self.functions.keys().copied().collect()
    }

    fn record(&mut self, function: FunctionId) -> Option<&mut FunctionRecord> {
        self.functions.get_mut(&function)
    }

    fn event(&mut self, function: FunctionId, event: Event) {
        let Some(record) = self.record(function) else { return };
        match &event {
            Event::Gone { instance, .. } => {
                if let Some(container) = record.parked.remove(instance) {
                    tracing::warn!(function = record.service.name, "a container died while it was parked");
                    self.remove(function, container.parked.process);
                } else if record.gone(*instance) {
                    // The task of the instance removes it, and reports that.
                    record.removing += 1;
                }
            }
            // An instance hung: the next may hang too, until it has served a client.
            Event::Demand(demand) if demand.trigger == Trigger::Accept => record.came(),
            Event::Ready(_) if record.hung => {}
            Event::Ready(_) | Event::Served(_) => (record.last_error, record.hung) = (None, false),
            _ => {}
        }
        let Some(record) = self.functions.get_mut(&function) else { return };
        let now_ns = now_ns();
        let load = record.load(now_ns);
        if load.queued > 0 && !matches!(&event, Event::Demand(demand) if demand.client.is_some()) {
            // The SYNs of the connections in the queue were written before, and the demand is theirs.
            return self.event_after_syns(function, event);
        }
        self.decide(function, event, &load, now_ns);
    }

    fn event_after_syns(&mut self, function: FunctionId, event: Event) {
        let rings = self.rings.clone();
        for _ in 0..syn::BURST_MAX {
            let Some(seen) = rings.as_ref().and_then(Reader::take) else { break };
            if let Some((of, demand)) = self.handle.demand(&seen) {
                self.event(of, Event::Demand(demand));
            }
        }
        let Some(record) = self.functions.get_mut(&function) else { return };
        let now_ns = now_ns();
        let load = record.load(now_ns);
        self.decide(function, event, &load, now_ns);
    }

    fn decide(&mut self, function: FunctionId, event: Event, load: &FunctionLoad, now_ns: u64) {
        let Some(record) = self.functions.get_mut(&function) else { return };
        let actions = record.state.on(event, load, now_ns, &mut self.admission);
        if let Event::Demand(demand) = &event
            && is_news(demand, &actions)
        {
            measure::record_syn(&record.service.name, demand);
        }
        for action in actions {
            self.act(function, action);
        }
        self.forget(function);
    }

    fn act(&mut self, function: FunctionId, action: Action) {
        if let Some(record) = self.record(function) {
            record.log_action(&action);
        }
        match action {
            Action::Prepare(instance) => self.prepare(function, instance),
            Action::Release(instance, demand) => self.release(function, instance, demand),
            Action::Freeze(instance) => self.send_command(function, instance, InstanceCommand::Freeze),
            Action::Hibernate(instance) => {
                self.send_command(function, instance, InstanceCommand::Hibernate);
            }
            Action::Thaw(instance, demand) => {
                self.send_command(function, instance, InstanceCommand::Thaw(demand))
            }
            Action::Stop(instance) => self.send_command(function, instance, InstanceCommand::Stop),
            Action::Discard(instance) => self.discard(function, instance),
            Action::Answer(count, reason) => {
                if let Some(record) = self.functions.get(&function) {
                    record.answer(function, count, reason, &self.handle);
                }
            }
            Action::Moved(instance, Some(InstanceState::Stopping { failed: true }), reason) => {
                self.failed(function, instance, reason);
            }
            Action::Suppress(..) | Action::Spent | Action::Unused | Action::Moved(..) => {}
            Action::WatchQueue(watch) => self.watch(function, watch),
            Action::Warm(warm) => self.warm(function, warm),
            Action::Turn(other) => self.timers.push(Reverse((now_ns(), other))),
            Action::Timer(at_ns) => self.timers.push(Reverse((at_ns, function))),
        }
    }

    fn warm(&mut self, function: FunctionId, warm: bool) {
        if let Some(record) = self.record(function) {
            record.service.doorbell.set_warm(warm);
        }
        if let Some(sensor) = &mut self.sensor
            && let Err(error) = sensor.warm(function, warm)
            && let Some(record) = self.record(function)
        {
            tracing::warn!(
                function = record.service.name,
                "the kernel half cannot be told whether the function is ready: {error}"
            );
        }
    }

    fn operate(&mut self, name: &str, operation: Operation) -> bool {
        let Some(function) = self.find(name) else { return false };
        let event = match operation {
            Operation::Stop => Event::Stop,
            Operation::Freeze => Event::Freeze,
            Operation::Wake => Event::Demand(Demand::local(Trigger::Api, now_ns())),
        };
        self.event(function, event);
        true
    }

    fn scrape(&self) {
        for record in self.functions.values() {
            record.scrape();
        }
        measure::scrape::budget(None, self.admission.rate());
        measure::scrape::allowed_budget(self.admission.allowed_rate());
        match self.sensor.as_ref().map(Sensor::counters) {
            Some(Ok(counters)) => measure::scrape::syn_counters(&counters),
            Some(Err(error)) => tracing::warn!("the counters of the kernel half cannot be read: {error}"),
            None => {}
        }
    }

    /// Stops everything and waits for its end, for the longest grace period and [`STOP_MARGIN`] at most.
    async fn close(&mut self) {
        let grace = self.functions.values().map(|record| record.service.stop_grace).max().unwrap_or_default();
        let deadline = Instant::now() + grace + STOP_MARGIN;
        for function in self.function_ids() {
            self.event(function, Event::Shutdown);
        }
        while self.functions.values().any(|record| !record.is_gone()) {
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

/// Whether the demand counts in the metrics: a second report of it does not, nor a connection that an instance accepts.
fn is_news(demand: &Demand, actions: &[Action]) -> bool {
    if demand.trigger == Trigger::Accept {
        return actions.iter().any(|action| {
            matches!(action, Action::Release(..) | Action::Thaw(..) | Action::Prepare(_) | Action::Answer(..))
        });
    }
    !actions.iter().any(|action| matches!(action, Action::Suppress(_, DecisionReason::Duplicate)))
}

async fn until(at_ns: Option<u64>) {
    match at_ns {
        Some(at_ns) => tokio::time::sleep(Duration::from_nanos(at_ns.saturating_sub(now_ns()))).await,
        None => std::future::pending().await,
    }
}

async fn look_at_memory(watch: Option<&mut MemoryWatch>) -> memory::MemoryLook {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Sends the next ping when it is due. Without a watchdog there is no timer.
async fn ping(watchdog: Option<&mut Watchdog>) {
    match watchdog {
        Some(watchdog) => watchdog.ping().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
