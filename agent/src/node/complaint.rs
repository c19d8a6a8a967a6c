//! What the node says of an instance that does not become ready, or does not accept.

use super::Node;
use super::record::FunctionRecord;
use crate::decision::DecisionReason;
use crate::event::{FunctionId, InstanceId};

/// What is said of an instance that has not said hello.
const NO_HELLO: &str = "; it has not said hello: if it is a server that knows nothing of Headstart, set contract = \
                        \"port\" and the port that it listens on, or \"listen-fds\"; for a handler of AWS Lambda \"lambda\"; else \
                        link a shim";

impl Node {
    /// Logs why an instance is stopped that did not become ready or does not accept.
    pub(super) fn failed(&mut self, function: FunctionId, instance: InstanceId, reason: DecisionReason) {
        let Some(record) = self.record(function) else { return };
        let service = &record.service;
        let what = if reason == DecisionReason::Hung {
            format!("took no connection while one waited for {:?}", service.policy.queue_timeout)
        } else {
            format!("was not ready within init_timeout, {:?}", service.policy.init_timeout)
        };
        let running = record.running.get(&instance);
        let name = running.map_or("", |running| &running.name);
        let hint = if running.is_some_and(|running| running.silent) { NO_HELLO } else { "" };
        let text = format!("instance {name} {what}: stopped{hint}");
        tracing::warn!(function = service.name, reason = reason.as_str(), "{text}");
        record.last_error = Some(text);
        record.hung = reason == DecisionReason::Hung;
    }
}

impl FunctionRecord {
    /// An instance has not said hello.
    pub(super) fn silent(&mut self, instance: InstanceId) {
        let Some(running) = self.running.get_mut(&instance) else { return };
        running.silent = true;
        let text = format!("instance {} runs and is not ready{}", running.name, NO_HELLO);
        tracing::warn!(function = self.service.name, "{text}");
        self.last_error = Some(text);
    }
}
