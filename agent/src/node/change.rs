//! Changes of what is served, while the node runs.

use super::Node;
use super::record::FunctionRecord;
use super::service::Service;
use crate::event::{Event, FunctionId};
use crate::syn::Routes;

/// A change of one function.
pub enum FunctionChange {
    /// Serve a new function.
    Add(Box<Service>),
    /// Serve a function differently. It keeps its number, and its listener unless that has ended.
    Alter {
        /// The function from now on; its name says which one it is.
        service: Box<Service>,
        /// Existing instances must be replaced.
        replace: bool,
    },
    /// Stop the instances of a function and forget it.
    Remove {
        /// Its name.
        name: String,
        /// Another function gets its listener when it is forgotten: its clients wait for that, and are not answered.
        has_heir: bool,
    },
    /// These are the fronts from now on.
    Fronts(Routes),
}

impl Node {
    /// Carries out changes. The kernel half is updated first, so that a function that is removed gets no SYNs while
    /// it drains.
    pub(super) fn change(&mut self, changes: Vec<FunctionChange>) {
        let mut events = Vec::new();
        for change in changes {
            match change {
                FunctionChange::Remove { name, has_heir } => {
                    let Some(function) = self.find(&name) else { continue };
                    if let Some(record) = self.record(function) {
                        (record.leaving, record.has_heir) = (true, has_heir);
                        record.service.doorbell.close();
                    }
                    events.push((function, Event::Removed));
                }
                FunctionChange::Alter { service, replace } => {
                    let Some(function) = self.find(&service.name) else { continue };
                    let policy = service.policy;
                    if let Some(record) = self.record(function) {
                        record.alter(*service);
                    }
                    self.renew_listener(function);
                    events.push((function, Event::Changed { policy, replace }));
                }
                FunctionChange::Fronts(routes) => self.fronts = routes,
                FunctionChange::Add(service) => {
                    let function = self.free_number();
                    self.functions.insert(function, FunctionRecord::new(function, *service));
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
        let served = self.functions.iter().filter(|(_, record)| !record.leaving);
        let routes = served.map(|(function, record)| (*function, record.service.route()));
        let routes = routes.chain(self.fronts.clone()).collect();
        if let Err(error) = sensor.update(&routes) {
            tracing::error!("the kernel half does not know all functions: {error}; restart the agent");
        }
    }

    /// The function with this name, if it is not being removed.
    pub(super) fn find(&self, name: &str) -> Option<FunctionId> {
        let mut found =
            self.functions.iter().filter(|(_, record)| !record.leaving && record.service.name == name);
        found.next().map(|(function, _)| *function)
    }

    /// The lowest number that no function has, not even one that is being removed.
    fn free_number(&self) -> FunctionId {
        let taken = self.functions.keys().zip(0..).find(|(number, place)| *number != place);
        taken.map_or_else(
            || FunctionId::try_from(self.functions.len()).unwrap_or(FunctionId::MAX),
            |(_, free)| free,
        )
    }

    /// Forgets a removed function once nothing of it is left and its last clients are answered. Its listener closes then,
    /// or goes to its heir.
    pub(super) fn forget(&mut self, function: FunctionId) {
        let Some(record) = self.functions.get_mut(&function) else { return };
        if !record.leaving || !record.is_gone() || !record.drain(function, &self.handle) {
            return;
        }
        record.scrape();
        tracing::info!(
            function = record.service.name,
            "removed from the configuration, and nothing of it is left"
        );
        self.functions.remove(&function);
        self.forgotten.notify_one();
    }
}
