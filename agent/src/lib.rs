//! The Headstart node agent, in the order of a request's path:
//! `syn -> event -> decision -> start -> inject -> serve -> measure`.
//!
//! [`node`] is the one task that owns the state and calls the rest; [`setup`]
//! turns a configuration into what it needs; [`admin`] shows it to operators.

pub mod syn;

pub mod event;

pub mod decision;

pub mod start;

pub mod inject;

pub mod serve;

pub mod measure;

pub mod admin;
pub mod adopt;
pub mod bench;
pub mod client;
pub mod data;
pub mod doctor;
pub mod explain;
mod fd;
mod http;
mod instance;
pub mod manager;
pub mod node;
pub mod operate;
mod overload;
pub mod privilege;
pub mod reload;
pub mod setup;
pub mod status;
