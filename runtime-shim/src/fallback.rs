//! Counts the backends that the function has connected to directly, by reason.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::report;

/// Why a connection does not come from the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// No agent started this process.
    NoAgent,
    /// The agent closed the control socket, or sent something else than the protocol.
    AgentGone,
    /// The agent does not know this backend for this function.
    NotConfigured,
    /// The agent could not make a connection; its error.
    Failed(String),
    /// The agent granted none within this time.
    Deadline(Duration),
}

impl Reason {
    /// A short constant name, for logs and metric labels.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoAgent => "no_agent",
            Self::AgentGone => "agent_gone",
            Self::NotConfigured => "not_configured",
            Self::Failed(_) => "failed",
            Self::Deadline(_) => "deadline",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAgent => write!(f, "no agent started this process"),
            Self::AgentGone => write!(f, "the agent is gone"),
            Self::NotConfigured => write!(f, "the agent's configuration of this function does not have it"),
            Self::Failed(reason) => write!(f, "the agent failed ({reason})"),
            Self::Deadline(waited) => write!(f, "the agent granted none within {waited:?}"),
        }
    }
}

/// A backend that the function has connected to directly instead of through the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fallback {
    /// The backend's name.
    pub backend: String,
    /// Why the agent was not used: the latest reason with this [`Reason::label`].
    pub reason: Reason,
    /// The number of direct connections.
    pub count: u64,
}

/// All fallbacks of a process: at most one entry per backend and label.
#[derive(Debug, Default)]
pub(crate) struct Fallbacks(Mutex<Vec<Fallback>>);

impl Fallbacks {
    /// Counts a fallback; reports the first of each kind on standard error.
    pub(crate) fn note(&self, backend: &str, reason: &Reason) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |one: &&mut Fallback| one.backend == backend && one.reason.label() == reason.label();
        if let Some(known) = list.iter_mut().find(same) {
            known.count += 1;
            known.reason = reason.clone();
            return;
        }
        list.push(Fallback { backend: backend.to_owned(), reason: reason.clone(), count: 1 });
        report::line(&format!(
            "connecting to backend {backend:?} directly, reason={}: {reason}",
            reason.label()
        ));
    }

    pub(crate) fn list(&self) -> Vec<Fallback> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
