//! OCI containers, made by runc or crun.
//!
//! `runc create` does all the work and leaves the container's init blocked in
//! the open of a FIFO, `exec.fifo`; it execs the function as soon as a process
//! reads it. `runc start` is a new process that reads it; here the agent reads the
//! FIFO itself. To the end of a program that ends at once, reading it
//! ourselves took a quarter of the time (medians of 30, by turns, two cores: the
//! ignored test `measure_releasing`).
//!
//! crun's init reads the FIFO instead, and its devices need `CAP_MKNOD`.
//!
//! The rootfs needs the directories `/proc`, `/dev` and `/tmp`; runc makes them
//! when they are missing.

mod host;
mod namespaces;
mod overlay;
mod owners;
mod release;
mod seccomp;
mod spec;
mod targets;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use headstart_config::image::CONFIG_FILE;
use headstart_config::{Agent, Runtime};
use headstart_wire::{CONTROL_FD, Channel};
use oci_spec::OciSpecError;
use oci_spec::runtime::Mount;
use rustix::thread::CapabilitySet;
use tokio::net::unix::pipe;

use self::host::OciHost;
use self::overlay::Overlay;
use self::release::ExecFifo;
use super::driver::{Driver, HostCheck, Lack};
use super::error::within;
use super::local::{self, LocalContainer, LocalHost};
use super::logs::{self, Logs};
use super::secrets::{self, SecretsMount};
use super::survivors::Survivor;
use super::{
    BoxFuture, ContainerSpec, ControlEnd, FunctionRuntime, PreparedContainer, Process, StartError, directory,
    name, nice,
};

/// The word in the configuration.
const NAME: &str = "oci";

/// `runc create` takes some 40 ms; a node that starts many at once may need seconds.
const CREATE_TIMEOUT: Duration = Duration::from_secs(20);

/// Where version 2 of cgroups is beside version 1.
const HYBRID: &str = "/sys/fs/cgroup/unified";

/// Drives the program that `[agent]` names.
pub(super) fn driver(agent: &Agent) -> Box<dyn Driver> {
    Box::new(OciDriver { host: Arc::new(OciHost::new(agent)), user_namespaces: agent.user_namespaces })
}

struct OciDriver {
    host: Arc<OciHost>,
    user_namespaces: bool,
}

impl Driver for OciDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn checks(&self) -> Vec<HostCheck> {
        let version = self.host.version().map_err(|error| missing(self.host.runc(), &error));
        let found = version.and_then(|version| match self.host.is_crun() && Path::new(HYBRID).is_dir() {
            true => Err(format!(
                "runtime = \"oci\" does not work: crun refuses a node with both versions of cgroups ({HYBRID}): use runc, \
                 or boot with systemd.unified_cgroup_hierarchy=1"
            )
            .into()),
            false => Ok(version),
        });
        let mut checks = vec![HostCheck { what: "runc", key: "runc", found }];
        if self.user_namespaces {
            let found = namespaces::obstacle()
                .map_or_else(|| Ok("with `uids` each container has one".to_owned()), |lack| Err(lack.into()));
            checks.push(HostCheck { what: "user namespaces", key: "user_namespaces", found });
        }
        checks
    }

    /// More than every local container needs: runc sets the loopback interface up, gives the function
    /// its output (without `CHOWN` it could not open its `/dev/stdout`), and changes modes below the root file system,
    /// which may be another user's. crun makes devices; runc, if it cannot, binds those of the node. For a container with a
    /// user namespace runc opens what is mounted itself, in the container's mount namespace (setns(2)).
    fn capabilities(&self) -> CapabilitySet {
        let devices = if self.host.is_crun() { CapabilitySet::MKNOD } else { CapabilitySet::empty() };
        let enter = if self.user_namespaces { CapabilitySet::SYS_CHROOT } else { CapabilitySet::empty() };
        let files = CapabilitySet::CHOWN | CapabilitySet::FOWNER;
        local::capabilities() | files | CapabilitySet::NET_ADMIN | devices | enter
    }

    fn runtime(&self, configured: &Runtime, spec: &ContainerSpec) -> Option<Arc<dyn FunctionRuntime>> {
        let Runtime::Oci { rootfs, image, writable } = configured else { return None };
        Some(Arc::new(OciRuntime {
            host: Arc::clone(&self.host),
            spec: spec.clone(),
            rootfs: rootfs.clone(),
            writable: writable.map(|bytes| Arc::new(Overlay::new(bytes, image.as_ref(), spec))),
            _held: image.as_ref().and_then(|_| hold(rootfs)),
        }))
    }

    fn survivors(&self) -> BoxFuture<'_, Result<Vec<Box<dyn Survivor>>, StartError>> {
        let host: Arc<dyn LocalHost> = Arc::clone(&self.host) as _;
        Box::pin(async move { Ok(local::survivors(&host)) })
    }
}

