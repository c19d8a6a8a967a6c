//! `api`: what the agent tells operators and programs over HTTP, and how they ask for it.
//!
//! Each JSON type is defined once, for the server and for the client. The commands that speak to a running agent use
//! this module and nothing else of the agent.

mod client;
mod function;
mod reload;
pub mod server;

pub use client::{ApiRequestError, Client, REQUEST_TIMEOUT, Reply, exchange};
#[cfg(test)]
pub(crate) use function::example;
pub use function::{Function, FunctionStatus, FunctionSummary, InstanceStatus, Operation, Unavailable};
pub use reload::ReloadOutcome;

pub use crate::event::Trigger;
pub use crate::measure::{Stages, StartOutcome, Timeline};

/// Every function.
const FUNCTIONS: &str = "/api/v1/functions";

/// The last cold starts.
const STARTS: &str = "/api/v1/starts";

/// Every pool.
const BACKENDS: &str = "/api/v1/backends";

/// Reads the configuration again.
const RELOAD: &str = "/api/v1/reload";
