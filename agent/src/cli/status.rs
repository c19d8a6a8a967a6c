//! `headstart status`: every function of the running agent.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use super::arguments::AgentArgs;
use super::output::{reader_is_gone_within, show};
use crate::api::{Client, Function, FunctionStatus};

/// From one table of `--watch` to the next, in milliseconds.
const REDRAW_MS: u16 = 1000;

/// Cursor to the first place, then erase to the end (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// `headstart status`.
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    agent: AgentArgs,
    /// Print the API's JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Print again every second until Ctrl-C; with --json, one document per line.
    #[arg(long)]
    watch: bool,
}

/// Prints a table of the functions, or the API's JSON; with `watch` every second, until the reader is gone. An
/// agent that stops answering meanwhile is asked again: it may be restarting.
///
/// # Errors
/// When no agent answers, the first time.
pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let StatusArgs { agent, json, watch } = args;
    let (client, json, watch) = (agent.client(), *json, *watch);
    let mut page = page(&client, json)?;
    let clear = if watch && !json && io::stdout().is_terminal() { CLEAR } else { "" };
    while show(&format!("{clear}{page}"))? && watch && !reader_is_gone_within(REDRAW_MS)? {
        page = match self::page(&client, json) {
            Ok(page) => page,
            Err(error) if json => {
                eprintln!("headstart: {error:#}");
                String::new()
            }
            Err(error) => format!("{error:#}\n"),
        };
    }
    Ok(ExitCode::SUCCESS)
}

fn page(client: &Client, json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(client.functions_json()? + "\n");
    }
    table(&client.functions()?)
}

fn table(functions: &[Function]) -> anyhow::Result<String> {
    let mut table = format!(
        "{:<24} {:<22} {:<8} {:<12} {:>8} {:>9} {:>6} {:>6}  NOTE\n",
        "FUNCTION", "LISTEN", "RUNTIME", "STATE", "PREPARED", "INSTANCES", "OPEN", "QUEUED"
    );
    for function in functions {
        let name = function.name();
        match function {
            Function::Served(function) => writeln!(
                table,
                "{name:<24} {:<22} {:<8} {:<12} {:>8} {:>9} {:>6} {:>6}  {}",
                function.listen.to_string(),
                function.runtime,
                function.state.as_str(),
                function.prepared,
                function.instances,
                open(function),
                function.queued,
                function.last_error.as_deref().unwrap_or_default(),
            )?,
            Function::Unavailable(function) => writeln!(
                table,
                "{name:<24} {:<22} {:<8} {:<12} {:>8} {:>9} {:>6} {:>6}  {}",
                "-", "-", "unavailable", "-", "-", "-", "-", function.reason,
            )?,
        }
    }
    Ok(table)
}

/// Connections that are open in all instances that count them.
fn open(function: &FunctionStatus) -> u64 {
    function.running.iter().filter_map(|instance| instance.open).map(u64::from).sum()
}
