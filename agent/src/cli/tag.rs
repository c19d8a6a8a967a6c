//! `headstart tag`: unmodified programs name a function in their SYNs.

use std::process::ExitCode;

use crate::client::{self, TagArgs};

/// Ends with the exit code of the command, or the one of the error, which is printed.
pub(super) fn run(args: &TagArgs) -> ExitCode {
    client::finish(client::tag(args))
}
