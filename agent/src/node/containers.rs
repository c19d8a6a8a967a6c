//! The containers of the node: prepared, released and removed, each by a task of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use headstart_injector::Sockets;
use headstart_wire::Activity;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Node;
use super::handle::{NodeHandle, NodeMessage};
use super::record::{ActivityPage, ParkedContainer, RunningInstance};
use crate::event::{Demand, Event, FailureCause, FunctionId, InstanceEnd, InstanceId};
use crate::inject::Resources;
use crate::instance::{self, InstanceCommand, InstanceOrigin, InstanceReport, Launch, Reporter};
use crate::start::{Note, PreparedContainer, Process, StartError};

/// Commands that may wait for an instance's task. The decision orders a freeze, a thaw and a stop at most once each at a
/// time.
const COMMANDS_MAX: usize = 8;

/// A running instance of an earlier agent, with all that this agent needs of it.
pub struct AdoptedInstance {
    /// The function that it serves.
    pub function: FunctionId,
    /// The container's name.
    pub instance: String,
    /// The container.
    pub process: Arc<dyn Process>,
    /// The agent's end of its control socket.
    pub control: OwnedFd,
    /// The page on which it counts its connections.
    pub page: OwnedFd,
    /// The same page, mapped.
    pub activity: Activity,
    /// Its last note.
    pub note: Note,
}

/// Why a container could not be prepared.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    /// The runtime could not make it.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The sockets of its backends could not be made.
    #[error("no sockets for its backends: {0}")]
    Sockets(io::Error),
    /// The page on which it counts its connections could not be made.
    #[error("no page for its activity: {0}")]
    Page(io::Error),
}

impl PrepareError {
    fn cause(&self) -> FailureCause {
        match self {
            Self::Start(error) => error.cause(),
            Self::Sockets(_) | Self::Page(_) => FailureCause::Node,
        }
    }
}

impl Node {
    /// Takes over running instances. Must be called before any event of their functions.
    pub fn adopt(&mut self, instances: Vec<AdoptedInstance>) {
        for AdoptedInstance { function, instance: name, process, control, page, activity, note } in instances
        {
            let Some(record) = self.record(function) else { continue };
            let instance = InstanceId::try_from(record.running.len()).unwrap_or_default() + 1;
            let page = ActivityPage { activity: Arc::new(activity), descriptor: page };
            let sockets = record.service.resources.sockets(&name, &*process).unwrap_or_else(|error| {
                tracing::error!(
                    instance = name,
                    "the sockets of its backends cannot be made, so it no longer reaches them: {error}"
                );
                None
            });
            self.start_task(
                function,
                instance,
                name,
                page,
                sockets,
                InstanceOrigin::Adopted { process, control, note },
            );
            self.event(function, Event::Adopted(instance));
        }
    }

    /// Starts a task that makes a container.
    pub(super) fn prepare(&mut self, function: FunctionId, instance: InstanceId) {
        let Some(record) = self.record(function) else { return };
        let runtime = Arc::clone(&record.service.runtime);
        let service = record.service.name.clone();
        let name = instance_name(&service, record.boot, instance);
        let (prepares, handle) = (Arc::clone(&self.prepares), self.handle.clone());
        self.tasks.spawn(async move {
            // The semaphore is never closed. Without a permit more containers would be made at a time, nothing else.
            let _permit = prepares.acquire_owned().await.ok();
            let parked = runtime.prepare(&name).await.inspect_err(|error| {
                tracing::error!(
                    function = service,
                    reason = error.reason(),
                    "no container prepared: {error}"
                );
            });
            handle.send(NodeMessage::Prepared(function, instance, parked)).await;
        });
    }

    /// The runtime has made a container, or has failed to.
    pub(super) fn prepared(
        &mut self,
        function: FunctionId,
        instance: InstanceId,
        parked: Result<PreparedContainer, StartError>,
    ) {
        let Some(record) = self.record(function) else { return };
        let name = instance_name(&record.service.name, record.boot, instance);
        let process = parked.as_ref().ok().map(|parked| Arc::clone(&parked.process));
        let equipped = parked.map_err(PrepareError::from).and_then(|parked| {
            let (page, sockets) = equip(&parked, &name, &record.service.resources)?;
            Ok((parked, page, sockets))
        });
        let event = match equipped {
            Ok((parked, page, sockets)) => {
                let watch = self.watch_parked(function, instance, Arc::clone(&parked.process));
                let Some(record) = self.record(function) else { return };
                record.parked.insert(instance, ParkedContainer { parked, page, sockets, watch });
                Event::Parked(instance)
            }
            Err(error) => {
                let cause = error.cause();
                record.last_error = Some(error.to_string());
                if let Some(process) = process {
                    self.remove(function, process);
                }
                Event::PrepareFailed { instance, cause }
            }
        };
        self.event(function, event);
    }

    /// Starts a task that reports the death of a parked container.
    fn watch_parked(
        &mut self,
        function: FunctionId,
        instance: InstanceId,
        process: Arc<dyn Process>,
    ) -> AbortHandle {
        let handle = self.handle.clone();
        self.tasks.spawn(async move {
            process.exited().await;
            handle.event(function, Event::Gone { instance, end: InstanceEnd::Crashed }).await;
        })
    }

