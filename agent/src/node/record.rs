//! What the node knows of one function: its settings, its state and its containers.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use headstart_config::RequireAuth;
use headstart_injector::Sockets;
use headstart_wire::{Activity, ActivityReading, accept_queue};
use socket2::SockRef;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::handle::{NodeHandle, NodeMessage};
use super::service::Service;
use crate::api::{FunctionStatus, FunctionSummary, HibernatedMemory, InstanceStatus};
use crate::decision::{
    self, Action, DecisionReason, FunctionLoad, InstanceLoad, InstanceState, QueueWatchRate, Summary,
};
use crate::event::{FailureCause, FunctionId, InstanceId};
use crate::instance::{InstanceCommand, MemoryUse};
use crate::measure;
use crate::serve::overload::{Answer, Answers};
use crate::serve::{ConnectionCounter, QueueWatch};
use crate::start::PreparedContainer;

/// A parked container.
pub(super) struct ParkedContainer {
    pub(super) parked: PreparedContainer,
    pub(super) page: ActivityPage,
    pub(super) sockets: Option<Sockets>,
    /// The task that reports its death.
    pub(super) watch: AbortHandle,
}

/// The page on which an instance counts its connections: mapped, and the descriptor that the instance is given.
pub(super) struct ActivityPage {
    pub(super) activity: Arc<Activity>,
    pub(super) descriptor: OwnedFd,
}

/// A running instance.
pub(super) struct RunningInstance {
    pub(super) name: String,
    pub(super) commands: mpsc::Sender<InstanceCommand>,
    pub(super) activity: Arc<Activity>,
    /// It runs and has not said hello.
    pub(super) silent: bool,
    /// Where its memory was when it was last hibernated.
    pub(super) memory: Option<MemoryUse>,
}

/// A function, its state and its containers.
pub(super) struct FunctionRecord {
    pub(super) service: Service,
    pub(super) state: decision::FunctionState,
    /// It was removed from the configuration, and is forgotten when nothing of it is left.
    pub(super) leaving: bool,
    /// Its clients wait for the function that gets its listener.
    pub(super) has_heir: bool,
    /// A number in the names of its containers, which differs from that of an earlier agent and of an earlier function
    /// with its name.
    pub(super) boot: u32,
    pub(super) watch: QueueWatch,
    /// How closely `watch` was last told to look.
    pub(super) watch_rate: QueueWatchRate,
    /// An instance has ended the listener, and there is no other yet.
    pub(super) listener_ended: bool,
    pub(super) parked: HashMap<InstanceId, ParkedContainer>,
    pub(super) running: BTreeMap<InstanceId, RunningInstance>,
    pub(super) removing: usize,
    pub(super) last_error: Option<String>,
    /// `last_error` is of an instance that accepted no connection, and none has served a client since.
    pub(super) hung: bool,
    /// Since when connections have waited in the accept queue without a pause, in nanoseconds of
    /// `CLOCK_MONOTONIC`; 0 while none waits.
    pub(super) connected_ns: Arc<AtomicU64>,
    /// Answers clients that no instance serves.
    pub(super) answers: Answers,
    /// It is left, nothing runs any more, and the clients that were still there were answered.
    drained: bool,
    /// Connections that were accepted by instances that are gone.
    pub(super) accepted: u64,
    /// Counts the connections of its instances, while there are any and they do not count themselves.
    pub(super) counter: Option<ConnectionCounter>,
}

impl FunctionRecord {
    pub(super) fn new(number: FunctionId, service: Service) -> Self {
        measure::declare(&service.name);
        service.doorbell.serve(number);
        service.doorbell.require_key(service.require_auth != RequireAuth::No);
        let listener = &service.resources.listener;
        let (watch, answers) = (QueueWatch::new(Arc::clone(listener)), Answers::new(Arc::clone(listener)));
        let state = decision::FunctionState::new(number, service.policy);
        Self {
            service,
            state,
            leaving: false,
            has_heir: false,
            boot: boot_number(),
            watch,
            watch_rate: QueueWatchRate::Off,
            listener_ended: false,
            parked: HashMap::new(),
            running: BTreeMap::new(),
            removing: 0,
            last_error: None,
            hung: false,
            connected_ns: Arc::default(),
            answers,
            drained: false,
            accepted: 0,
            counter: None,
        }
    }

