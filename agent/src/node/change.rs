//! Changes of what is served, while the node runs.

use super::Node;
use super::entry::{FunctionRecord, Service};
use crate::decision::Reason;
use crate::event::{Event, FunctionId};

/// A change of one function.
pub enum FunctionChange {
    /// Serve a new function.
    Add(Box<Service>),
    /// Serve a function differently. It keeps its number and its listener.
    Alter {
        /// The function from now on; its name says which one it is.
        service: Box<Service>,
        /// Existing instances must be replaced.
        replace: bool,
    },
    /// Stop the instances of the function with this name, answer its clients, and forget it.
    Remove(String),
}

impl Node {
    /// Carries out changes. The kernel half is updated first, so that a function that is removed gets no SYNs while
    /// it drains.
    pub(super) fn change(&mut self, changes: Vec<FunctionChange>) {
        let mut events = Vec::new();
        for change in changes {
            match change {
                FunctionChange::Remove(name) => {
                    let Some(function) = self.find(&name) else { continue };
                    if let Some(entry) = self.entry(function) {
                        entry.leaving = true;
                    }
                    events.push((function, Event::Removed));
                }
                FunctionChange::Alter { service, replace } => {
                    let Some(function) = self.find(&service.name) else { continue };
                    let policy = service.policy;
                    if let Some(entry) = self.entry(function) {
                        entry.service = *service;
                    }
                    events.push((function, Event::Changed { policy, replace }));
                }
                FunctionChange::Add(service) => {
                    let function = self.free_number();
                    self.entries.insert(function, FunctionRecord::new(function, *service));
                    events.push((function, Event::Configured));
                }
            }
        }
        self.update_sensor();
        for (function, event) in events {
            self.event(function, event);
        }
    }

    fn update_sensor(&mut self) {
        let Some(sensor) = &mut self.sensor else { return };
        let served = self.entries.iter().filter(|(_, entry)| !entry.leaving);
        let routes = served.map(|(function, entry)| (*function, entry.service.route())).collect();
        if let Err(error) = sensor.update(&routes) {
            tracing::error!("the kernel half does not know all functions: {error}; restart the agent");
        }
    }

    /// The function with this name, if it is not being removed.
    pub(super) fn find(&self, name: &str) -> Option<FunctionId> {
        let mut found = self.entries.iter().filter(|(_, entry)| !entry.leaving && entry.service.name == name);
        found.next().map(|(function, _)| *function)
    }

    /// The lowest number that no function has, not even one that is being removed.
    fn free_number(&self) -> FunctionId {
        let taken = self.entries.keys().zip(0..).find(|(number, place)| *number != place);
        taken.map_or_else(
            || FunctionId::try_from(self.entries.len()).unwrap_or(FunctionId::MAX),
            |(_, free)| free,
        )
    }

    /// Forgets a removed function once nothing of it is left. Its listener closes then.
    pub(super) fn forget(&mut self, function: FunctionId) {
        if self.entries.get(&function).is_some_and(|entry| entry.leaving && entry.is_gone())
            && let Some(mut entry) = self.entries.remove(&function)
        {
            entry.answer(u32::MAX, Reason::Closed);
            entry.scrape();
            tracing::info!(
                function = entry.service.name,
                "removed from the configuration, and nothing of it is left"
            );
        }
    }
}
