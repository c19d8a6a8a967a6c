//! Containers on behalf of the node: prepared, let go, removed, each by a task of its own.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::Node;
use super::handle::{Handle, Message};
use crate::event::{Demand, Event, FunctionId, InstanceId};
use crate::instance::{self, Birth, Report, Reporter};
use crate::start::Parked;

impl Node {
    pub(super) fn prepare(&mut self, function: FunctionId, instance: InstanceId) {
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

    pub(super) fn prepared(
        &mut self,
        function: FunctionId,
        instance: InstanceId,
        parked: Result<Parked, String>,
    ) {
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

    pub(super) fn release(&mut self, function: FunctionId, instance: InstanceId, demand: Demand) {
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

    pub(super) fn remove(&mut self, function: FunctionId, parked: Parked) {
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
            Report::Served => Event::Served(instance),
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

fn instance_name(function: &str, boot: u32, instance: InstanceId) -> String {
    format!("{function}-{boot:08x}{:08x}", instance & 0xffff_ffff)
}
