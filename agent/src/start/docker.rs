//! Containers made by a Docker daemon, over its API socket.
//!
//! The container is created ahead; letting it go is the API's *start*, which
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
mod left;

pub(super) use left::survivors;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use tokio::sync::{Mutex, watch};

use self::api::{Api, Output};
use super::{BoxFuture, ContainerSpec, Control, Exit, Parked, Process, Runtime, StartError, name};

/// One directory per instance is in here, below the state directory.
const DIRECTORY: &str = "docker";

/// The control socket in an instance's directory.
const CONTROL_FILE: &str = "control.sock";

/// Tells the containers of one agent from those of another.
const STATE_DIR_LABEL: &str = "headstart.state-dir";

/// Names the instance.
const INSTANCE_LABEL: &str = "headstart.instance";

/// Connections that may wait on a control socket. The shim makes one.
const BACKLOG: i32 = 8;

/// Between attempts to ask a daemon that does not answer how a container ended.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Makes Docker containers of one function.
pub struct Docker {
    node: Arc<Node>,
}

struct Node {
    spec: ContainerSpec,
    image: String,
    network: String,
    api: Api,
    /// One directory per instance, with its control socket.
    directory: PathBuf,
    /// What containers of this node's agent are labelled with.
    state_dir: PathBuf,
}

impl Docker {
    /// A runtime for containers of `image` in `network` ("none" unless the
    /// function needs one), made by the daemon that listens at `socket`.
    #[must_use]
    pub fn new(
        spec: ContainerSpec,
        image: String,
        network: String,
        socket: PathBuf,
        state_dir: &Path,
    ) -> Self {
        let directory = state_dir.join(DIRECTORY);
        let (api, state_dir) = (Api::new(socket), state_dir.to_owned());
        Self { node: Arc::new(Node { spec, image, network, api, directory, state_dir }) }
    }
}

impl Runtime for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn prepare<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Parked, StartError>> {
        Box::pin(async move {
            name::check(instance, &self.node.spec.function)?;
            let prepared = self.node.create(instance).await;
            if prepared.is_err() {
                let cleaned = super::remove_directory(&self.node.directory.join(instance));
                tracing::debug!(instance, ?cleaned, "removed what a failed create left");
            }
            prepared
        })
    }

    fn adopt<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Arc<dyn Process>, StartError>> {
        Box::pin(async move {
            name::check(instance, &self.node.spec.function)?;
            Ok(Arc::new(self.node.adopt(instance).await?) as Arc<dyn Process>)
        })
    }
}

impl Node {
    async fn create(self: &Arc<Self>, instance: &str) -> Result<Parked, StartError> {
        let directory = self.directory.join(instance);
        let path = directory.join(CONTROL_FILE);
        super::private_directory(&directory).map_err(StartError::system("making an instance's directory"))?;
        let listener = listen_in(&directory).map_err(StartError::system("making a control socket"))?;
        let backends = super::make_backends_directory(&self.spec, &directory)?;
        let id = self.api.create(self, instance, &path, backends.as_deref()).await?;
        let container = self.container(instance, id);
        Ok(Parked { control: Control::Listening(listener), process: Arc::new(container) })
    }

    /// One that is created and not let go.
    fn container(self: &Arc<Self>, instance: &str, id: String) -> Container {
        let ended = Arc::new(watch::channel(None).0);
        tokio::spawn(watch_removal(Arc::clone(self), id.clone(), Arc::clone(&ended)));
        Container {
            node: Arc::clone(self),
            instance: instance.to_owned(),
            directory: self.directory.join(instance),
            id,
            ended,
            released: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            removal: Mutex::new(()),
        }
    }

    /// The labels that every container of this function and agent carries.
    fn labels(&self) -> Vec<(&'static str, String)> {
        vec![
            ("headstart.function", self.spec.function.clone()),
            (STATE_DIR_LABEL, self.state_dir.display().to_string()),
        ]
    }
}

