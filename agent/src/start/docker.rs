//! Containers made by a Docker daemon, over its API socket.
//!
//! The container is created ahead; its release is the API's *start*, which
//! still makes every namespace: two orders of magnitude slower than the other
//! runtimes, for images that only a daemon has. The API cannot pass
//! descriptors, so each instance gets a socket file of its own, bind-mounted at
//! [`headstart_wire::CONTROL_PATH`], on which the agent listens.
//!
//! The time that [`Process::release`] gives is when *start* answered. The
//! function has exec'd a little before: its first hello may come earlier. And a
//! program that the kernel refuses to execute shows only as exit code 1, with the
//! reason as the last line of its output.
//!
//! An image's own user, environment and entry point stay as they are; a
//! configured command replaces only the image's `CMD`.

mod api;
mod container;
mod spec;
mod survivors;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use headstart_config::{Agent, Runtime};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use rustix::thread::CapabilitySet;

use self::api::Api;
use self::container::DockerContainer;
use super::driver::{Driver, HostCheck};
use super::survivors::Survivor;
use super::{
    BoxFuture, ContainerSpec, ControlEnd, FunctionRuntime, PreparedContainer, Process, StartError, directory,
    name,
};
use crate::privilege;

/// The word in the configuration.
const NAME: &str = "docker";

/// One directory per instance is in here, below the state directory.
const DIRECTORY: &str = "docker";

/// The control socket in an instance's directory.
const CONTROL_FILE: &str = "control.sock";

/// Tells the containers of one agent from those of another.
const STATE_DIR_LABEL: &str = "headstart.state-dir";

/// Names the instance.
const INSTANCE_LABEL: &str = "headstart.instance";

/// What the init calls a program that speaks to the agent itself.
const SPEAKS_ITSELF: &str = "headstart";

/// Names the function.
const FUNCTION_LABEL: &str = "headstart.function";

/// Connections that may wait on a control socket. The shim makes one.
const BACKLOG: i32 = 8;

/// Between attempts to ask a daemon that does not answer how a container ended.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Drives the daemon that `[agent]` names.
pub(super) fn driver(agent: &Agent) -> Box<dyn Driver> {
    Box::new(DockerDriver {
        socket: agent.docker_socket.clone(),
        host: Arc::new(DockerHost {
            api: Api::new(agent.docker_socket.clone()),
            directory: agent.state_dir.join(DIRECTORY),
            state_dir: agent.state_dir.clone(),
        }),
    })
}

struct DockerDriver {
    socket: PathBuf,
    host: Arc<DockerHost>,
}

/// Where containers are made, of whatever function.
struct DockerHost {
    api: Api,
    /// One directory per instance, with its control socket.
    directory: PathBuf,
    /// What containers of this agent are labelled with.
    state_dir: PathBuf,
}

impl Driver for DockerDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn checks(&self) -> Vec<HostCheck> {
        let socket = self.socket.display();
        let found = match UnixStream::connect(&self.socket) {
            Ok(_) => Ok(format!("a daemon listens on {socket}")),
            Err(error) => {
                Err(format!("runtime = \"docker\" does not work: {socket}: {error}; start dockerd").into())
            }
        };
        vec![HostCheck { what: "docker", key: "docker_socket", found }]
    }

    /// Only what it takes to reach the daemon, which has the powers itself.
    fn capabilities(&self) -> CapabilitySet {
        privilege::to_reach(&self.socket)
    }

    fn runtime(&self, configured: &Runtime, spec: &ContainerSpec) -> Option<Arc<dyn FunctionRuntime>> {
        let Runtime::Docker { image, network, user } = configured else { return None };
        let (host, spec) = (Arc::clone(&self.host), spec.clone());
        Some(Arc::new(DockerRuntime {
            host,
            spec,
            image: image.clone(),
            network: network.as_str().to_owned(),
            user: user.clone(),
        }))
    }

    fn survivors(&self) -> BoxFuture<'_, Result<Vec<Box<dyn Survivor>>, StartError>> {
        Box::pin(survivors::survivors(&self.host))
    }
}

/// Makes Docker containers of one function.
struct DockerRuntime {
    host: Arc<DockerHost>,
    spec: ContainerSpec,
    image: String,
    /// "none" unless the function needs one.
    network: String,
    /// User and group.
    user: String,
}

impl FunctionRuntime for DockerRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<PreparedContainer, StartError>> {
        Box::pin(async move {
            name::check(instance, &self.spec.function)?;
            let prepared = self.create(instance).await;
            if prepared.is_err() {
                let cleaned = directory::remove(&self.host.directory.join(instance));
                tracing::debug!(instance, ?cleaned, "removed what a failed create left");
            }
            prepared
        })
    }

    fn adopt<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Arc<dyn Process>, StartError>> {
        Box::pin(async move {
            name::check(instance, &self.spec.function)?;
            let container = DockerContainer::adopt(&self.host, instance, self.spec.program()).await?;
            Ok(Arc::new(container) as Arc<dyn Process>)
        })
    }
}

impl DockerRuntime {
    async fn create(&self, instance: &str) -> Result<PreparedContainer, StartError> {
        let own = self.host.directory.join(instance);
        let path = own.join(CONTROL_FILE);
        directory::make_private(&own).map_err(StartError::system("making an instance's directory"))?;
        let listener = listen_in(&own).map_err(StartError::system("making a control socket"))?;
        let backends = directory::make_backends(&self.spec, &own)?;
        let init = self.init()?;
        let shown = spec::Shown {
            control: &path,
            backends: backends.as_deref(),
            init: init.is_some().then_some(&*self.spec.init.file),
        };
        let entry_point = match &init {
            Some(contract) => {
                let command = self.host.api.command(&self.image, &self.spec.command).await?;
                Some(self.spec.init.arguments(contract, &self.spec.adapted(&command)))
            }
            None => None,
        };
        let body = spec::body(self, instance, shown, entry_point);
        let id = self.host.api.create(instance, &self.image, body).await?;
        let container = DockerContainer::created(&self.host, instance, self.spec.program(), id);
        if init.is_some()
            && let Err(error) = container.start_ahead(&listener).await
        {
            let removed = container.remove().await;
            tracing::debug!(instance, ?removed, "removed a container whose init did not start");
            return Err(error);
        }
        Ok(PreparedContainer { control: ControlEnd::Listening(listener), process: Arc::new(container) })
    }

    /// What the init does, unless there is none. Without it a container is started at its release, which takes the daemon
    /// some hundred milliseconds; the init waits in a container that was started ahead.
    fn init(&self) -> Result<Option<Vec<String>>, StartError> {
        if self.spec.init_file()?.is_some() {
            return Ok(Some(self.spec.init.contract.clone()));
        }
        Ok(self.spec.init.file.is_file().then(|| vec![SPEAKS_ITSELF.to_owned()]))
    }
}

/// The directory is for root only; in the container any user may connect.
///
/// The path of a unix socket has at most 107 bytes (unix(7)); through the open
/// directory it is short, however long the names are.
fn listen_in(directory: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    // Older kernels cannot.
    let _ = headstart_wire::refuse_descriptors(&listener);
    let directory = fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{CONTROL_FILE}", directory.as_raw_fd());
    bind(listener.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}
