//! The sensors end to end: who sees a request first, for whom it is, and who may wake a function early. Each
//! test has a node in a network of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "sensor/common.rs"]
mod common;

#[path = "sensor/interfaces.rs"]
mod interfaces;
#[path = "sensor/lookup.rs"]
mod lookup;

#[path = "sensor/auth.rs"]
mod auth;
#[path = "sensor/knock.rs"]
mod knock;
#[path = "sensor/shared.rs"]
mod shared;
#[path = "sensor/sources.rs"]
mod sources;

#[path = "sensor/pins.rs"]
mod pins;