    /// The load of its connections now. The pages are read first: a connection that is accepted meanwhile is then counted
    /// in neither the pages nor the queue for a moment, rather than in both. Connections that the agent is answering count
    /// as accepted.
    pub(super) fn load(&self, now_ns: u64) -> FunctionLoad {
        let instances: Vec<_> =
            self.running.iter().map(|(id, running)| (*id, seen(&running.activity))).collect();
        let (leaving, answered) = self.answers.progress();
        let by_agent = answered.saturating_add(u64::from(leaving));
        let accepted = instances
            .iter()
            .fold(self.accepted.saturating_add(by_agent), |sum, (_, seen): &(_, InstanceLoad)| {
                sum.saturating_add(seen.accepted)
            });
        let queued = self.queued().saturating_sub(leaving);
        if queued == 0 {
            self.connected_ns.store(0, Ordering::Relaxed);
        } else {
            let _ = self.connected_ns.compare_exchange(0, now_ns, Ordering::Relaxed, Ordering::Relaxed);
        }
        FunctionLoad { queued, accepted, instances }
    }

    /// Connections in the accept queue. A listener that has ended has none.
    fn queued(&self) -> u32 {
        accept_queue(&*self.service.resources.listener).unwrap_or(0)
    }

    /// An instance is gone: keeps the count of what it has accepted. False when it was not known to run.
    pub(super) fn gone(&mut self, instance: InstanceId) -> bool {
        let Some(running) = self.running.remove(&instance) else { return false };
        self.accepted = self.accepted.saturating_add(running.activity.read().accepted);
        if self.running.is_empty() {
            self.counter = None;
        }
        true
    }

    /// Answers the clients that have waited longest, because no instance will serve them. [`NodeMessage::Answered`]
    /// follows.
    pub(super) fn answer(&self, function: FunctionId, count: u32, reason: DecisionReason, node: &NodeHandle) {
        if self.has_heir {
            return;
        }
        let retry_after = self.retry_in().unwrap_or(Duration::from_secs(1));
        let cause = self.state.failure_cause();
        let answer = Answer { how: self.service.overload, retry_after, why: why(reason, cause) };
        let node = node.clone();
        self.answers.answer(count, answer, move |taken, result| {
            node.send_from_thread(NodeMessage::Answered(function, reason, cause, taken, result));
        });
    }

    /// Clients were answered.
    pub(super) fn answered(
        &self,
        reason: DecisionReason,
        cause: Option<FailureCause>,
        taken: u32,
        result: io::Result<()>,
    ) {
        let Service { overload, name, .. } = &self.service;
        if taken > 0 {
            tracing::info!(
                function = name,
                reason = reason.as_str(),
                cause = cause.map(FailureCause::as_str),
                clients = taken,
                overload = overload.as_str(),
                "clients answered: no instance serves them in time"
            );
        }
        measure::record_overload(name, reason, taken);
        if let Err(error) = result
            && !self.listener_ended
        {
            tracing::error!(function = name, "clients that no instance serves cannot be answered: {error}");
        }
    }

    /// Answers the clients that are still there although nothing runs any more, no more than there are. True when that is
    /// done.
    pub(super) fn drain(&mut self, function: FunctionId, node: &NodeHandle) -> bool {
        if self.has_heir {
            return true;
        }
        if !std::mem::replace(&mut self.drained, true) {
            self.answer(function, self.queued(), DecisionReason::Closed, node);
        }
        if self.answers.is_running() && self.queued() == 0 {
            // An instance that is gone made the thread wait for another client. This ends it.
            let _ = SockRef::from(&*self.service.resources.listener).shutdown(Shutdown::Both);
        }
        !self.answers.is_running()
    }

