//! The release of a parked container: opens the exec FIFO and waits for the exec. runc's init writes into it, and waits for a
//! reader; crun's reads from it, and waits for a byte.
//!
//! End-of-file alone does not tell the moment of the exec: since the fix of
//! CVE-2024-21626 the init closes everything a little before. So we look at the
//! program it runs until that is another.
//!
//! Like `runc start`, we remove the FIFO afterwards: that is how `runc state`
//! knows a running container from a created one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use tokio::net::unix::pipe;

use crate::start::local::{Latch, LocalContainer};
use crate::start::pid_watch::{Image, PidWatch};
use crate::start::tick::Ticks;
use crate::start::{BoxFuture, Process as _, StartError};

/// Between looks for the exec, which comes some 300 us after end-of-file.
/// Looking without a pause would take the processor from the very exec we wait
/// for: on two cores that made it ten times slower.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);

/// How long we look so often, and the interval after that.
const LOOK_OFTEN: Duration = Duration::from_millis(10);

/// For the last line of a container whose exec failed.
const LAST_LINE_TIMEOUT: Duration = Duration::from_secs(1);

/// Nobody reads a FIFO (errno(3)).
const ENXIO: i32 = 6;

/// The FIFO that a parked init waits for, until it is read.
pub(super) struct ExecFifo {
    pub(super) path: PathBuf,
    /// Whether the init reads from it.
    pub(super) is_read: bool,
    /// What the parked init runs, to tell it from the function.
    pub(super) parked: Option<Image>,
    /// What errors call the function's program.
    pub(super) program: String,
}

impl Latch for ExecFifo {
    fn open<'a>(self: Box<Self>, container: &'a LocalContainer) -> BoxFuture<'a, Result<u64, StartError>> {
        Box::pin(async move {
            let watch = container.watch();
            let opened = if self.is_read { self.write(watch).await } else { self.read(watch).await };
            let exec_ns = match opened {
                Ok(()) => self.exec(container).await,
                Err(error) => Err(error),
            };
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::debug!(instance = container.instance(), %error, "the exec FIFO was not removed");
            }
            exec_ns
        })
    }
}

impl ExecFifo {
    /// Releases the init behind the FIFO; returns when it has closed its end.
    async fn read(&self, watch: &PidWatch) -> Result<(), StartError> {
        let failed = StartError::system("reading the exec FIFO");
        let receiver = pipe::OpenOptions::new().open_receiver(&self.path).map_err(&failed)?;
        let mut buffer = [0u8; 16];
        let mut begun = false;
        loop {
            tokio::select! {
                biased;
                ready = receiver.readable() => ready.map_err(&failed)?,
                exit = watch.exited() => {
                    // It may have run to its end before we came to read its byte.
                    let ran = begun || matches!(nix::unistd::read(&receiver, &mut buffer), Ok(1..));
                    return if ran { Ok(()) } else { Err(StartError::Died { exit }) };
                }
            }
            match receiver.try_read(&mut buffer) {
                // Before init has opened its end, a read finds no writer either: that is not the end.
                Ok(0) if begun => return Ok(()),
                Ok(0) => tokio::task::yield_now().await,
                Ok(_) => begun = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Releases the init that reads the FIFO, as soon as it does.
    async fn write(&self, watch: &PidWatch) -> Result<(), StartError> {
        let failed = StartError::system("writing to the exec FIFO");
        loop {
            // An empty pipe has room for a byte.
            let opened = File::options().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&self.path);
            match opened.and_then(|mut fifo| fifo.write_all(b"0")) {
                Ok(()) => return Ok(()),
                // It has not opened its end yet (fifo(7)).
                Err(error) if error.raw_os_error() == Some(ENXIO) => tokio::time::sleep(LOOK_INTERVAL).await,
                Err(error) => return Err(failed(error)),
            }
            if let Some(exit) = watch.now() {
                return Err(StartError::Died { exit });
            }
        }
    }

    /// Waits until the released init has exec'd, and returns when that was, in
    /// nanoseconds of `CLOCK_MONOTONIC`.
    async fn exec(&self, container: &LocalContainer) -> Result<u64, StartError> {
        let asked = Instant::now();
        let ticks = Ticks::every(LOOK_INTERVAL).map_err(StartError::system("making a timer"))?;
        loop {
            let now_ns = headstart_wire::monotonic_ns().map_err(StartError::system("reading the clock"))?;
            match (&self.parked, Image::of(container.watch().pid())) {
                (Some(parked), Some(now)) if parked.replaced_by(&now) => return Ok(now_ns),
                (_, Some(now)) if now.is_alive() => {}
                // It has ended, perhaps after it had run: only its output tells.
                (_, now) => return self.ended(container, now.is_some()).await.map(|()| now_ns),
            }
            if asked.elapsed() < LOOK_OFTEN {
                ticks.next().await.map_err(StartError::system("waiting for a tick"))?;
            } else {
                tokio::time::sleep(LOOK_OFTEN).await;
            }
        }
    }

    /// Tells a function that has ended already from an init that could not exec it.
    async fn ended(&self, container: &LocalContainer, certainly_failed: bool) -> Result<(), StartError> {
        let exit = container.exited().await;
        let detail = container.last_line(LAST_LINE_TIMEOUT).await;
        if certainly_failed || (exit.code == Some(1) && detail.contains("exec")) {
            return Err(StartError::Exec { command: self.program.clone(), detail });
        }
        Ok(())
    }
}
