//! Functions that misbehave: `src/bin/hostile.rs` in one of its modes.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fmt::Write as _};

use anyhow::{Result, ensure};

use crate::lab::{self, Rootfs, free_port};
use crate::site::{Function, Kind};

const BUILD_LIMIT: Duration = Duration::from_secs(1200);
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What it answers to `GET /`.
pub const ALIVE: &str = "alive";

/// A function in `mode`, on a free port, with one parked container, that has 100 ms to stop.
/// `keys` are further keys of its section.
pub fn function(mode: &str, runtime: &str, keys: &str) -> Result<Function> {
    let kind = Kind::of(runtime, rootfs()?)?;
    let mut text = format!("env = {{ MODE = {mode:?} }}\n");
    if !keys.contains("stop_grace") {
        text.push_str("stop_grace = \"100ms\"\n");
    }
    writeln!(text, "{keys}")?;
    Ok(Function { port: free_port()?.port(), prepared: 1, kind, keys: text })
}

/// A root filesystem with the fixture in it.
pub fn rootfs() -> Result<Rootfs> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    match built {
        Ok(binary) => Rootfs::with_binary("hostile", binary),
        Err(error) => anyhow::bail!("the fixture does not build: {error}"),
    }
}

/// Builds it statically, beside the examples.
fn build() -> Result<PathBuf> {
    let target = lab::target_dir().join("static");
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--target", TARGET, "-p", "headstart-integration-tests"]);
    cargo.args(["--bin", "hostile", "--target-dir"]).arg(&target);
    lab::run_within(BUILD_LIMIT, cargo.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let binary = target.join(TARGET).join("release/hostile");
    ensure!(binary.exists(), "cargo made no {}", binary.display());
    Ok(binary)
}

fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(lab::workspace()).arg("--quiet");
    cargo
}
