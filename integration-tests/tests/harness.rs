//! The laboratory itself works, and leaves nothing behind. Each test stands alone, so that they can
//! run side by side and twice in a row.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "harness/common.rs"]
mod common;

#[path = "harness/flood.rs"]
mod flood;
#[path = "harness/manager.rs"]
mod manager;
#[path = "harness/network.rs"]
mod network;
#[path = "harness/servers.rs"]
mod servers;

#[path = "harness/agent.rs"]
mod agent;
#[path = "harness/containers.rs"]
mod containers;

#[path = "harness/cleanliness.rs"]
mod cleanliness;
#[path = "harness/client.rs"]
mod client;
#[path = "harness/install.rs"]
mod install;
