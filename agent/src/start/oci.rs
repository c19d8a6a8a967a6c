//! OCI containers, made by runc (or any runtime with its command line).
//!
//! `runc create` does all the work and leaves the container's init blocked in
//! the open of a FIFO, `exec.fifo`; it execs the function as soon as somebody
//! reads. `runc start` is a new process that reads it; here the agent reads the
//! FIFO itself. To the end of a program that ends at once, reading it
//! ourselves took a quarter of the time (medians of 30, by turns, two cores: the
//! ignored test `measure_letting_go`).
//!
//! End-of-file alone does not tell the moment of the exec: since the fix of
//! CVE-2024-21626 the init closes everything a little before. So we look at the
//! program it runs until that is another.
//!
//! Like `runc start`, we remove the FIFO afterwards: that is how `runc state`
//! knows a running container from a created one.
//!
//! The rootfs needs the directories `/proc`, `/dev` and `/tmp`; runc makes them
//! when they are missing.

mod left;
mod seccomp;
mod spec;

pub(super) use left::survivors;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use headstart_wire::{CONTROL_FD, Channel};
use rustix::process::Signal;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::cgroup::{Cgroup, freezer};
use super::error::within;
use super::logs::{self, Logs};
use super::survivors::PARKED_FILE;
use super::tick::Ticks;
use super::watch::{Image, Watch};
use super::{BoxFuture, ContainerSpec, Control, Exit, Parked, Process, Runtime, StartError, name, nice};
use crate::manager;

/// `runc create` takes some 40 ms; a node that starts many at once may need seconds.
const CREATE_TIMEOUT: Duration = Duration::from_secs(20);

/// From letting go to the exec: milliseconds, unless the node is out of memory.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// For a killed container to be gone, and for `runc delete`, each.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between looks for the exec, which comes some 300 us after end-of-file.
/// Looking without a pause would take the processor from the very exec we wait
/// for: on two cores that made it ten times slower.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);

/// How long we look so often, and the interval after that.
const LOOK_OFTEN: Duration = Duration::from_millis(10);

/// For the last words of a container whose exec failed.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// runc's own state, below the state directory.
const ROOT: &str = "runc";

/// One directory per instance is in here, below the state directory.
const BUNDLES: &str = "oci";

/// On which the parked init waits, in runc's state of a container.
const FIFO: &str = "exec.fifo";

/// What to do when runc cannot be run.
const INSTALL: &str = "install runc (`apt install runc`), or use another `runtime`";

/// Makes OCI containers of one function.
pub struct Oci {
    node: Arc<Node>,
}

/// What the containers of a function share.
struct Node {
    spec: ContainerSpec,
    rootfs: PathBuf,
    runc: PathBuf,
    /// runc's own state.
    root: PathBuf,
    /// One directory per instance: configuration, PID file, runc's log.
    bundles: PathBuf,
}

impl Oci {
    /// A runtime for containers over the directory `rootfs`, made by the
    /// program `runc`, that keep their state under `state_dir`.
    #[must_use]
    pub fn new(spec: ContainerSpec, rootfs: PathBuf, runc: PathBuf, state_dir: &Path) -> Self {
        let (root, bundles) = (state_dir.join(ROOT), state_dir.join(BUNDLES));
        Self { node: Arc::new(Node { spec, rootfs, runc, root, bundles }) }
    }
}

impl Runtime for Oci {
    fn name(&self) -> &'static str {
        "oci"
    }

    fn prepare<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Parked, StartError>> {
        Box::pin(async move {
            name::check(instance, &self.node.spec.function)?;
            let prepared = self.node.create(instance).await;
            if prepared.is_err() {
                let cleaned = self.node.delete(instance).await;
                tracing::debug!(instance, ?cleaned, "removed what a failed create left");
            }
            prepared
        })
    }

    fn adopt<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Arc<dyn Process>, StartError>> {
        Box::pin(async move {
            name::check(instance, &self.node.spec.function)?;
            Ok(Arc::new(self.node.adopt(instance)?) as Arc<dyn Process>)
        })
    }
}

