//! Freezing and thawing an instance.

use std::time::Duration;

use tokio::time::Instant;

use super::{InstanceReport, InstanceTask, MemoryUse, Reporter};
use crate::event::Demand;
use crate::inject::Conversation;
use crate::start::{BoxFuture, StartError};

/// How long an instance may take to report whether it can be frozen. It is longer than the shim waits for its hooks.
pub(super) const QUIET_WAIT: Duration = Duration::from_secs(5);

/// How far a freeze or a thaw is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FreezeState {
    /// It runs.
    Running,
    /// The instance was asked whether it can be frozen, and has to answer until then.
    Requested { answer_by: Instant },
    /// It can be, and its processes are being stopped.
    Freezing,
    /// Its processes are stopped.
    Frozen,
    /// The same, and its memory is being written to swap.
    Hibernating,
    /// The same, and its memory is in swap.
    Hibernated,
    /// It runs again and has not reported that it accepts.
    Thawing(Demand, ThawedFrom),
}

/// How deep an instance slept that is thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ThawedFrom {
    Frozen,
    Hibernating,
    Hibernated,
}

impl ThawedFrom {
    pub(super) fn of(state: FreezeState) -> Self {
        match state {
            FreezeState::Hibernated => Self::Hibernated,
            FreezeState::Hibernating => Self::Hibernating,
            _ => Self::Frozen,
        }
    }

    /// The metric label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Hibernating => "hibernating",
            Self::Hibernated => "hibernated",
        }
    }
}

/// An attempt to freeze the instance, while one is under way.
pub(super) type FreezeAttempt<'a> = Option<BoxFuture<'a, Result<(), StartError>>>;

impl FreezeState {
    /// Until when the instance has to answer a request to freeze, if one is open.
    pub(super) fn answer_by(self) -> Option<Instant> {
        match self {
            Self::Requested { answer_by } => Some(answer_by),
            Self::Running
            | Self::Freezing
            | Self::Frozen
            | Self::Hibernating
            | Self::Hibernated
            | Self::Thawing(..) => None,
        }
    }
}

impl InstanceTask {
    /// Asks the instance whether it can be frozen.
    pub(super) async fn request_freeze(&mut self, conversation: &mut Conversation, reporter: &impl Reporter) {
        if let Err(error) = conversation.freeze(self.return_backends) {
            let error = Some(format!("not frozen: the request cannot be sent: {error}"));
            reporter.report(InstanceReport::NotFrozen { busy: false, error }).await;
        } else {
            self.freeze_state = FreezeState::Requested { answer_by: Instant::now() + QUIET_WAIT };
        }
    }

    /// The instance has not answered in time.
    pub(super) async fn freeze_unanswered(
        &mut self,
        conversation: &mut Conversation,
        reporter: &impl Reporter,
    ) {
        // The instance goes on. If it answers later, the answer changes nothing.
        self.freeze_state = FreezeState::Running;
        let _ = conversation.thaw();
        let error = format!("not frozen: no answer within {} s", QUIET_WAIT.as_secs());
        tracing::warn!(instance = self.name, "{error}");
        reporter.report(InstanceReport::NotFrozen { busy: false, error: Some(error) }).await;
    }

    /// Takes the outcome of an attempt to freeze the instance.
    pub(super) fn freeze_ended(
        &mut self,
        frozen: Result<(), StartError>,
        conversation: &mut Conversation,
    ) -> InstanceReport {
        match frozen {
            Ok(()) => {
                self.freeze_state = FreezeState::Frozen;
                InstanceReport::Frozen
            }
            Err(error) => {
                self.freeze_state = FreezeState::Running;
                // Its processes run again, and the shim waits for this message.
                let _ = conversation.thaw();
                tracing::error!(instance = self.name, reason = error.reason(), "not frozen: {error}");
                InstanceReport::NotFrozen { busy: false, error: Some(format!("not frozen: {error}")) }
            }
        }
    }

    /// Takes the outcome of an attempt to write its memory to swap.
    pub(super) fn page_out_ended(&mut self, paged: Result<MemoryUse, String>) -> InstanceReport {
        match paged {
            Ok(memory) => {
                self.freeze_state = FreezeState::Hibernated;
                InstanceReport::Hibernated(memory)
            }
            Err(error) => {
                self.freeze_state = FreezeState::Frozen;
                tracing::warn!(instance = self.name, reason = "hibernate", "not hibernated: {error}");
                InstanceReport::NotHibernated(format!("not hibernated, it stays frozen: {error}"))
            }
        }
    }

    /// Makes the instance run and accept, even if it does already: an earlier agent may have stopped in the middle of a
    /// freeze or a thaw.
    pub(super) async fn resume(&mut self, conversation: &mut Conversation) {
        // The message is queued first, so that the instance finds it when it runs again.
        let told = conversation.thaw().map_err(|error| error.to_string());
        let thawed = self.process.thaw().await.map_err(|error| error.to_string());
        if let Err(error) = told.and(thawed) {
            tracing::error!(instance = self.name, "not thawed: {error}");
            self.terminate().await;
        }
    }
}

/// Waits for the end of an attempt; for ever when none is under way.
pub(super) async fn attempt_end<T>(under_way: &mut Option<BoxFuture<'_, T>>) -> T {
    match under_way {
        Some(attempt) => {
            let outcome = attempt.await;
            *under_way = None;
            outcome
        }
        None => std::future::pending().await,
    }
}