/// The directory is for root only; in the container any user may connect.
///
/// The path of a unix socket has at most 107 bytes (unix(7)); through the open
/// directory it is short, however long the names are.
fn listen_in(directory: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let directory = fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{CONTROL_FILE}", directory.as_raw_fd());
    bind(listener.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// A parked container has no process that could end, but somebody may remove it.
async fn watch_removal(node: Arc<Node>, id: String, ended: Arc<watch::Sender<Option<Exit>>>) {
    while let Err(error) = node.api.wait_removed(&id).await {
        tracing::debug!(id, %error, "waiting for a container's removal is interrupted");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    set_killed(&ended);
}

/// Notes that a container is gone, unless it is known how it ended.
fn set_killed(ended: &watch::Sender<Option<Exit>>) {
    ended.send_if_modified(|exit| {
        let unknown = exit.is_none();
        exit.get_or_insert(api::KILLED);
        unknown
    });
}

/// One container.
struct Container {
    node: Arc<Node>,
    instance: String,
    directory: PathBuf,
    id: String,
    ended: Arc<watch::Sender<Option<Exit>>>,
    released: AtomicBool,
    /// It is paused, or about to be: a call of the daemon is saved otherwise.
    frozen: AtomicBool,
    /// Removals take turns.
    removal: Mutex<()>,
}

impl Container {
    /// Follows a started container: its output, and how it ends.
    fn follow(&self, output: Output) {
        let (node, id) = (Arc::clone(&self.node), self.id.clone());
        let instance = self.instance.clone();
        let ended = Arc::clone(&self.ended);
        tokio::spawn(async move {
            let logs = node.api.follow_logs(&id, &node.spec.function, &instance, output);
            let end = async {
                loop {
                    match node.api.wait(&id).await {
                        Ok(exit) => break ended.send_replace(Some(exit)),
                        Err(error) => {
                            tracing::warn!(instance, %error, "waiting for a container is interrupted");
                            tokio::time::sleep(RETRY_PAUSE).await;
                        }
                    }
                }
            };
            tokio::join!(logs, end);
        });
    }

    /// Nothing reaches a frozen container.
    async fn ensure_thawed(&self) {
        if let Err(error) = self.thaw().await {
            tracing::warn!(instance = self.instance, "cannot be thawed: {error}");
        }
    }
}

impl Process for Container {
    fn release(&self) -> BoxFuture<'_, Result<u64, StartError>> {
        Box::pin(async move {
            if self.released.swap(true, Ordering::Relaxed) {
                return Err(StartError::AlreadyReleased);
            }
            let started = self.node.api.start(&self.id, &self.node.spec).await;
            if let Err(error @ StartError::Died { exit }) = started {
                self.ended.send_replace(Some(exit));
                return Err(error);
            }
            started?;
            let exec_ns = headstart_wire::monotonic_ns().map_err(StartError::system("reading the clock"))?;
            self.follow(Output::Whole);
            Ok(exec_ns)
        })
    }

    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(async {
            let mut ended = self.ended.subscribe();
            ended.wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or_default()
        })
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            if let Some(exit) = *self.ended.borrow() {
                return Err(StartError::Freeze { detail: format!("it has ended ({exit})") });
            }
            self.frozen.store(true, Ordering::Relaxed);
            let frozen = self.node.api.pause(&self.id).await;
            if frozen.is_err() {
                self.ensure_thawed().await;
            }
            frozen
        })
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            if self.frozen.load(Ordering::Relaxed) {
                self.node.api.unpause(&self.id).await?;
                self.frozen.store(false, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    fn terminate(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(error) = self.node.api.terminate(&self.id).await {
                tracing::debug!(instance = self.instance, %error, "a container was not asked to stop");
            }
            self.ensure_thawed().await;
        })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async move {
            let _turn = self.removal.lock().await;
            self.ensure_thawed().await;
            self.node.api.remove(&self.id).await?;
            set_killed(&self.ended);
            super::remove_directory(&self.directory)
        })
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn owns(&self, pid: i32) -> bool {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.lines().any(|line| line.contains(&self.id))
    }
}