impl Node {
    async fn create(self: &Arc<Self>, instance: &str) -> Result<Parked, StartError> {
        if !self.rootfs.is_dir() {
            return Err(StartError::RootfsMissing { path: self.rootfs.clone() });
        }
        let bundle = self.write_bundle(instance)?;
        let (agent, function) = Channel::pair().map_err(|error| StartError::System {
            step: "making a control socket",
            source: io::Error::other(error),
        })?;
        let output = self.run_create(instance, &bundle, function.into()).await?;
        let pid = fs::read_to_string(bundle.join("pid"))
            .and_then(|text| text.trim().parse().map_err(io::Error::other))
            .map_err(StartError::system("reading a container's PID file"))?;
        let cgroup = Cgroup::of(instance);
        let oom = cgroup.clone();
        let watch = Watch::new(pid, move || oom.oom_killed())?;
        let parked = Image::of(pid);
        if let Some(parked) = &parked {
            fs::write(bundle.join(PARKED_FILE), parked.to_line())
                .map_err(StartError::system("noting what a parked container runs"))?;
        }
        let container = Container {
            node: Arc::clone(self),
            instance: instance.to_owned(),
            bundle,
            logs: Some(Logs::follow(&self.spec.function, instance, output)),
            parked,
            watch,
            cgroup,
            released: AtomicBool::new(false),
            removal: Mutex::new(()),
        };
        Ok(Parked { control: Control::Connected(agent), process: Arc::new(container) })
    }

    fn write_bundle(&self, instance: &str) -> Result<PathBuf, StartError> {
        let bundle = self.bundles.join(instance);
        super::private_directory(&bundle).map_err(StartError::system("making a bundle"))?;
        let backends = super::make_backends_directory(&self.spec, &bundle)?;
        let config = spec::build(&self.spec, &self.rootfs, instance, backends.as_deref())
            .and_then(|spec| Ok(serde_json::to_vec(&spec)?))
            .map_err(|error| StartError::Create { detail: error.to_string() })?;
        // It holds the function's environment: for root's eyes only.
        fs::write(bundle.join("config.json"), config).map_err(StartError::system("writing a bundle"))?;
        Ok(bundle)
    }

    /// Runs `runc create`; returns the read end of the container's output.
    async fn run_create(
        &self,
        instance: &str,
        bundle: &Path,
        control: OwnedFd,
    ) -> Result<pipe::Receiver, StartError> {
        let step = "making an output pipe";
        let (output, stdout) = logs::pipe().map_err(StartError::system(step))?;
        let stderr = stdout.try_clone().map_err(StartError::system(step))?;
        let mut command = self.command();
        command.arg("--log").arg(bundle.join("log")).args(["--log-format", "json"]);
        command.arg("create").arg("--bundle").arg(bundle);
        command.arg("--pid-file").arg(bundle.join("pid")).args(["--preserve-fds", "1", instance]);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).kill_on_drop(true);
        let mapping = FdMapping { parent_fd: control, child_fd: CONTROL_FD };
        command
            .as_std_mut()
            .fd_mappings(vec![mapping])
            .map_err(|error| StartError::Create { detail: error.to_string() })?;
        let child = nice::spawn_in_background(|| command.spawn());
        let mut child = child.map_err(|error| self.spawn_error(error))?;
        // Our copies of the function's ends live in the command: they must go, or no end-of-file ever comes.
        drop(command);
        let status = within(CREATE_TIMEOUT, "runc create", child.wait())
            .await?
            .map_err(StartError::system("waiting for runc create"))?;
        if !status.success() {
            return Err(self.create_error(&bundle.join("log")));
        }
        pipe::Receiver::from_owned_fd(output.into()).map_err(StartError::system(step))
    }

    /// runc, without what the service manager told the agent: it would pass it on to the function.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.runc);
        for variable in manager::VARIABLES {
            command.env_remove(variable);
        }
        command.arg("--root").arg(&self.root);
        command
    }

    fn spawn_error(&self, error: io::Error) -> StartError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                StartError::RuntimeMissing { path: self.runc.clone(), hint: INSTALL }
            }
            _ => StartError::System { step: "running runc", source: error },
        }
    }

    /// What runc wrote to its log, as one of our errors.
    fn create_error(&self, log: &Path) -> StartError {
        let text = fs::read_to_string(log).unwrap_or_default();
        let message = |line: &str| {
            let entry: serde_json::Value = serde_json::from_str(line).ok()?;
            (entry["level"] == "error").then(|| entry["msg"].as_str().map(str::to_owned))?
        };
        let detail = text.lines().rev().find_map(message).unwrap_or_else(|| "runc gave no reason".to_owned());
        let missing = ["no such file or directory", "not found"].iter().any(|text| detail.contains(text));
        if missing && detail.contains("exec: ") {
            let place = self.rootfs.display().to_string();
            return StartError::CommandMissing { command: self.spec.program().to_owned(), place };
        }
        StartError::Create { detail }
    }

    /// Removes every trace of a container, whatever its state. Can be repeated.
    async fn delete(&self, instance: &str) -> Result<(), StartError> {
        let state = self.root.join(instance);
        if state.exists() {
            let mut command = self.command();
            command.args(["delete", "--force", instance]);
            command.stdin(Stdio::null()).kill_on_drop(true);
            let output = within(REMOVE_TIMEOUT, "runc delete", command.output())
                .await?
                .map_err(|error| self.spawn_error(error))?;
            if state.exists() {
                let detail = format!("runc delete: {}", String::from_utf8_lossy(&output.stderr).trim());
                return Err(StartError::Left { detail });
            }
        }
        Cgroup::of(instance)
            .remove()
            .await
            .map_err(|error| StartError::Left { detail: format!("cgroup {error}") })?;
        super::remove_directory(&self.bundles.join(instance))
    }
}

