//! The laboratory itself works, and leaves nothing behind. Each test stands alone, so that they can
//! run side by side and twice in a row.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

mod flood;
mod manager;
mod network;
mod servers;

mod agent;
mod containers;

mod cleanliness;
mod client;
mod install;
