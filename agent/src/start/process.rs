//! Functions without a container runtime: a program of this node, in
//! namespaces of its own.
//!
//! The agent starts its own program again in a hidden mode ([`park`]), which
//! makes the namespaces, gives up every privilege and then waits on its release
//! socket. One byte lets it exec; the socket is close-on-exec, so its
//! end-of-file is the moment of the exec, and an error comes back on it as text.
//! If the agent dies, the same end-of-file ends the parked process.
//!
//! Unlike a container the function sees the node's file system, as the user
//! `nobody`, with a `/tmp`, `/proc` and network namespace of its own, and no
//! filter on system calls: a shorter way, for programs that are trusted.

mod left;
pub mod park;

pub(super) use left::{noted, survivors};

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use headstart_wire::{CONTROL_FD, Channel};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::sync::Mutex;

use self::park::{Order, Report};
use super::cgroup::{Cgroup, freezer};
use super::error::within;
use super::logs::{self, Logs};
use super::survivors::PARKED_FILE;
use super::watch::{Image, Watch};
use super::{BoxFuture, ContainerSpec, Control, Exit, Parked, Process, Runtime, StartError, name, nice};

/// Making namespaces takes milliseconds; a node that starts many at once may need seconds.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(10);

/// From letting go to the exec: well under a millisecond, unless the node is out of memory.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// For a killed process to be gone.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// One directory per instance is in here, below the state directory.
const DIRECTORY: &str = "process";

/// Longest report of the helper, in bytes.
const REPORT_BYTES: u64 = 4096;

/// How the agent's program is called to park a process.
#[derive(Debug, Clone)]
pub struct Helper {
    /// The program.
    pub program: PathBuf,
    /// Arguments before the marker that selects the hidden mode.
    pub args: Vec<OsString>,
}

impl Default for Helper {
    /// This very program, also after its file was replaced by an upgrade.
    fn default() -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), args: Vec::new() }
    }
}

/// Runs programs of this node as instances of one function.
pub struct Plain {
    node: Arc<Node>,
}

struct Node {
    spec: ContainerSpec,
    helper: Helper,
    /// One directory per instance, with the file `pid`: what a sweep goes by.
    directory: PathBuf,
    /// Whether it was said that there are no limits here.
    warned: AtomicBool,
}

impl Plain {
    /// A runtime that parks processes in `helper` and notes them under `state_dir`.
    #[must_use]
    pub fn new(spec: ContainerSpec, helper: Helper, state_dir: &Path) -> Self {
        let directory = state_dir.join(DIRECTORY);
        Self { node: Arc::new(Node { spec, helper, directory, warned: AtomicBool::new(false) }) }
    }
}