    /// Releases a parked container for this demand.
    pub(super) fn release(&mut self, function: FunctionId, instance: InstanceId, demand: Demand) {
        let Some(record) = self.record(function) else { return };
        let Some(ParkedContainer { parked, page, sockets, watch }) = record.parked.remove(&instance) else {
            return;
        };
        watch.abort();
        if let Some(sockets) = &sockets {
            sockets.expect_clients();
        }
        let name = instance_name(&record.service.name, record.boot, instance);
        self.start_task(function, instance, name, page, sockets, InstanceOrigin::New { parked, demand });
    }

    /// Starts the task of an instance.
    pub(super) fn start_task(
        &mut self,
        function: FunctionId,
        instance: InstanceId,
        name: String,
        page: ActivityPage,
        sockets: Option<Sockets>,
        origin: InstanceOrigin,
    ) {
        let (starts, handle, descriptor_store) =
            (Arc::clone(&self.starts), self.handle.clone(), self.descriptor_store.clone());
        let Some(record) = self.record(function) else { return };
        let (commands, command_inbox) = mpsc::channel(COMMANDS_MAX);
        let activity = Arc::clone(&page.activity);
        let counted = record.count(origin.process(), &activity);
        let service = &record.service;
        let launch = Launch {
            name: name.clone(),
            runtime: service.runtime.name(),
            origin,
            page: page.descriptor,
            resources: service.resources.clone(),
            fingerprint: service.fingerprint.clone(),
            return_backends: service.freeze_backends == headstart_config::FreezeBackends::Return,
            stop_grace: service.stop_grace,
            connected_ns: Arc::clone(&record.connected_ns),
            starts,
            descriptor_store,
            contract: service.contract,
            counted,
        };
        record
            .running
            .insert(instance, RunningInstance { name, commands, activity, silent: false, memory: None });
        self.tasks.spawn(async move {
            // The sockets close when the instance has ended.
            let _sockets = sockets;
            let reporter = NodeReporter { handle, function, instance };
            instance::run(launch, command_inbox, &reporter).await;
            reporter.handle.send(NodeMessage::Removed(function)).await;
        });
    }

    /// Sends a command to the task of an instance. A task that is at its end no longer reads it.
    pub(super) fn send_command(
        &mut self,
        function: FunctionId,
        instance: InstanceId,
        command: InstanceCommand,
    ) {
        let Some(running) = self.record(function).and_then(|record| record.running.get(&instance)) else {
            return;
        };
        if let Err(mpsc::error::TrySendError::Full(command)) = running.commands.try_send(command) {
            tracing::error!(
                instance = running.name,
                ?command,
                "the task of the instance does not read its commands"
            );
        }
    }

    /// Removes a parked container that is not needed.
    pub(super) fn discard(&mut self, function: FunctionId, instance: InstanceId) {
        let Some(container) = self.record(function).and_then(|record| record.parked.remove(&instance)) else {
            return;
        };
        container.watch.abort();
        self.remove(function, container.parked.process);
    }

    /// Starts a task that removes a container.
    pub(super) fn remove(&mut self, function: FunctionId, process: Arc<dyn Process>) {
        let handle = self.handle.clone();
        let Some(record) = self.record(function) else { return };
        record.removing += 1;
        let name = record.service.name.clone();
        self.tasks.spawn(async move {
            if let Err(error) = process.remove().await {
                tracing::error!(function = name, "a parked container cannot be removed: {error}");
            }
            handle.send(NodeMessage::Removed(function)).await;
        });
    }
}

/// Turns the reports of an instance's task into events of the node.
struct NodeReporter {
    handle: NodeHandle,
    function: FunctionId,
    instance: InstanceId,
}

impl Reporter for NodeReporter {
    async fn report(&self, report: InstanceReport) {
        let instance = self.instance;
        let event = match report {
            InstanceReport::Ready => Event::Ready(instance),
            InstanceReport::Served => Event::Served(instance),
            InstanceReport::Frozen => Event::Frozen(instance),
            InstanceReport::Hibernated(memory) => {
                self.handle.send(NodeMessage::Memory(self.function, instance, memory)).await;
                Event::Hibernated(instance)
            }
            InstanceReport::NotHibernated(error) => {
                self.handle.send(NodeMessage::Failed(self.function, error)).await;
                Event::NotHibernated(instance)
            }
            InstanceReport::Silent => {
                return self.handle.send(NodeMessage::Silent(self.function, instance)).await;
            }
            InstanceReport::NotFrozen { busy, error } => {
                if let Some(error) = error {
                    self.handle.send(NodeMessage::Failed(self.function, error)).await;
                }
                Event::NotFrozen { instance, busy }
            }
            InstanceReport::Gone { end, error } => {
                if let Some(error) = error {
                    self.handle.send(NodeMessage::Failed(self.function, error)).await;
                }
                Event::Gone { instance, end }
            }
        };
        self.handle.event(self.function, event).await;
    }
}

/// Makes the page and the sockets of a parked container.
fn equip(
    parked: &PreparedContainer,
    name: &str,
    resources: &Resources,
) -> Result<(ActivityPage, Option<Sockets>), PrepareError> {
    let (activity, descriptor) = Activity::create().map_err(PrepareError::Page)?;
    let sockets = resources.sockets(name, &*parked.process).map_err(PrepareError::Sockets)?;
    Ok((ActivityPage { activity: Arc::new(activity), descriptor }, sockets))
}

fn instance_name(function: &str, boot: u32, instance: InstanceId) -> String {
    format!("{function}-{boot:08x}{:08x}", instance & 0xffff_ffff)
}