/// One container.
struct Container {
    node: Arc<Node>,
    instance: String,
    bundle: PathBuf,
    watch: Watch,
    /// Unless it was taken over, and has put something else there.
    logs: Option<Logs>,
    cgroup: Cgroup,
    /// What the parked init runs, to tell it from the function.
    parked: Option<Image>,
    released: AtomicBool,
    /// Removals take turns.
    removal: Mutex<()>,
}

impl Process for Container {
    fn release(&self) -> BoxFuture<'_, Result<u64, StartError>> {
        Box::pin(async move {
            if self.released.swap(true, Ordering::Relaxed) {
                return Err(StartError::AlreadyReleased);
            }
            nice::to_foreground(self.watch.pid());
            let fifo = self.node.root.join(&self.instance).join(FIFO);
            let let_go = async {
                self.read_fifo(&fifo).await?;
                self.exec().await
            };
            let exec_ns = within(RELEASE_TIMEOUT, "letting a container go", let_go).await?;
            if let Err(error) = fs::remove_file(&fifo) {
                tracing::debug!(instance = self.instance, %error, "the exec FIFO was not removed");
            }
            exec_ns
        })
    }

    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(self.watch.exited())
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(freezer::freeze(&self.cgroup, &self.watch))
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async { freezer::thaw(&self.cgroup) })
    }

    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.watch.signal(Signal::TERM);
            self.cgroup.ensure_thawed();
        })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async move {
            let _turn = self.removal.lock().await;
            self.watch.signal(Signal::KILL);
            self.cgroup.ensure_thawed();
            within(REMOVE_TIMEOUT, "killing a container", self.watch.exited()).await?;
            self.node.delete(&self.instance).await
        })
    }

    fn directory(&self) -> &Path {
        &self.bundle
    }

    fn network(&self) -> io::Result<fs::File> {
        // The number is still this container's: nobody waits for it before it is removed.
        fs::File::open(format!("/proc/{}/ns/net", self.watch.pid()))
    }

    fn owns(&self, pid: i32) -> bool {
        self.cgroup.contains(pid) || self.watch.shares_namespace(pid)
    }
}

impl Container {
    /// Lets the init behind `fifo` go; returns when it has closed its end.
    async fn read_fifo(&self, fifo: &Path) -> Result<(), StartError> {
        let failed = StartError::system("reading the exec FIFO");
        let receiver = pipe::OpenOptions::new().open_receiver(fifo).map_err(&failed)?;
        let mut buffer = [0u8; 16];
        let mut begun = false;
        loop {
            tokio::select! {
                biased;
                ready = receiver.readable() => ready.map_err(&failed)?,
                exit = self.watch.exited() => {
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

    /// Waits until the init, let go, has exec'd, and returns when that was, in
    /// nanoseconds of `CLOCK_MONOTONIC`.
    async fn exec(&self) -> Result<u64, StartError> {
        let asked = Instant::now();
        let ticks = Ticks::every(LOOK_INTERVAL).map_err(StartError::system("making a timer"))?;
        loop {
            let now_ns = headstart_wire::monotonic_ns().map_err(StartError::system("reading the clock"))?;
            match (&self.parked, Image::of(self.watch.pid())) {
                (Some(parked), Some(now)) if parked.replaced_by(&now) => return Ok(now_ns),
                (_, Some(now)) if now.is_alive() => {}
                // Gone, perhaps after a short and happy life: only its last words are left to tell.
                (_, now) => return self.ended(now.is_some()).await.map(|()| now_ns),
            }
            if asked.elapsed() < LOOK_OFTEN {
                ticks.next().await.map_err(StartError::system("waiting for a tick"))?;
            } else {
                tokio::time::sleep(LOOK_OFTEN).await;
            }
        }
    }

    /// Tells a function that has ended already from an init that could not exec it.
    async fn ended(&self, certainly_failed: bool) -> Result<(), StartError> {
        let exit = self.watch.exited().await;
        let detail = match &self.logs {
            Some(logs) => logs.last(LAST_WORDS_TIMEOUT).await,
            None => String::new(),
        };
        if certainly_failed || (exit.code == Some(1) && detail.contains("exec")) {
            let command = self.node.spec.program().to_owned();
            return Err(StartError::Exec { command, detail });
        }
        Ok(())
    }
}
