//! `api`: what the agent tells operators and programs over HTTP, and how they ask for it.
//!
//! Each JSON type is defined once, for the server and for the client. The commands that speak to a running agent use
//! this module and nothing else of the agent.

mod client;
mod front;
mod function;
mod reload;
pub mod server;
mod socket_path;

pub use client::{ApiRequestError, Client, REQUEST_TIMEOUT, Reply, exchange};
pub use front::{CertificateStatus, FrontStatus};
#[cfg(test)]
pub(crate) use function::example;
pub use function::{
    Function, FunctionStatus, FunctionSummary, HibernatedMemory, InstanceStatus, Operation, Unavailable,
};
pub use reload::ReloadOutcome;

use serde::{Deserialize, Serialize};

pub use crate::event::{FailureCause, Trigger};
pub use crate::measure::{Stages, StartOutcome, Timeline};

/// How to reach the agent for more than reading.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct AgentStatus {
    /// The unix socket that takes requests which change something.
    admin_socket: String,
}

/// The agent itself.
const AGENT: &str = "/api/v1/agent";

/// Every function.
const FUNCTIONS: &str = "/api/v1/functions";

/// Every front.
const FRONTS: &str = "/api/v1/fronts";

/// The last cold starts.
const STARTS: &str = "/api/v1/starts";

/// Every pool.
const BACKENDS: &str = "/api/v1/backends";

/// Reads the configuration again.
const RELOAD: &str = "/api/v1/reload";
