//! The listener of a function: its accept queue is watched, and an instance may end it.
//!
//! Instances accept from the agent's own socket. Each of them can end it for all, with shutdown(2) or connect(2).
//! Clients are refused then. The function is off until [`crate::setup::reload::Reload`] has bound its address anew.

use std::sync::Arc;
use std::time::Duration;

use super::Node;
use super::handle::NodeMessage;
use super::record::FunctionRecord;
use crate::decision::QueueWatchRate;
use crate::event::{Demand, Event, FunctionId, Policy, Trigger};
use crate::serve::overload::Answers;
use crate::serve::{QueueEvent, QueueWatch, is_listening};

/// The pause between two reports of the accept queue of a function whose instances accept all connections: only an
/// instance that hangs is news.
const SLOW_WATCH: Duration = Duration::from_millis(250);

impl Node {
    /// Watches the accept queue at this rate.
    pub(super) fn watch(&mut self, function: FunctionId, watch: QueueWatchRate) {
        let handle = self.handle.clone();
        let Some(record) = self.record(function) else { return };
        record.watch_rate = watch;
        let pause = match watch {
            _ if record.has_heir => return record.watch.disarm(),
            QueueWatchRate::Off => return record.watch.disarm(),
            QueueWatchRate::Slow => SLOW_WATCH,
            QueueWatchRate::Immediate => Duration::ZERO,
        };
        record.watch.arm(pause, move |event| {
            let handle = handle.clone();
            let message = match event {
                QueueEvent::Came(at_ns) => {
                    NodeMessage::Event(function, Event::Demand(Demand::local(Trigger::Accept, at_ns)))
                }
                QueueEvent::Ended => NodeMessage::ListenerEnded(function),
            };
            async move { handle.send(message).await }
        });
    }

    /// Stops the instances, which cannot accept any more and may have done it, and asks for another listener.
    pub(super) fn listener_ended(&mut self, function: FunctionId) {
        let Some(record) = self.record(function) else { return };
        // The message may be about the listener before this one.
        if record.listener_ended || is_listening(&record.service.resources.listener) {
            return;
        }
        record.listener_ended = true;
        record.watch.disarm();
        let service = &record.service;
        if record.leaving {
            return;
        }
        let instances = record.running.values().map(|running| running.name.as_str());
        let text = format!(
            "the socket that listens on {} was ended by an instance, with shutdown or connect: its instances are \
             replaced, and the address is bound anew",
            service.listen
        );
        let instances = instances.collect::<Vec<_>>().join(" ");
        tracing::error!(function = service.name, instances, "{text}");
        let (name, off) = (service.name.clone(), Policy { max_instances: 0, min_ready: 0, ..service.policy });
        record.last_error = Some(text);
        self.event(function, Event::Changed { policy: off, replace: true });
        if let Some(ended) = self.ended.clone() {
            self.tasks.spawn(async move { drop(ended.send(name).await) });
        }
    }

    /// Watches another listener, if the function has got one.
    pub(super) fn renew_listener(&mut self, function: FunctionId) {
        let Some(record) = self.record(function) else { return };
        if record.renew_listener() {
            let rate = record.watch_rate;
            self.watch(function, rate);
        }
    }
}

impl FunctionRecord {
    /// False when the listener is the same as before, and has not ended in between.
    fn renew_listener(&mut self) -> bool {
        let listener = &self.service.resources.listener;
        if Arc::ptr_eq(listener, self.answers.listener()) && !self.listener_ended {
            return false;
        }
        let (_, answered) = self.answers.progress();
        self.accepted = self.accepted.saturating_add(answered);
        self.watch = QueueWatch::new(Arc::clone(listener));
        self.answers = Answers::new(Arc::clone(listener));
        self.listener_ended = false;
        true
    }
}
