//! The connections of instances that do not count them.

use std::sync::Arc;

use headstart_wire::Activity;

use super::record::FunctionRecord;
use crate::serve::{ConnectionCounter, CountedInstance, CountedListener};
use crate::start::Process;

impl FunctionRecord {
    /// Begins to count the connections of an instance that does not count them itself.
    pub(super) fn count(
        &mut self,
        process: Arc<dyn Process>,
        activity: &Arc<Activity>,
    ) -> Option<CountedInstance> {
        if self.service.contract.speaks() {
            return None;
        }
        if self.counter.is_none() {
            let listener = CountedListener { address: self.service.listen, shared: self.service.steered };
            let started = ConnectionCounter::start(listener).inspect_err(|error| {
                let function = &self.service.name;
                tracing::error!(function, "its connections cannot be counted, so it is never idle: {error}");
            });
            self.counter = started.ok();
        }
        self.counter.as_ref().map(|counter| counter.watch(process, Arc::clone(activity)))
    }

    /// Connections have come.
    pub(super) fn came(&self) {
        if let Some(counter) = &self.counter {
            counter.came();
        }
    }
}
