//! How an instance ended: for the log, the status page and the decision.

use headstart_wire::WireError;

use crate::event::{FailureCause, InstanceEnd};
use crate::start::{Exit, StartError};

/// Why the task stopped to supervise its instance.
pub(super) enum TaskEnd {
    /// The instance exited.
    Exited(Exit),
    /// It could not be released.
    NotStarted(StartError),
    /// Its lease could not be queued.
    NoLease(WireError),
}

/// What the task knows of an instance that has ended.
pub(super) struct EndedInstance<'a> {
    pub(super) name: &'a str,
    /// It had reported that it accepts.
    pub(super) ready: bool,
    /// The agent had asked it to stop.
    pub(super) stop_requested: bool,
    /// How it broke the protocol, if its control socket was closed for that.
    pub(super) violation: Option<&'a str>,
    /// A backend that had no connection for it.
    pub(super) no_backend: Option<&'a str>,
    /// The last line that it has printed, or nothing.
    pub(super) last_words: &'a str,
}

impl EndedInstance<'_> {
    fn words(&self) -> String {
        format!("; its last line: {}", self.last_words)
    }

    /// Logs how the instance ended. Returns that, and what went wrong.
    pub(super) fn log(&self, end: &TaskEnd) -> (InstanceEnd, Option<String>) {
        let (asked, instance) = (self.stop_requested, self.name);
        let early = if self.ready { "" } else { " before it was ready" };
        let (end, reason, error) = match end {
            TaskEnd::Exited(exit) if asked => {
                tracing::info!(instance, asked, "instance ended{early}: {exit}");
                let waited = self.no_backend.is_some() && !self.ready;
                let error = (!self.ready && !self.last_words.is_empty())
                    .then(|| format!("instance stopped before it was ready{}", self.words()));
                return (if waited { InstanceEnd::NoBackend } else { InstanceEnd::Asked }, error);
            }
            TaskEnd::Exited(exit) if exit.code == Some(0) && self.ready => {
                tracing::info!(instance, asked, "instance ended: {exit}");
                return (InstanceEnd::Exited, None);
            }
            TaskEnd::Exited(exit) => {
                let because = self.violation.map(|why| format!("; its control socket was closed: {why}"));
                let lacking =
                    self.no_backend.map(|name| format!("; backend {name} has no connection for it"));
                let words = (!self.last_words.is_empty()).then(|| self.words());
                let more = because.into_iter().chain(lacking).chain(words).collect::<String>();
                let error = format!("instance ended{early}: {exit}{more}");
                // The function did this, not the agent.
                tracing::warn!(instance, reason = "exit", "{error}");
                return match (instance_end(exit), self.no_backend) {
                    (InstanceEnd::OutOfMemory, _) | (_, None) => (instance_end(exit), Some(error)),
                    (_, Some(_)) => (InstanceEnd::NoBackend, Some(error)),
                };
            }
            TaskEnd::NotStarted(error) => {
                (InstanceEnd::NotStarted(error.cause()), error.reason(), error.to_string())
            }
            TaskEnd::NoLease(error) => {
                (InstanceEnd::NotStarted(FailureCause::Node), error.reason(), error.to_string())
            }
        };
        let error = format!("instance not started: {error}");
        tracing::error!(instance, reason, "{error}");
        (end, Some(error))
    }
}

fn instance_end(exit: &Exit) -> InstanceEnd {
    match exit {
        Exit { oom: true, .. } => InstanceEnd::OutOfMemory,
        Exit { code: Some(0), .. } => InstanceEnd::Exited,
        Exit { code: None, signal: None, .. } => InstanceEnd::Unknown,
        _ => InstanceEnd::Crashed,
    }
}
