//! The agent's command line, for what [`crate::lab::Agent`] does not do: commands that end, and
//! agents that are not to become ready.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::lab::{self, Process, Scratch};

const BUILD_LIMIT: Duration = Duration::from_secs(1800);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// The pause between two looks.
const LOOK_AGAIN_MS: u8 = 5;

/// What a command said, and how it ended.
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
    let mut process = Process::spawn(Command::new(binary()?).args(arguments))?;
    let code = process.wait(COMMAND_LIMIT)?.code();
    Ok(Outcome { code, stdout: process.stdout(), all: process.log() })
}

/// An agent with the configuration `text`, which is kept in `files`. It may never become ready.
pub fn run(files: &Scratch, text: &str) -> Result<Process> {
    let config = files.path().join("headstart.toml");
    fs::write(&config, text)?;
    Process::spawn(Command::new(binary()?).args(["run", "--config"]).arg(config))
}

/// Looks again and again until there is something to see; `what` names it in the error.
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(Some(seen)) => return Ok(seen),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context(format!("{what}: {limit:?}"));
            }
            Ok(None) if Instant::now() >= deadline => bail!("{what}: not within {limit:?}"),
            _ => nix::poll::poll(&mut [], LOOK_AGAIN_MS)?,
        };
    }
}

/// `HEADSTART_BIN`, or the release build of this workspace, made at most once per process.
pub fn binary() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    if let Some(path) = env::var_os("HEADSTART_BIN") {
        return Ok(path.into());
    }
    let build = || {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(lab::workspace()).args(["--quiet", "build", "--release", "-p", "headstart-agent"]);
        lab::run_within(BUILD_LIMIT, &mut cargo).map(drop)
    };
    match BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}"))) {
        Ok(()) => Ok(lab::target_dir().join("release/headstart")),
        Err(error) => bail!("the agent does not build: {error}"),
    }
}
