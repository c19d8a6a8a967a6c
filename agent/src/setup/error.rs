//! Why something is not served, and why a new configuration is refused.

use std::io;

use headstart_config::{Errors, Problem};

use super::DescriptorNeeds;
use super::front::FrontError;
use crate::serve::BindingError;
use crate::start::NoDriver;
use crate::syn::ReloadError;

/// Why a function is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// This host lacks what the configuration names.
    #[error("{0}")]
    Host(Problem),
    /// Its connections cannot come in.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// A backend of it has no pool: why.
    #[error("{0}")]
    Backend(String),
    /// A backend of it is not configured.
    #[error("there is no backend {0:?}")]
    NoBackend(String),
    /// Its image is not in the store, or cannot be used: why.
    #[error("{0}")]
    Image(String),
    /// Nothing makes containers of its kind.
    #[error(transparent)]
    Runtime(#[from] NoDriver),
}

/// Why a new configuration is refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ReloadRefusal {
    /// The file cannot be read, or has mistakes.
    #[error("{0}")]
    Config(Errors),
    /// Reading it was cut off.
    #[error(transparent)]
    Unread(#[from] tokio::task::JoinError),
    /// A section has changed that is read only when the agent starts.
    #[error(
        "[{0}] has changed, and is read only at the start: restart the agent; instances that run are taken over"
    )]
    Section(&'static str),
    /// The agent cannot get back the capabilities that it gave up when it had started.
    #[error(
        "it needs capabilities that the agent gave up when it had started ({}): restart the agent; instances that run \
         are taken over",
        .0.join(", ")
    )]
    Privileges(Vec<&'static str>),
    /// The kernel does not say which capabilities the agent has.
    #[error(transparent)]
    Capabilities(#[from] io::Error),
    /// The limit of descriptors is too low.
    #[error(transparent)]
    Descriptors(#[from] DescriptorNeeds),
    /// A function cannot be served.
    #[error("function {name}: {source}")]
    Function {
        /// Its name.
        name: String,
        /// Why.
        source: ServiceError,
    },
    /// A backend has no pool.
    #[error("backend {name}: {reason}")]
    Backend {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A front cannot be served.
    #[error("front {name}: {source}")]
    Front {
        /// Its name.
        name: String,
        /// Why.
        source: FrontError,
    },
    /// The kernel half has no more numbers for functions.
    #[error("too many functions that were removed still drain: try again when they are gone")]
    TooMany,
    /// The keys of clients cannot be read.
    #[error(transparent)]
    Keys(#[from] ReloadError),
}
