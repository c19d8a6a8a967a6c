//! Local containers of an earlier agent.
//!
//! Their first process is not a child of this agent: its end is seen on a pidfd, its status is not.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::libc;
use rustix::process::Signal;
use tokio::net::unix::pipe;

use super::{LocalHost, PARKED_FILE};
use crate::start::cgroup::Cgroup;
use crate::start::logs::Logs;
use crate::start::pid_watch::{Image, PidWatch};
use crate::start::survivors::Survivor;
use crate::start::{BoxFuture, StartError, name};

/// What an earlier agent left with this host.
pub(in crate::start) fn survivors(host: &Arc<dyn LocalHost>) -> Vec<Box<dyn Survivor>> {
    let found = host
        .instances()
        .into_iter()
        .map(|instance| Box::new(LocalSurvivor::new(Arc::clone(host), instance)) as Box<dyn Survivor>);
    found.collect()
}

/// The first process of an instance, which the agent takes over.
pub(super) fn running(host: &dyn LocalHost, instance: &str) -> Result<PidWatch, StartError> {
    let first = FirstProcess::find(host, instance);
    let detail = if first.watch.is_some() { "it was not released yet" } else { "it has ended" };
    let running = first.watch.filter(|_| first.runs);
    running.ok_or_else(|| StartError::Adopt { instance: instance.to_owned(), detail })
}

/// The first process of an instance that an earlier agent left.
struct FirstProcess {
    /// `None` when nothing is left but files.
    watch: Option<PidWatch>,
    /// It was released and has not ended.
    runs: bool,
}

impl FirstProcess {
    fn find(host: &dyn LocalHost, instance: &str) -> Self {
        let watch = host.first_pid(instance).and_then(|pid| PidWatch::foreign(pid).ok());
        // After its pidfd was opened: a number that another process got meanwhile is not the instance's.
        let watch = watch.filter(|watch| host.is_first(instance, watch.pid()));
        let runs = watch.as_ref().and_then(|watch| Image::of(watch.pid())).is_some_and(|now| {
            let parked = fs::read_to_string(host.directory(instance).join(PARKED_FILE)).ok();
            match parked.and_then(|text| Image::parse(&text)) {
                Some(parked) => parked.replaced_by(&now),
                None => host.was_released(instance),
            }
        });
        Self { watch, runs }
    }
}

/// A container of an earlier agent, or only its files.
struct LocalSurvivor {
    host: Arc<dyn LocalHost>,
    instance: String,
    directory: PathBuf,
    cgroup: Cgroup,
    first: FirstProcess,
    /// Opened while the agent may, and read when the instance is this agent's to end.
    output: Mutex<Option<pipe::Receiver>>,
}

impl LocalSurvivor {
    fn new(host: Arc<dyn LocalHost>, instance: String) -> Self {
        let first = FirstProcess::find(&*host, &instance);
        let running = first.watch.as_ref().filter(|_| first.runs);
        let output = Mutex::new(running.and_then(|watch| output_of(&instance, watch.pid())));
        let (directory, cgroup) = (host.directory(&instance), host.cgroups().of(&instance));
        Self { host, instance, directory, cgroup, first, output }
    }
}

/// The instance's output goes to a pipe whose reader died with the earlier agent:
/// reads on, so that it neither fills nor is lost.
pub(in crate::start) fn follow_again(instance: &str, pid: i32) -> Option<Logs> {
    output_of(instance, pid).map(|output| Logs::follow(name::function_of(instance), instance, output))
}

/// The reading end of that pipe; nothing is read yet.
pub(in crate::start) fn output_of(instance: &str, pid: i32) -> Option<pipe::Receiver> {
    let path = format!("/proc/{pid}/fd/1");
    let open = || -> io::Result<pipe::Receiver> {
        // What the function has put there instead is not opened.
        if !fs::metadata(&path)?.file_type().is_fifo() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        pipe::Receiver::from_file(fs::OpenOptions::new().read(true).custom_flags(flags).open(&path)?)
    };
    let log = |error: &_| tracing::debug!(instance, "its output can no longer be followed: {error}");
    open().inspect_err(log).ok()
}

impl Survivor for LocalSurvivor {
    fn instance(&self) -> &str {
        &self.instance
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn runs(&self) -> bool {
        self.first.runs
    }

    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(watch) = &self.first.watch {
                let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
                let function = name::function_of(&self.instance);
                let _to_its_end = output.map(|output| Logs::follow(function, &self.instance, output));
                super::signal(watch, &self.cgroup, Signal::TERM);
            }
        })
    }

    fn gone(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(watch) = &self.first.watch {
                watch.exited().await;
            }
        })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            if let Some(watch) = &self.first.watch {
                super::kill(watch, &self.cgroup).await?;
            }
            self.host.clean_survivor(&self.instance).await
        })
    }
}
