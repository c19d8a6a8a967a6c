//! The threads that carry bytes: relays, sockets of backends, logins.
//!
//! Starts are decided on one thread, and nothing that others control may hold that up. What a function reads and writes
//! through the agent is bulk data: it has threads of its own, and a runtime with a reactor of its own.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Handle, Runtime};

/// Added to the agent's own nice value (sched(7)): when processors are short, a start goes before bytes.
const NICE: i32 = 5;

/// The highest nice value there is.
const NICE_MAX: i32 = 19;

/// Look-ups of names and hashes of passwords that run at a time; further ones wait for their turn.
const BLOCKING_MAX: usize = 64;

/// A runtime for bulk data. What runs there ends with it.
pub struct DataThreads {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl DataThreads {
    /// Starts this many threads. They have the privileges that the caller has at this moment.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub fn start(threads: usize) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .max_blocking_threads(BLOCKING_MAX)
            .thread_name("data")
            .on_thread_start(yield_to_starts)
            .enable_all()
            .build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// The runtime, to spawn there.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for DataThreads {
    fn drop(&mut self) {
        // Waiting for them is not possible on the agent's own runtime, and what they still do is of no use.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A nice value belongs to a thread.
fn yield_to_starts() {
    let own = getpriority_process(None).unwrap_or_default();
    if let Err(error) = setpriority_process(None, own.saturating_add(NICE).min(NICE_MAX)) {
        tracing::debug!(%error, "a data thread keeps its priority");
    }
}
