//! Functions that misbehave, `functions/src/bin/hostile.rs` in one of its modes, and one that behaves, `steady.rs` beside it.

use std::fmt::Write as _;

use anyhow::Result;

use crate::lab::site::{FunctionKind, TestFunction};
use crate::lab::{Rootfs, build_static, free_port};

/// What it answers to `GET /`.
pub const ALIVE: &str = "alive";

/// A function in `mode`, on a free port, with one parked container, that has 100 ms to stop.
/// `keys` are further keys of its section.
pub fn function(mode: &str, runtime: &str, keys: &str) -> Result<TestFunction> {
    let kind = FunctionKind::of(runtime, rootfs()?)?;
    let mut text = format!("env = {{ MODE = {mode:?} }}\n");
    if !keys.contains("stop_grace") {
        text.push_str("stop_grace = \"100ms\"\n");
    }
    writeln!(text, "{keys}")?;
    Ok(TestFunction { port: free_port()?.port(), prepared: 1, kind, keys: text })
}

/// A root filesystem with the fixture in it.
pub fn rootfs() -> Result<Rootfs> {
    Rootfs::with_binary("hostile", &build_static("headstart-lab-functions", "hostile")?)
}

/// A function that behaves, on a free port, with one parked container. `keys` are further keys of its section.
pub fn steady(runtime: &str, keys: &str) -> Result<TestFunction> {
    let binary = build_static("headstart-lab-functions", "steady")?;
    let kind = FunctionKind::of(runtime, Rootfs::with_binary("steady", &binary)?)?;
    Ok(TestFunction { port: free_port()?.port(), prepared: 1, kind, keys: keys.to_owned() })
}
