//! Runs a command to its end, bounded in time, and says all about it when it fails.

use super::process::ChildProcess;
use anyhow::{Result, ensure};
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// The pause between two looks.
const LOOK_AGAIN_MS: u8 = 5;

/// Runs `command` and returns what it printed; fails when it does, or after a minute.
pub fn run(command: &mut Command) -> Result<String> {
    run_within(Duration::from_secs(60), command)
}

/// As [`run`], with a limit of its own.
pub fn run_within(limit: Duration, command: &mut Command) -> Result<String> {
    let text = format!("{command:?}");
    let mut process = ChildProcess::spawn(command)?;
    let status = process.wait(limit)?;
    ensure!(status.success(), "{text}: {status}\n{}", process.log());
    Ok(process.stdout())
}

/// `ip` with its arguments given as one string.
pub(super) fn ip(arguments: &str) -> Result<String> {
    run(Command::new("ip").args(arguments.split_whitespace()))
}

/// Looks again and again until `done` accepts what `look` returns, at most until `limit`; returns
/// what was seen last. For kernel objects that go a moment after their last user, without any notice.
pub(crate) fn settle<T>(
    limit: Duration,
    mut look: impl FnMut() -> Result<T>,
    done: impl Fn(&T) -> bool,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let seen = look()?;
        if done(&seen) || Instant::now() >= deadline {
            return Ok(seen);
        }
        nix::poll::poll(&mut [], LOOK_AGAIN_MS)?;
    }
}
