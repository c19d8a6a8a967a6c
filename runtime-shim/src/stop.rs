//! SIGTERM: one handler for all tasks that wait for it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whether the process has received SIGTERM.
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
    /// Installs the handler. To process 1 of a container the kernel does not deliver
    /// SIGTERM without one.
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
        // This cannot fail, because `self` owns the sender.
        let _ = requested.wait_for(|requested| *requested).await;
    }
}
