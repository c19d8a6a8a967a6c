//! Stops and continues all processes of a cgroup, without any of them noticing.
//!
//! | version | asked with | has happened |
//! |---|---|---|
//! | v1 | `FROZEN`, `THAWED` into `freezer.state` | it reads `FROZEN`; until then `FREEZING` |
//! | v2 | `1`, `0` into `cgroup.freeze` | `cgroup.events` has `frozen 1` |
//!
//! Sources: the kernel's Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, and `cgroup.freeze` in
//! cgroup-v2.rst. In v1 not even `SIGKILL` reaches a frozen process; in v2 it does.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::Instant;

use super::Cgroup;
use crate::start::StartError;
use crate::start::pid_watch::PidWatch;

/// The v1 hierarchy.
pub(super) const HIERARCHY: &str = "freezer";

/// How long it may take. A process stops when it next leaves the kernel: only one that waits for a device or a
/// network file system needs longer than some milliseconds.
pub(in crate::start) const FREEZE_TIMEOUT: Duration = Duration::from_secs(1);

/// Between looks whether all have stopped.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// What the freezer says.
enum FreezerState {
    Thawed,
    Freezing,
    Frozen,
}

/// Thaws a cgroup again that was not frozen to the end, also when the future that froze it was dropped.
struct ThawOnDrop<'a>(Option<&'a Cgroup>);

impl Drop for ThawOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0 {
            cgroup.ensure_thawed();
        }
    }
}

/// Freezes the instance whose first process is watched. On an error it runs again.
pub(in crate::start) async fn freeze(cgroup: &Cgroup, watch: &PidWatch) -> Result<(), StartError> {
    let failed = |detail| StartError::Freeze { detail };
    if let Some(exit) = watch.now() {
        return Err(failed(format!("it has ended ({exit})")));
    }
    cgroup.freeze().await.map_err(|error| failed(error.to_string()))
}

/// Lets an instance run again.
pub(in crate::start) fn thaw(cgroup: &Cgroup) -> Result<(), StartError> {
    cgroup.thaw().map_err(|error| StartError::Thaw { detail: error.to_string() })
}

impl Cgroup {
    /// Stops every process of it. On an error it runs again.
    async fn freeze(&self) -> io::Result<()> {
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        self.order(true)?;
        let mut undo = ThawOnDrop(Some(self));
        loop {
            match self.state()? {
                FreezerState::Frozen => break,
                FreezerState::Thawed => return Err(io::Error::other("it was thawed at the same time")),
                FreezerState::Freezing if Instant::now() >= deadline => {
                    let detail = format!(
                        "a process of it did not stop within {} s: look for one that waits for a device or a \
                         network file system (state D)",
                        FREEZE_TIMEOUT.as_secs()
                    );
                    return Err(io::Error::new(io::ErrorKind::TimedOut, detail));
                }
                FreezerState::Freezing => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        }
        undo.0 = None;
        Ok(())
    }

    /// Lets it run again. One write; harmless when it runs, or is gone.
    fn thaw(&self) -> io::Result<()> {
        match self.order(false) {
            // Opened before it was removed, or never there: nothing of it can be frozen.
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            thawed => thawed,
        }
    }

    /// Thaws what was sent a signal, or must not stay as it is.
    pub(in crate::start) fn ensure_thawed(&self) {
        if let Err(error) = self.thaw() {
            tracing::warn!(cgroup = %self.path.display(), "cannot be thawed: {error}");
        }
    }

    fn order(&self, freeze: bool) -> io::Result<()> {
        let text = match (self.is_unified(), freeze) {
            (true, true) => "1",
            (true, false) => "0",
            (false, true) => "FROZEN",
            (false, false) => "THAWED",
        };
        let file = self.order_file();
        fs::OpenOptions::new()
            .write(true)
            .open(&file)
            .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    let detail = format!(
                        "{} is not there: mount the cgroup freezer before the agent starts, or do not \
                         configure `freeze_after`",
                        file.display()
                    );
                    io::Error::new(io::ErrorKind::NotFound, detail)
                }
                _ => error,
            })
    }

    fn order_file(&self) -> PathBuf {
        if self.is_unified() {
            self.controller("").join("cgroup.freeze")
        } else {
            self.controller(HIERARCHY).join("freezer.state")
        }
    }

    fn state(&self) -> io::Result<FreezerState> {
        let order = fs::read_to_string(self.order_file())?;
        if !self.is_unified() {
            return Ok(match order.trim_end() {
                "FROZEN" => FreezerState::Frozen,
                "FREEZING" => FreezerState::Freezing,
                _ => FreezerState::Thawed,
            });
        }
        let events = fs::read_to_string(self.controller("").join("cgroup.events"))?;
        Ok(match (order.trim_end(), events.lines().any(|line| line == "frozen 1")) {
            ("1", true) => FreezerState::Frozen,
            ("1", false) => FreezerState::Freezing,
            _ => FreezerState::Thawed,
        })
    }
}

#[cfg(test)]
mod tests;
