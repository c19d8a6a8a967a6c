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
//! `nobody`, with `/tmp`, `/var/tmp`, `/run`, `/proc` and a network namespace of its own: a shorter way, for programs
//! that may read what every user of the node may.

mod host;
pub mod park;
mod release;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use headstart_config::{Agent, Runtime};
use headstart_wire::{CONTROL_FD, Channel};
use rustix::thread::CapabilitySet;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::Command;

use self::host::ProcessHost;
use self::park::{ParkMount, ParkOrder, ParkReport};
use self::release::ReleaseSocket;
use super::cgroup::Cgroup;
use super::driver::{Driver, HostCheck};
use super::error::within;
use super::local::{self, LocalContainer, LocalHost};
use super::logs::{self, Logs};
use super::secrets;
use super::survivors::Survivor;
use super::{
    BoxFuture, ContainerSpec, ControlEnd, FunctionRuntime, PreparedContainer, Process, StartError, directory,
    name, nice,
};

/// The word in the configuration.
const NAME: &str = "process";

/// Making namespaces takes milliseconds; a node that starts many at once may need seconds.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(10);

/// How the agent's program is called to park a process.
#[derive(Debug, Clone)]
pub(super) struct ParkHelper {
    /// The program.
    pub(super) program: PathBuf,
    /// Arguments before the marker that selects the hidden mode.
    pub(super) args: Vec<OsString>,
}

impl Default for ParkHelper {
    /// This very program, also after its file was replaced by an upgrade.
    fn default() -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), args: Vec::new() }
    }
}

/// Drives the agent's own program.
pub(super) fn driver(agent: &Agent) -> Box<dyn Driver> {
    driver_with(ParkHelper::default(), agent)
}

/// Drives another program, which knows the hidden mode.
pub(super) fn driver_with(helper: ParkHelper, agent: &Agent) -> Box<dyn Driver> {
    Box::new(ProcessDriver(Arc::new(ProcessHost::new(helper, agent))))
}

struct ProcessDriver(Arc<ProcessHost>);

impl Driver for ProcessDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn checks(&self) -> Vec<HostCheck> {
        Vec::new()
    }

    /// More than every local container needs: the loopback interface of a new network is set up.
    fn capabilities(&self) -> CapabilitySet {
        local::capabilities() | CapabilitySet::NET_ADMIN
    }

    fn runtime(&self, configured: &Runtime, spec: &ContainerSpec) -> Option<Arc<dyn FunctionRuntime>> {
        let Runtime::Process = configured else { return None };
        let (host, spec) = (Arc::clone(&self.0), spec.clone());
        Some(Arc::new(ProcessRuntime { host, spec, warned: AtomicBool::new(false) }))
    }

    fn survivors(&self) -> BoxFuture<'_, Result<Vec<Box<dyn Survivor>>, StartError>> {
        let host: Arc<dyn LocalHost> = Arc::clone(&self.0) as _;
        Box::pin(async move { Ok(local::survivors(&host)) })
    }
}

/// Runs programs of this node as instances of one function.
struct ProcessRuntime {
    host: Arc<ProcessHost>,
    spec: ContainerSpec,
    /// Whether it was said that there are no limits here.
    warned: AtomicBool,
}

impl FunctionRuntime for ProcessRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<PreparedContainer, StartError>> {
        Box::pin(async move {
            name::check(instance, &self.spec.function)?;
            let parking = within(PREPARE_TIMEOUT, "parking a process", self.park(instance));
            let parked = parking.await.and_then(|parked| parked);
            local::settle(&*self.host, instance, parked).await
        })
    }

    fn adopt<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Arc<dyn Process>, StartError>> {
        Box::pin(async move {
            name::check(instance, &self.spec.function)?;
            let container = LocalContainer::adopt(Arc::clone(&self.host) as _, instance)?;
            Ok(Arc::new(container) as Arc<dyn Process>)
        })
    }
}