    /// Whether nothing runs, is parked, or is being made or removed.
    pub(super) fn is_gone(&self) -> bool {
        let none = self.parked.is_empty() && self.running.is_empty();
        none && self.state.preparing() == 0 && self.removing == 0
    }

    /// The function as the API shows it.
    pub(super) fn status(&self) -> FunctionStatus {
        let now_ns = measure::now_ns();
        let Service { policy, .. } = &self.service;
        let seconds = |after: Option<Duration>| after.map(|after| after.as_secs_f64());
        FunctionStatus {
            name: self.service.name.clone(),
            listen: self.service.listen,
            id: self.service.id,
            require_auth: self.service.require_auth.as_str().into(),
            runtime: self.service.runtime.name().into(),
            state: if self.listener_ended {
                FunctionSummary::Failed
            } else {
                self.state.summary(now_ns).into()
            },
            prepared: self.state.parked(),
            preparing: self.state.preparing(),
            instances: self.running.len(),
            running: self.instances(now_ns),
            queued: self.load(now_ns).queued,
            removing: self.removing,
            last_error: self.last_error.clone(),
            failed_starts: self.state.failed_starts(now_ns).0,
            failure: self.state.failure_cause(),
            retry_in_seconds: seconds(self.retry_in()),
            concurrency: policy.concurrency,
            min_ready: policy.min_ready,
            standby: policy.standby,
            max_instances: policy.max_instances,
            overload: self.service.overload.as_str().into(),
            freeze_after_seconds: seconds(policy.freeze_after),
            hibernate_after_seconds: seconds(policy.hibernate_after),
            stop_after_seconds: seconds(policy.stop_after),
        }
    }

    fn instances(&self, now_ns: u64) -> Vec<InstanceStatus> {
        let since = |ns: u64| Duration::from_nanos(now_ns.saturating_sub(ns)).as_secs_f64();
        let all = self.state.instances().filter_map(|(id, instance)| {
            let running = self.running.get(&id)?;
            let seen = running.activity.read();
            let idle = seen.open == Some(0) && instance.state == InstanceState::Ready;
            Some(InstanceStatus {
                name: running.name.clone(),
                state: instance.state.as_str().into(),
                reason: instance.reason.as_str().into(),
                since_seconds: since(instance.since_ns),
                open: seen.open,
                accepted: seen.accepted,
                idle_seconds: idle.then(|| since(seen.changed_ns.max(instance.since_ns))),
                memory: running
                    .memory
                    .filter(|_| instance.state == InstanceState::Hibernated)
                    .map(Into::into),
            })
        });
        all.collect()
    }

    fn retry_in(&self) -> Option<Duration> {
        let pause_ns = self.state.retry_at_ns()?.checked_sub(measure::now_ns())?;
        Some(Duration::from_nanos(pause_ns))
    }

    /// Counts and logs what was decided.
    pub(super) fn log_action(&self, action: &Action) {
        let name = &self.service.name;
        match action {
            Action::Release(_, demand) => measure::record_decision(name, "start", demand.trigger.as_str()),
            Action::Thaw(_, demand) => measure::record_decision(name, "thaw", demand.trigger.as_str()),
            Action::Suppress(_, reason) => {
                measure::record_suppressed(*reason);
                measure::record_decision(name, "suppress", reason.as_str());
            }
            Action::Moved(id, state, reason) => self.log_move(*id, *state, *reason),
            Action::Spent => measure::record_spent(name),
            Action::Unused => measure::record_unused(name),
            Action::Prepare(_)
            | Action::Freeze(_)
            | Action::Hibernate(_)
            | Action::Stop(_)
            | Action::Discard(_)
            | Action::Answer(..)
            | Action::WatchQueue(_)
            | Action::Warm(_)
            | Action::Turn(_)
            | Action::Timer(_) => {}
        }
    }

