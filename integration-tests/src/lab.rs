//! What a test stands on: a place to work, links with a round-trip time, servers, the agent, clients, functions.

pub mod leaks;
pub mod privilege;
pub mod usage;

mod claim;
mod command;
mod process;
mod scratch;
mod sweep;

mod netns;

pub mod flood;

mod delay;
mod nfqueue;

mod postgres;
mod redis;
mod registry;
mod rootfs;

mod bridge;
mod container;
mod docker;

mod agent;
mod manager;
mod mariadb;
mod metrics;
mod pins;
mod swap;

pub mod asker;
pub mod cli;
pub mod client;

pub mod fixture;
pub mod lambda;
pub mod node;
pub mod siege;
pub mod site;
pub mod stall;

pub use agent::{AgentSetup, RunningAgent, StoppedAgent, binary, now_ns};
pub use bridge::Bridge;
pub use claim::free_port;
pub use command::{run, run_within};
pub use container::LabContainer;
pub use delay::{Delay, Distance};
pub use docker::DockerDaemon;
pub use manager::Manager;
pub use mariadb::MariadbServer;
pub use metrics::{MetricSample, Metrics};
pub use netns::{Link, Namespace};
pub use postgres::{PostgresServer, PostgresSetup};
pub use process::ChildProcess;
pub use redis::RedisServer;
pub use registry::RegistryServer;
pub use rootfs::{DockerImage, Rootfs, build_static};
pub use scratch::{LabLease, Scratch, prefix, unique};
pub use swap::Swap;

pub(crate) use command::settle;
pub(crate) use sweep::{cgroups, containers_below, interfaces, mounts, namespaces};

use std::{
    env,
    path::{Path, PathBuf},
};

/// The cargo profile of the programs that the lab builds: `release` for what measures, which is a release build itself;
/// `lab` for tests and the demo, which compiles in a fraction of the time.
pub fn profile() -> &'static str {
    let program = env::current_exe().unwrap_or_default();
    let directory = program.parent().and_then(Path::file_name);
    if directory.is_some_and(|name| name == "release") { "release" } else { "lab" }
}

/// The root of the repository.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo builds, and where the laboratory caches: `CARGO_TARGET_DIR` or `target`.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), |path| workspace().join(path))
}