impl ProcessRuntime {
    async fn park(&self, instance: &str) -> Result<PreparedContainer, StartError> {
        let system = StartError::system;
        let own = self.host.directory(instance);
        directory::make_private(&own).map_err(system("making an instance's directory"))?;
        let cgroup = self.host.cgroups().of(instance);
        let join_files = self.make_cgroup(&cgroup);
        let (agent, function) = Channel::pair().map_err(|error| StartError::System {
            step: "making a control socket",
            source: io::Error::other(error),
        })?;
        let (release, theirs) = StdStream::pair().map_err(system("making a release socket"))?;
        // The helper has a copy of the agent's mounts.
        let secrets = secrets::show(&self.spec, &own).await?;
        let output = self.spawn(instance, join_files, function.into(), theirs).await?;
        release.set_nonblocking(true).map_err(system("making a release socket"))?;
        let release = UnixStream::from_std(release).map_err(system("making a release socket"))?;
        let mut release = ReleaseSocket::new(release, self.spec.program());
        let backends = directory::make_backends(&self.spec, &own)?;
        let place = secrets.as_ref().map(|secrets| secrets.directory().to_owned());
        self.send_order(&mut release, backends, place).await?;

        let ParkReport::Pid(pid) = release.report().await? else {
            return Err(StartError::Create { detail: "the helper said no process number".to_owned() });
        };
        self.host.note_pid(instance, pid).map_err(system("noting an instance"))?;
        let watch = local::watch(cgroup, pid)?;
        match release.report().await? {
            ParkReport::Parked => {}
            other => return Err(StartError::Create { detail: format!("the helper said {other:?}") }),
        }
        local::note_image(&own, pid)?;
        let logs = Logs::follow(&self.spec.function, instance, output);
        let host = Arc::clone(&self.host);
        let container = LocalContainer::parked(host, instance, watch, logs, Box::new(release));
        if self.spec.is_unaware() {
            container.run_init(&agent).await?;
        }
        Ok(PreparedContainer { control: ControlEnd::Connected(agent), process: Arc::new(container) })
    }

    /// Without cgroups a function runs all the same, but without limits.
    fn make_cgroup(&self, cgroup: &Cgroup) -> Vec<PathBuf> {
        match cgroup.create(&self.spec.memory_limit(), self.spec.pids, &self.spec.shares) {
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
        let mut command = Command::new(&self.host.helper().program);
        command.args(&self.host.helper().args).arg(park::OUTER).arg(instance).args(join_files);
        command.env_clear().stdin(Stdio::from(OwnedFd::from(release))).stdout(stdout).stderr(stderr);
        let mapping = FdMapping { parent_fd: control, child_fd: CONTROL_FD };
        command
            .as_std_mut()
            .fd_mappings(vec![mapping])
            .map_err(|error| StartError::Create { detail: error.to_string() })?;
        let child = nice::in_background(|| command.kill_on_drop(true).spawn());
        // Our copies of the function's ends live in the command: they must go, or no end-of-file ever comes.
        drop(command);
        let mut child = child.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StartError::RuntimeMissing {
                path: self.host.helper().program.clone(),
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
        release: &mut ReleaseSocket,
        backends: Option<PathBuf>,
        secrets: Option<PathBuf>,
    ) -> Result<(), StartError> {
        let (command, env) = (self.spec.arguments(), self.spec.environment_with_control());
        let mounts = self.spec.mounts.iter().map(|mount| ParkMount {
            source: mount.source.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
        });
        let mounts = mounts.collect();
        let init = self.spec.init_file()?.map(Path::to_owned);
        let Self { spec: ContainerSpec { user, workdir, .. }, .. } = self;
        let (user, workdir) = (*user, workdir.clone());
        let order = ParkOrder { command, env, workdir, user, mounts, backends, secrets, init };
        let mut line =
            serde_json::to_vec(&order).map_err(|error| StartError::Create { detail: error.to_string() })?;
        line.push(b'\n');
        release.stream().write_all(&line).await.map_err(StartError::system("ordering the helper"))
    }
}
