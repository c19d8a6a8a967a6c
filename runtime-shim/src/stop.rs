//! SIGTERM, once, for everybody who waits for it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whether the process was asked to stop.
#[derive(Debug)]
pub(crate) struct Stop {
    requested: watch::Sender<bool>,
    handled: AtomicBool,
}

impl Default for Stop {
    fn default() -> Self {
        Self { requested: watch::Sender::new(false), handled: AtomicBool::new(false) }
    }
}

impl Stop {
    /// From here on SIGTERM is a request. As process 1 of a container, the
    /// kernel would not even deliver it without a handler.
    pub(crate) fn handle_sigterm(&self) -> io::Result<()> {
        if self.handled.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let mut sigterm = signal(SignalKind::terminate())?;
        let requested = self.requested.clone();
        tokio::spawn(async move {
            sigterm.recv().await;
            requested.send_replace(true);
        });
        Ok(())
    }

    pub(crate) async fn requested(&self) {
        let mut requested = self.requested.subscribe();
        // Cannot fail: the sender is ours.
        let _ = requested.wait_for(|requested| *requested).await;
    }
}
