//! Containers on behalf of the node: prepared, let go, removed, each by a task of its own.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use headstart_injector::Sockets;
use headstart_wire::Activity;
use tokio::sync::mpsc;

use super::Node;
use super::entry::{ActivityPage, ParkedContainer, RunningInstance};
use super::handle::{NodeHandle, NodeMessage};
use crate::event::{Demand, Event, FunctionId, InstanceEnd, InstanceId};
use crate::instance::{self, InstanceCommand, InstanceOrigin, InstanceReport, Launch, Reporter};
use crate::start::{Note, Parked, Process};

/// Orders that may wait for an instance: it is told to freeze, to thaw and to stop, each once.
const COMMANDS_MAX: usize = 8;

/// A running instance of an earlier agent, with all that its successor needs.
pub struct AdoptedInstance {
    /// Which function's.
    pub function: FunctionId,
    /// The container's name.
    pub instance: String,
    /// The container.
    pub process: Arc<dyn Process>,
    /// The agent's end of its control socket.
    pub control: OwnedFd,
    /// What it counts its connections on,
    pub page: OwnedFd,
    /// mapped.
    pub activity: Activity,
    /// What was noted of it last.
    pub note: Note,
}

impl Node {
    /// Takes over running instances. To be done before anything else happens to their functions.
    pub fn adopt(&mut self, instances: Vec<AdoptedInstance>) {
        for AdoptedInstance { function, instance: name, process, control, page, activity, note } in instances
        {
            let Some(entry) = self.entry(function) else { continue };
            let instance = InstanceId::try_from(entry.running.len()).unwrap_or_default() + 1;
            let page = ActivityPage { activity: Arc::new(activity), descriptor: page };
            let sockets = entry.service.resources.sockets(&name, &*process).unwrap_or_else(|error| {
                tracing::error!(instance = name, "its backends cannot be reached any more: {error}");
                None
            });
            self.live(
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

    pub(super) fn prepare(&mut self, function: FunctionId, instance: InstanceId) {
        let Some(entry) = self.entry(function) else { return };
        let runtime = Arc::clone(&entry.service.runtime);
        let service = entry.service.name.clone();
        let name = instance_name(&service, entry.boot, instance);
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
            handle.send(NodeMessage::Prepared(function, instance, parked)).await;
        });
    }

    pub(super) fn prepared(
        &mut self,
        function: FunctionId,
        instance: InstanceId,
        parked: Result<Parked, String>,
    ) {
        let Some(entry) = self.entry(function) else { return };
        let name = instance_name(&entry.service.name, entry.boot, instance);
        let resources = &entry.service.resources;
        let sockets = parked.as_ref().ok().and_then(|parked| {
            let sockets = resources.sockets(&name, &*parked.process).transpose()?;
            Some(sockets.map_err(|error| format!("no sockets for its backends: {error}")))
        });
        let page = Activity::create().map_err(|error| format!("no page for its activity: {error}"));
        let with = page.and_then(|page| Ok((page, sockets.transpose()?)));
        let event = match (parked, with) {
            (Ok(parked), Ok(((activity, descriptor), sockets))) => {
                let (process, handle) = (Arc::clone(&parked.process), self.handle.clone());
                let watch = self.tasks.spawn(async move {
                    process.exited().await;
                    handle.event(function, Event::Gone { instance, end: InstanceEnd::Crashed }).await;
                });
                let Some(entry) = self.entry(function) else { return };
                let page = ActivityPage { activity: Arc::new(activity), descriptor };
                entry.parked.insert(instance, ParkedContainer { parked, page, sockets, watch });
                Event::Parked(instance)
            }
            (parked, with) => {
                let unused = parked.as_ref().ok().map(|parked| Arc::clone(&parked.process));
                if let Some(entry) = self.entry(function) {
                    entry.last_error = parked.err().or(with.err());
                }
                if let Some(process) = unused {
                    self.remove(function, process);
                }
                Event::PrepareFailed(instance)
            }
        };
        self.event(function, event);
    }

    pub(super) fn release(&mut self, function: FunctionId, instance: InstanceId, demand: Demand) {
        let Some(entry) = self.entry(function) else { return };
        let Some(ParkedContainer { parked, page, sockets, watch }) = entry.parked.remove(&instance) else {
            return;
        };
        watch.abort();
        if let Some(sockets) = &sockets {
            sockets.expect_clients();
        }
        let name = instance_name(&entry.service.name, entry.boot, instance);
        self.live(function, instance, name, page, sockets, InstanceOrigin::New { parked, demand });
    }

    /// Begins the task of an instance.
    pub(super) fn live(
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
        let Some(entry) = self.entry(function) else { return };
        let service = &entry.service;
        let (commands, command_inbox) = mpsc::channel(COMMANDS_MAX);
        let activity = Arc::clone(&page.activity);
        let launch = Launch {
            name: name.clone(),
            runtime: service.runtime.name(),
            origin,
            page: page.descriptor,
            resources: service.resources.clone(),
            fingerprint: service.fingerprint.clone(),
            return_backends: service.freeze_backends == headstart_config::FreezeBackends::Return,
            stop_grace: service.stop_grace,
            connected_ns: Arc::clone(&entry.connected_ns),
            starts,
            descriptor_store,
        };
        entry.running.insert(instance, RunningInstance { name, commands, activity });
        self.tasks.spawn(async move {
            // They end with the instance.
            let _sockets = sockets;
            let reporter = NodeReporter { handle, function, instance };
            instance::run(launch, command_inbox, &reporter).await;
            reporter.handle.send(NodeMessage::Removed(function)).await;
        });
    }

    /// Tells the task of an instance to do something. One that is at its end does not listen any more.
    pub(super) fn send_command(
        &mut self,
        function: FunctionId,
        instance: InstanceId,
        command: InstanceCommand,
    ) {
        let Some(running) = self.entry(function).and_then(|entry| entry.running.get(&instance)) else {
            return;
        };
        if let Err(mpsc::error::TrySendError::Full(command)) = running.commands.try_send(command) {
            tracing::error!(instance = running.name, ?command, "the instance's task does not listen");
        }
    }

    pub(super) fn discard(&mut self, function: FunctionId, instance: InstanceId) {
        let Some(waiting) = self.entry(function).and_then(|entry| entry.parked.remove(&instance)) else {
            return;
        };
        waiting.watch.abort();
        self.remove(function, waiting.parked.process);
    }

    pub(super) fn remove(&mut self, function: FunctionId, process: Arc<dyn Process>) {
        let handle = self.handle.clone();
        let Some(entry) = self.entry(function) else { return };
        entry.removing += 1;
        let name = entry.service.name.clone();
        self.tasks.spawn(async move {
            if let Err(error) = process.remove().await {
                tracing::error!(function = name, "a parked container cannot be removed: {error}");
            }
            handle.send(NodeMessage::Removed(function)).await;
        });
    }
}

/// Turns what an instance's task reports into events.
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

fn instance_name(function: &str, boot: u32, instance: InstanceId) -> String {
    format!("{function}-{boot:08x}{:08x}", instance & 0xffff_ffff)
}
