//! `headstart knock`: asks a node for a function before a client connects.

use std::process::ExitCode;

use crate::client::{self, KnockArgs};

/// Ends with the exit code of the command, or the one of the error, which is printed.
pub(super) fn run(args: &KnockArgs) -> ExitCode {
    client::finish(client::knock(args))
}
