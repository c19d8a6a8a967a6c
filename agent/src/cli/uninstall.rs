//! `headstart uninstall`: removes what an agent left.

use std::process::ExitCode;

use anyhow::Context;

use super::arguments::ConfigArgs;
use crate::setup::state_dir;
use crate::start::{Drivers, cgroup_of_agent, tidy};
use crate::{guard, syn};

/// Removes pins, containers and the state directory.
///
/// # Errors
/// When an agent runs, or something cannot be removed.
pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let config = match args.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let state_dir = &config.agent.state_dir;
    let _lock = state_dir::lock(state_dir)?;
    if syn::is_pinned(&config.syn.pin_dir) {
        syn::Pins::open(&config.syn.pin_dir, false)?.clear()?;
        println!("removed what was pinned in {}", config.syn.pin_dir.display());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let grace = config.functions.iter().map(|function| function.stop_grace).max().unwrap_or_default();
    let left = runtime.block_on(async { Drivers::new(&config.agent).survivors().await.end(grace).await });
    anyhow::ensure!(
        left.is_empty(),
        "something of earlier agents may be left ({}): repair that, and run this again",
        left.join("; ")
    );
    tidy(&config.agent);
    guard::tidy(&cgroup_of_agent(&config.agent));
    std::fs::remove_dir_all(state_dir).with_context(|| format!("cannot remove {}", state_dir.display()))?;
    println!("removed the containers of earlier agents and {}", state_dir.display());
    Ok(ExitCode::SUCCESS)
}
