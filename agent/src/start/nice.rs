//! Preparing containers is work for later, and yields to those that are let go now.
//!
//! A container is created at a lower priority than the agent's own (setpriority(2), inherited by children) and
//! gets the agent's back when it is let go. Under a flood, starts for strangers and the containers that are
//! made after them would otherwise take the processor from a client that has proved who it is.

use std::io;

use rustix::process::{Pid, getpriority_process, setpriority_pgrp, setpriority_process};

/// Added to the agent's own nice value: a tenth of the weight of a process at normal priority (sched(7)).
const BACKGROUND: i32 = 10;

/// The highest nice value there is.
const NICE_MAX: i32 = 19;

/// What a process that was just spawned does, and all that it starts, is not urgent.
pub(super) fn to_background(process: Option<u32>) {
    // None would be the agent itself.
    if let Some(pid) = process.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
        told(setpriority_process(Some(pid), own().saturating_add(BACKGROUND).min(NICE_MAX)));
    }
}

/// The container that is about to be let go is as urgent as the agent: all threads of its init, which leads a
/// process group of its own. Takes `CAP_SYS_NICE`.
pub(super) fn to_foreground(init: i32) {
    if let Some(group) = Pid::from_raw(init) {
        told(setpriority_pgrp(Some(group), own()));
    }
}

fn own() -> i32 {
    getpriority_process(None).unwrap_or_default()
}

/// A process that is gone needs no priority, and one that keeps the wrong one is only slower.
fn told(done: rustix::io::Result<()>) {
    if let Err(error) = done.map_err(io::Error::from) {
        tracing::debug!(%error, "a priority stays as it is");
    }
}
