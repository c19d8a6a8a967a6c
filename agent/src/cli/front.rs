//! `headstart front`: every front of the running agent.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use super::arguments::AgentArgs;
use super::output::show;
use crate::api::FrontStatus;

/// `headstart front`.
#[derive(Debug, clap::Args)]
pub(super) struct FrontArgs {
    #[command(flatten)]
    agent: AgentArgs,
    /// Print the API's JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Prints the fronts, or the API's JSON.
///
/// # Errors
/// When no agent answers.
pub(super) fn run(args: &FrontArgs) -> anyhow::Result<ExitCode> {
    let client = args.agent.client();
    let page = if args.json { client.fronts_json()? + "\n" } else { table(&client.fronts()?)? };
    show(&page)?;
    Ok(ExitCode::SUCCESS)
}

fn table(fronts: &[FrontStatus]) -> anyhow::Result<String> {
    if fronts.is_empty() {
        return Ok("the agent has no front: add a [[front]] to its configuration\n".to_owned());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let mut table = String::new();
    for front in fronts {
        let FrontStatus { name, listen, carry, connections, connections_max, .. } = front;
        let speaks = if front.certificates.is_empty() { "plain HTTP" } else { "TLS" };
        writeln!(
            table,
            "{name}  {listen}  {speaks}, {carry}  {connections} of {connections_max} connections"
        )?;
        if let Some(error) = &front.error {
            writeln!(table, "  not served: {error}")?;
        }
        writeln!(table, "  functions: {}", list(&front.functions))?;
        for certificate in &front.certificates {
            let days = certificate.expires_unix.saturating_sub(now) / (24 * 60 * 60);
            writeln!(table, "  {}: {}; {days} days left", certificate.file, list(&certificate.names))?;
            if let Some(complaint) = &certificate.complaint {
                writeln!(table, "    {complaint}")?;
            }
        }
    }
    Ok(table)
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
