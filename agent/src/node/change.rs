//! What is served changes while the node runs.

use super::Node;
use super::entry::{FunctionRecord, Service};
use crate::decision::Reason;
use crate::event::{Event, FunctionId};

/// One function is served from now on, in another way, or not any more.
pub enum FunctionChange {
    /// A new one.
    Add(Box<Service>),
    /// One that is served, by its name. Its place stays, and its listener.
    Alter {
        /// What holds from now on.
        service: Box<Service>,
        /// Instances of before are of no use any more.
        replace: bool,
    },
    /// Its instances are stopped, those who wait are answered, and then it is forgotten.
    Remove(String),
}

impl Node {
    /// The kernel is told first: what it does not know any more cannot be asked for while it goes.
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

    /// The function with this name that is to stay.
    pub(super) fn find(&self, name: &str) -> Option<FunctionId> {
        let mut found = self.entries.iter().filter(|(_, entry)| !entry.leaving && entry.service.name == name);
        found.next().map(|(function, _)| *function)
    }

    /// The lowest number that nobody has, not even one that leaves.
    fn free_number(&self) -> FunctionId {
        let taken = self.entries.keys().zip(0..).find(|(number, place)| *number != place);
        taken.map_or_else(
            || FunctionId::try_from(self.entries.len()).unwrap_or(FunctionId::MAX),
            |(_, free)| free,
        )
    }

    /// Forgets a function that leaves when nothing of it is left. Its listener closes with it.
    pub(super) fn forget(&mut self, function: FunctionId) {
        if self.entries.get(&function).is_some_and(|entry| entry.leaving && entry.is_gone())
            && let Some(mut entry) = self.entries.remove(&function)
        {
            entry.answer(u32::MAX, Reason::Closed);
            entry.scrape();
            tracing::info!(function = entry.service.name, "not configured any more, and gone");
        }
    }
}
