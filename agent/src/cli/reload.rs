//! `headstart reload`: the running agent reads its configuration again.

use std::process::ExitCode;

use super::arguments::AgentArgs;
use super::output;

/// `headstart reload`.
#[derive(Debug, clap::Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    agent: AgentArgs,
}

/// Prints what has changed.
///
/// # Errors
/// When no agent answers, or it does not accept the configuration: with its reason.
pub(super) fn run(args: &ReloadArgs) -> anyhow::Result<ExitCode> {
    let outcome = args.agent.client().reload()?;
    output::show(&format!("{outcome}\n"))?;
    Ok(ExitCode::SUCCESS)
}