impl Runtime for Plain {
    fn name(&self) -> &'static str {
        "process"
    }

    fn prepare<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Parked, StartError>> {
        Box::pin(async move {
            name::check(instance, &self.node.spec.function)?;
            let parking = within(PREPARE_TIMEOUT, "parking a process", self.node.park(instance));
            let parked = parking.await.and_then(|parked| parked);
            if parked.is_err() {
                let cleaned = self.node.clean(instance).await;
                tracing::debug!(instance, ?cleaned, "removed what a failed start left");
            }
            parked
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
    async fn park(self: &Arc<Self>, instance: &str) -> Result<Parked, StartError> {
        let system = StartError::system;
        let directory = self.directory.join(instance);
        super::private_directory(&directory).map_err(system("making an instance's directory"))?;
        let cgroup = Cgroup::of(instance);
        let join_files = self.make_cgroup(&cgroup);
        let (agent, function) = Channel::pair().map_err(|error| StartError::System {
            step: "making a control socket",
            source: io::Error::other(error),
        })?;
        let (release, theirs) = StdStream::pair().map_err(system("making a release socket"))?;
        let output = self.spawn(instance, join_files, function.into(), theirs).await?;
        release.set_nonblocking(true).map_err(system("making a release socket"))?;
        let mut release =
            BufReader::new(UnixStream::from_std(release).map_err(system("making a release socket"))?);
        let backends = super::make_backends_directory(&self.spec, &directory)?;
        self.send_order(&mut release, backends).await?;

        let Report::Pid(pid) = self.read_report(&mut release).await? else {
            return Err(StartError::Create { detail: "the helper said no process number".to_owned() });
        };
        fs::write(directory.join("pid"), marker(pid)).map_err(system("noting an instance"))?;
        let oom = cgroup.clone();
        let watch = Watch::new(pid, move || oom.oom_killed())?;
        match self.read_report(&mut release).await? {
            Report::Parked => {}
            other => return Err(StartError::Create { detail: format!("the helper said {other:?}") }),
        }
        if let Some(parked) = Image::of(pid) {
            fs::write(directory.join(PARKED_FILE), parked.to_line()).map_err(system("noting an instance"))?;
        }
        let instance = Instance {
            node: Arc::clone(self),
            instance: instance.to_owned(),
            directory,
            _logs: Some(Logs::follow(&self.spec.function, instance, output)),
            watch,
            cgroup,
            release: Mutex::new(Some(release)),
            removal: Mutex::new(()),
        };
        Ok(Parked { control: Control::Connected(agent), process: Arc::new(instance) })
    }

    /// Without cgroups a function runs all the same, but without limits.
    fn make_cgroup(&self, cgroup: &Cgroup) -> Vec<PathBuf> {
        match cgroup.create(self.spec.memory_bytes, self.spec.pids) {
            Ok(()) => cgroup.join_files(),
            Err(error) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    let function = &self.spec.function;
                    tracing::warn!(function, %error, "no cgroup: this function runs without limits");
                }
                Vec::new()
            }
        }
    }

    /// Starts the outer helper and waits until it has left the inner one behind.
    async fn spawn(
        &self,
        instance: &str,
        join_files: Vec<PathBuf>,
        control: OwnedFd,
        release: StdStream,
    ) -> Result<pipe::Receiver, StartError> {
        let step = "making an output pipe";
        let (output, stdout) = logs::pipe().map_err(StartError::system(step))?;
        let stderr = stdout.try_clone().map_err(StartError::system(step))?;
        let mut command = Command::new(&self.helper.program);
        command.args(&self.helper.args).arg(park::OUTER).arg(instance).args(join_files);
        command.env_clear().stdin(Stdio::from(OwnedFd::from(release))).stdout(stdout).stderr(stderr);
        let mapping = FdMapping { parent_fd: control, child_fd: CONTROL_FD };
        command
            .as_std_mut()
            .fd_mappings(vec![mapping])
            .map_err(|error| StartError::Create { detail: error.to_string() })?;
        let child = nice::spawn_in_background(|| command.kill_on_drop(true).spawn());
        // Our copies of the function's ends live in the command: they must go, or no end-of-file ever comes.
        drop(command);
        let mut child = child.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StartError::RuntimeMissing {
                path: self.helper.program.clone(),
                hint: "it is the agent's own program: do not remove it while it runs",
            },
            _ => StartError::System { step: "running the helper", source },
        })?;
        // Only an orphan becomes our child: the inner helper can be watched from here on.
        child.wait().await.map_err(StartError::system("waiting for the helper"))?;
        pipe::Receiver::from_owned_fd(output.into()).map_err(StartError::system(step))
    }

    async fn send_order(
        &self,
        release: &mut BufReader<UnixStream>,
        backends: Option<PathBuf>,
    ) -> Result<(), StartError> {
        let (command, env) = (self.spec.command.clone(), self.spec.environment_with_control());
        let order = Order { command, env, backends };
        let mut line =
            serde_json::to_vec(&order).map_err(|error| StartError::Create { detail: error.to_string() })?;
        line.push(b'\n');
        release.get_mut().write_all(&line).await.map_err(StartError::system("ordering the helper"))
    }

    async fn read_report(&self, release: &mut BufReader<UnixStream>) -> Result<Report, StartError> {
        let mut line = String::new();
        release
            .take(REPORT_BYTES)
            .read_line(&mut line)
            .await
            .map_err(StartError::system("hearing from the helper"))?;
        let report = Report::parse(line.trim_end());
        let command = self.spec.program().to_owned();
        match report {
            Some(Report::Missing) => Err(StartError::CommandMissing {
                command,
                place: "the node's file system as nobody sees it, with an empty /tmp".to_owned(),
            }),
            Some(Report::Failed(detail)) => Err(StartError::Create { detail }),
            Some(Report::NotExecuted(errno)) => {
                let detail = io::Error::from_raw_os_error(errno).to_string();
                Err(StartError::Exec { command, detail })
            }
            Some(report) => Ok(report),
            None => Err(StartError::Create { detail: format!("the helper ended after {line:?}") }),
        }
    }

    /// Ends whatever runs of an instance and removes its traces.
    async fn clean(&self, instance: &str) -> Result<(), StartError> {
        let (cgroup, directory) = (Cgroup::of(instance), self.directory.join(instance));
        cgroup.kill();
        if let Some(first) = noted(&directory).and_then(Pid::from_raw) {
            // Without a cgroup. Gone in between is what is wanted.
            let _gone = kill_process(first, Signal::KILL);
        }
        cgroup.remove().await.map_err(|error| StartError::Left { detail: format!("cgroup {error}") })?;
        super::remove_directory(&directory)
    }
}

