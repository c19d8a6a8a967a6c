//! The agent's command line, for what [`crate::lab::RunningAgent`] does not do: commands that end, and
//! agents that must not become ready.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lab::{ChildProcess, Scratch, binary, unique};

const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// The pause between two looks.
const LOOK_AGAIN_MS: u8 = 5;

/// The output of a command, and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Both streams.
    pub all: String,
}

/// Runs `headstart` with these arguments to its end.
pub fn headstart(arguments: &[&str]) -> Result<Outcome> {
    let mut process = ChildProcess::spawn(Command::new(binary()?).args(arguments))?;
    let code = process.wait(COMMAND_LIMIT)?.code();
    Ok(Outcome { code, stdout: process.stdout(), all: process.log() })
}

/// An agent with the configuration `text`, which is kept in `files`. It may never become ready. Without a
/// section `[syn]` it gets one that keeps it apart from every other agent.
pub fn run(files: &Scratch, text: &str) -> Result<ChildProcess> {
    let config = files.path().join("headstart.toml");
    let mut text = text.to_owned();
    if !text.contains("[syn]") {
        writeln!(text, "\n[syn]\npin_dir = \"/sys/fs/bpf/{}\"\nlookup = false", unique("pins"))?;
    }
    fs::write(&config, text)?;
    ChildProcess::spawn(Command::new(binary()?).args(["run", "--unpin", "--config"]).arg(config))
}

/// Calls `look` again and again until it returns a value; `what` names that value in the error.
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(Some(seen)) => return Ok(seen),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context(format!("{what}: {limit:?}"));
            }
            Ok(None) if Instant::now() >= deadline => bail!("{what}: not within {limit:?}"),
            // A signal may cut the pause short.
            _ => nix::poll::poll(&mut [], LOOK_AGAIN_MS).unwrap_or_default(),
        };
    }
}
