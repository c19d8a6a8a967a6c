//! Preparing containers, and writing memory to swap, is work for later, and yields to what clients wait for.
//!
//! A container is created at a lower priority than the agent's own (setpriority(2), inherited by children) and
//! gets the agent's back when it is released. Under a flood, starts for unannounced clients and the containers that are
//! made after them would otherwise take the processor from a client that has proved who it is.

use std::io;

use rustix::process::{Pid, getpriority_process, setpriority_pgrp, setpriority_process};
use rustix::thread::{CapabilitySet, capabilities};

/// Added to the agent's own nice value: a tenth of the weight of a process at normal priority (sched(7)).
const BACKGROUND: i32 = 10;

/// The highest nice value there is.
const NICE_MAX: i32 = 19;

/// Runs what is not urgent, on this thread. A nice value belongs to a thread, and is inherited: a child that is spawned
/// has it too, and keeps it. To set it afterwards would be a race.
pub(crate) fn in_background<T>(work: impl FnOnce() -> T) -> T {
    let own = own();
    // Without the right to come back, nothing is lowered.
    let may_return = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_NICE));
    if may_return {
        log_error(setpriority_process(None, own.saturating_add(BACKGROUND).min(NICE_MAX)));
    }
    let done = work();
    if may_return {
        log_error(setpriority_process(None, own));
    }
    done
}

/// A container that is about to be released gets the agent's priority: all threads of its init, which leads a
/// process group of its own. Takes `CAP_SYS_NICE`.
pub(super) fn to_foreground(init: i32) {
    if let Some(group) = Pid::from_raw(init) {
        log_error(setpriority_pgrp(Some(group), own()));
    }
}

fn own() -> i32 {
    getpriority_process(None).unwrap_or_default()
}

/// A process that is gone needs no priority, and one that keeps the wrong one is only slower.
fn log_error(set: rustix::io::Result<()>) {
    if let Err(error) = set.map_err(io::Error::from) {
        tracing::debug!(%error, "a priority stays as it is");
    }
}