/// A process number with its namespace, which tells it from a later process of the same number.
fn marker(pid: i32) -> String {
    let namespace = fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap_or_default();
    format!("{pid} {}", namespace.display())
}

/// One process.
struct Instance {
    node: Arc<Node>,
    instance: String,
    directory: PathBuf,
    watch: Watch,
    /// Unless it was taken over, and has put something else there.
    _logs: Option<Logs>,
    cgroup: Cgroup,
    /// Taken by the release.
    release: Mutex<Option<BufReader<UnixStream>>>,
    /// Removals take turns.
    removal: Mutex<()>,
}

impl Instance {
    async fn let_go(&self, mut release: BufReader<UnixStream>) -> Result<u64, StartError> {
        if let Some(exit) = self.watch.now() {
            return Err(StartError::Died { exit });
        }
        let mut answer = Vec::new();
        let exchange = async {
            release.get_mut().write_all(&[park::GO]).await?;
            release.take(REPORT_BYTES).read_to_end(&mut answer).await
        };
        match exchange.await {
            Ok(0) => headstart_wire::monotonic_ns().map_err(StartError::system("reading the clock")),
            Ok(_) => {
                let mut answer = answer.as_slice();
                let mut line = String::new();
                io::BufRead::read_line(&mut answer, &mut line)
                    .map_err(StartError::system("reading a report"))?;
                let errno = match Report::parse(line.trim_end()) {
                    Some(Report::NotExecuted(errno)) => errno,
                    _ => 0,
                };
                let command = self.node.spec.program().to_owned();
                let detail = io::Error::from_raw_os_error(errno).to_string();
                Err(StartError::Exec { command, detail })
            }
            // Nobody at the other end: the parked process is gone.
            Err(_) => Err(StartError::Died { exit: self.watch.exited().await }),
        }
    }
}

impl Process for Instance {
    fn release(&self) -> BoxFuture<'_, Result<u64, StartError>> {
        Box::pin(async move {
            let release = self.release.lock().await.take().ok_or(StartError::AlreadyReleased)?;
            nice::to_foreground(self.watch.pid());
            within(RELEASE_TIMEOUT, "letting a process go", self.let_go(release)).await?
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
            within(REMOVE_TIMEOUT, "killing a process", self.watch.exited()).await?;
            self.node.clean(&self.instance).await
        })
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn owns(&self, pid: i32) -> bool {
        self.cgroup.contains(pid) || self.watch.shares_namespace(pid)
    }
}
