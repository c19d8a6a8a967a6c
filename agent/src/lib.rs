//! The Headstart node agent, in the order of a request's path:
//! `syn -> event -> decision -> start -> inject -> serve -> measure`.
//!
//! [`agent`] reads as the life of the agent. [`node`] is the one task that owns the state and calls the rest; [`setup`]
//! turns a configuration into what it needs.
//! [`api`] is what operators and programs see of it, and [`cli`] the command line.

pub mod syn;

pub mod event;

pub mod decision;

pub mod start;

pub mod inject;

pub mod serve;

pub mod measure;

pub mod agent;
pub mod api;
pub mod audience;
mod bucket;
mod cgroup2;
pub mod cli;
pub mod client;
pub mod data;
mod fd;
mod guard;
mod http;
mod instance;
mod log;
pub mod manager;
pub mod node;
pub mod privilege;
pub mod setup;
