//! The sensors end to end: who sees a request first, for whom it is, and who may wake a function early. Each
//! test has a node in a network of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod common;

mod interfaces;
mod lookup;

mod auth;
mod knock;
mod shared;
mod sources;

mod pins;