    fn log_move(&self, id: InstanceId, state: Option<InstanceState>, reason: DecisionReason) {
        let function = &self.service.name;
        let (reason, word) = (reason.as_str(), state.map_or("gone", InstanceState::as_str));
        measure::record_transition(function, word, reason);
        let instance = self.running.get(&id).map(|running| running.name.as_str());
        match state {
            Some(InstanceState::Preparing { .. }) => measure::record_decision(function, "prepare", reason),
            Some(InstanceState::Stopping { .. }) => measure::record_decision(function, "stop", reason),
            Some(InstanceState::Freezing) => measure::record_decision(function, "freeze", reason),
            Some(InstanceState::Hibernating) => measure::record_decision(function, "hibernate", reason),
            _ => {}
        }
        match state {
            Some(
                InstanceState::Preparing { .. } | InstanceState::Parked | InstanceState::Starting { .. },
            )
            | None => {
                tracing::debug!(function, id, instance, reason, "instance: {word}");
            }
            Some(_) => tracing::info!(function, instance, reason, "instance: {word}"),
        }
    }

    /// Serves it differently from now on.
    pub(super) fn alter(&mut self, service: Service) {
        if self.service.policy.hibernate_after.is_some() && service.policy.hibernate_after.is_none() {
            // Gauges that are no longer set would keep their last values.
            for kind in ["resident", "swapped"] {
                measure::scrape::hibernated(&service.name, kind, 0);
            }
        }
        service.doorbell.require_key(service.require_auth != RequireAuth::No);
        self.service = service;
    }

    /// Brings the gauges of the function up to date.
    pub(super) fn scrape(&self) {
        for state in InstanceState::NAMES {
            let there = self.state.instances().filter(|(_, instance)| instance.state.as_str() == state);
            measure::scrape::instances(&self.service.name, state, there.count());
        }
        if self.service.policy.hibernate_after.is_some() {
            let hibernated = self.state.instances().filter(|(_, one)| one.state == InstanceState::Hibernated);
            let memory: Vec<_> = hibernated.filter_map(|(id, _)| self.running.get(&id)?.memory).collect();
            let sum = |of: fn(&MemoryUse) -> u64| memory.iter().map(of).sum();
            measure::scrape::hibernated(&self.service.name, "resident", sum(|memory| memory.resident));
            measure::scrape::hibernated(&self.service.name, "swapped", sum(|memory| memory.swapped));
        }
        measure::scrape::budget(Some(&self.service.name), self.state.rate());
    }
}

impl From<MemoryUse> for HibernatedMemory {
    fn from(memory: MemoryUse) -> Self {
        Self { resident_bytes: memory.resident, swapped_bytes: memory.swapped }
    }
}

impl From<Summary> for FunctionSummary {
    fn from(summary: Summary) -> Self {
        match summary {
            Summary::Cold => Self::Cold,
            Summary::Starting => Self::Starting,
            Summary::Ready => Self::Ready,
            Summary::Frozen => Self::Frozen,
            Summary::Hibernated => Self::Hibernated,
            Summary::Stopping => Self::Stopping,
            Summary::Failed => Self::Failed,
            Summary::Off => Self::Off,
            Summary::Closed => Self::Closed,
        }
    }
}

/// What clients of HTTP are told.
fn why(reason: DecisionReason, cause: Option<FailureCause>) -> &'static str {
    match (reason, cause) {
        (DecisionReason::Off, _) => "the function is off\n",
        (DecisionReason::Closed, _) => "the function is no longer served\n",
        (_, Some(FailureCause::Function)) => "the function fails to start\n",
        (_, Some(FailureCause::Backend)) => "the function cannot start: a backend of it cannot be reached\n",
        (_, Some(FailureCause::Node)) => "the function cannot start: its node cannot make a container\n",
        (_, None) => "no instance of the function accepted the connection in time\n",
    }
}

/// A number that differs between two starts of the agent on one node, and between two functions of the same name.
fn boot_number() -> u32 {
    // The low bits change every 65 us, and the process ID differs too.
    let clock = u32::try_from((measure::now_ns() >> 16) & 0xffff_ffff).unwrap_or_default();
    clock ^ std::process::id().rotate_left(16)
}

fn seen(activity: &Activity) -> InstanceLoad {
    let ActivityReading { open, accepted, changed_ns, sampled } = activity.read();
    InstanceLoad { open, accepted, changed_ns, sampled }
}
