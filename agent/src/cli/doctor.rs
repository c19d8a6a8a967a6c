//! `headstart doctor`: what this host can do.

use std::path::PathBuf;
use std::process::ExitCode;

use super::arguments;
use crate::doctor;

/// `headstart doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// A configuration: its runtimes are checked instead of the defaults, and its key file too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Prints what was found.
pub(super) fn run(args: &DoctorArgs) -> ExitCode {
    match args.config.as_deref().map(arguments::load).transpose() {
        Ok(config) => {
            doctor::print(config.as_ref());
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}