/// Locks the image with this root file system. Without the lock it is not there, or is being removed: a start says so.
fn hold(rootfs: &Path) -> Option<File> {
    let file = File::open(rootfs.with_file_name(CONFIG_FILE)).ok()?;
    file.try_lock_shared().ok().map(|()| file)
}

/// What is said of a runc that cannot be run.
fn missing(runc: &Path, error: &io::Error) -> Lack {
    let lack = "runtime = \"oci\" does not work: install runc";
    if runc == Path::new("runc") {
        return lack.into();
    }
    format!("{lack}, or correct `runc` in [agent]: {}: {error}", runc.display()).into()
}

/// Makes OCI containers of one function.
struct OciRuntime {
    host: Arc<OciHost>,
    spec: ContainerSpec,
    rootfs: PathBuf,
    /// Unless it is read-only.
    writable: Option<Arc<Overlay>>,
    /// Its image stays in the store.
    _held: Option<File>,
}

impl FunctionRuntime for OciRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<PreparedContainer, StartError>> {
        Box::pin(async move {
            name::check(instance, &self.spec.function)?;
            let prepared = self.create(instance).await;
            local::settle(&*self.host, instance, prepared).await
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

impl OciRuntime {
    async fn create(&self, instance: &str) -> Result<PreparedContainer, StartError> {
        // runc takes no link. Where this one leads may have changed.
        let rootfs = self.rootfs.canonicalize().ok().filter(|rootfs| rootfs.is_dir());
        let rootfs = rootfs.ok_or_else(|| StartError::RootfsMissing { path: self.rootfs.clone() })?;
        let bundle = self.host.directory(instance);
        directory::make_private(&bundle).map_err(StartError::system("making a bundle"))?;
        let secrets = secrets::show(&self.spec, &bundle).await?;
        let backends = directory::make_backends(&self.spec, &bundle)?;
        let shown = spec::Shown {
            backends: backends.as_deref(),
            secrets: secrets.as_ref().map(SecretsMount::directory),
            init: self.spec.init_file()?,
        };
        let mounts = self.write_bundle(instance, &bundle, &rootfs, shown)?;
        let (agent, function) = Channel::pair().map_err(|error| StartError::System {
            step: "making a control socket",
            source: io::Error::other(error),
        })?;
        let output = self.run_create(instance, &bundle, (rootfs, mounts), function.into()).await?;
        let shares = &self.spec.shares;
        self.host
            .cgroups()
            .of(instance)
            .set_shares(shares)
            .map_err(StartError::system("setting `cpu` and weights"))?;
        let pid = fs::read_to_string(bundle.join(host::PID_FILE))
            .and_then(|text| text.trim().parse().map_err(io::Error::other))
            .map_err(StartError::system("reading a container's PID file"))?;
        let watch = local::watch(self.host.cgroups().of(instance), pid)?;
        let fifo = ExecFifo {
            path: self.host.fifo(instance),
            is_read: self.host.fifo_is_read(instance),
            parked: local::note_image(&bundle, pid)?,
            program: self.spec.program().to_owned(),
        };
        let logs = Logs::follow(&self.spec.function, instance, output);
        let host = Arc::clone(&self.host);
        let container = LocalContainer::parked(host, instance, watch, logs, Box::new(fifo));
        if self.spec.is_unaware() {
            container.run_init(&agent).await?;
        }
        Ok(PreparedContainer { control: ControlEnd::Connected(agent), process: Arc::new(container) })
    }

    /// Returns what will be mounted.
    fn write_bundle(
        &self,
        instance: &str,
        bundle: &Path,
        rootfs: &Path,
        shown: spec::Shown<'_>,
    ) -> Result<Vec<Mount>, StartError> {
        let cgroup = self.host.cgroups().of(instance);
        let failed = |error: OciSpecError| StartError::Create { detail: error.to_string() };
        let root = (rootfs, self.writable.is_some());
        let config = spec::build(&self.spec, root, instance, shown, &cgroup).map_err(failed)?;
        let mounts = config.mounts().clone().unwrap_or_default();
        if self.spec.namespace_root.is_some() && self.writable.is_none() {
            targets::make(rootfs, &mounts)?;
        }
        let config = serde_json::to_vec(&config).map_err(|error| failed(error.into()))?;
        // It holds the function's environment: for root's eyes only.
        fs::write(bundle.join("config.json"), config).map_err(StartError::system("writing a bundle"))?;
        Ok(mounts)
    }

    /// Runs `runc create`; returns the read end of the container's output.
    async fn run_create(
        &self,
        instance: &str,
        bundle: &Path,
        (rootfs, mounts): (PathBuf, Vec<Mount>),
        control: OwnedFd,
    ) -> Result<pipe::Receiver, StartError> {
        let step = "making an output pipe";
        let (output, stdout) = logs::pipe().map_err(StartError::system(step))?;
        if self.spec.namespace_root.is_some() {
            // Otherwise it could not open its /dev/stdout. Without a user namespace the OCI runtime does it.
            fchown(&stdout, Some(self.spec.user), None).map_err(StartError::system(step))?;
        }
        let stderr = stdout.try_clone().map_err(StartError::system(step))?;
        let mut command = self.host.command();
        command.arg("--log").arg(bundle.join("log")).args(["--log-format", "json"]);
        command.arg("create").arg("--bundle").arg(bundle);
        command.arg("--pid-file").arg(bundle.join(host::PID_FILE)).args(["--preserve-fds", "1", instance]);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).kill_on_drop(true);
        let mapping = FdMapping { parent_fd: control, child_fd: CONTROL_FD };
        command
            .as_std_mut()
            .fd_mappings(vec![mapping])
            .map_err(|error| StartError::Create { detail: error.to_string() })?;
        // Our copies of the function's ends live in the command: they must go, or no end-of-file ever comes.
        let child = match self.writable.clone() {
            Some(overlay) => overlay.start(command, rootfs, bundle.to_owned(), mounts).await?,
            None => nice::in_background(move || command.spawn()),
        };
        let mut child = child.map_err(|error| self.host.spawn_error(error))?;
        let status = within(CREATE_TIMEOUT, "runc create", child.wait())
            .await?
            .map_err(StartError::system("waiting for runc create"))?;
        let output = pipe::Receiver::from_owned_fd(output.into()).map_err(StartError::system(step));
        if !status.success() {
            return Err(self.create_error(&bundle.join("log"), &output?));
        }
        output
    }

    /// What runc wrote to its log, or said where that has no room, as one of our errors.
    fn create_error(&self, log: &Path, said: &pipe::Receiver) -> StartError {
        let text = fs::read_to_string(log).unwrap_or_default();
        let message = |line: &str| {
            let entry: serde_json::Value = serde_json::from_str(line).ok()?;
            (entry["level"] == "error").then(|| entry["msg"].as_str().map(str::to_owned))?
        };
        let logged = text.lines().rev().find_map(message);
        let detail =
            logged.or_else(|| logs::last_line(said)).unwrap_or_else(|| "runc gave no reason".to_owned());
        let missing = ["no such file or directory", "not found"].iter().any(|text| detail.contains(text));
        // In the words of runc, and of crun.
        if missing && ["exec: ", "executable file"].iter().any(|text| detail.contains(text)) {
            let place = self.rootfs.display().to_string();
            return StartError::CommandMissing { command: self.spec.program().to_owned(), place };
        }
        let obstacle = self.spec.namespace_root.and_then(|_| namespaces::obstacle());
        StartError::Create {
            detail: obstacle.map_or(detail.clone(), |obstacle| format!("{detail}: {obstacle}")),
        }
    }
}
