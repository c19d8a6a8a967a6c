//! Sockets on which drivers that know nothing of this crate find the backends of one instance.
//!
//! ```text
//! driver ── connects ──> NAME/.s.PGSQL.5432 ── its login is answered here ──> a connection of the pool
//!        <────────────────── from then on everything is passed on ───────────────────>
//! ```
//!
//! For drivers that know only TCP there are listeners that somebody else has made, where only the instance comes.
//!
//! Each client has a connection of its own, which ends with it. Passwords stay here: whoever can connect is admitted,
//! so the directory must be one that only the instance sees.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backend::{BoxFuture, Stream};
use crate::{Lease, LeaseError, LeaseSlot, Pool, Session};

/// After an error that only others can end, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The target of the log's lines about who got which connection.
pub const AUDIT: &str = "headstart::audit";

/// The sockets of one instance. Dropping it ends every connection that was made through them.
#[derive(Debug)]
pub struct Sockets {
    doors: Vec<Arc<Door>>,
    places: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Sockets {
    /// Listens below `directory`, for the instance with the name `owner`: for each pool in a directory of its name. A socket that is there is replaced. At
    /// most `clients_max` clients are connected at a time, over all pools.
    ///
    /// # Errors
    /// When a directory or a socket cannot be made.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn listen(owner: &str, directory: &Path, pools: &[Pool], clients_max: usize) -> io::Result<Self> {
        let (mut doors, mut tasks) = (Vec::new(), JoinSet::new());
        let places = Arc::new(Semaphore::new(clients_max));
        for pool in pools {
            let listener = listen_in(&directory.join(pool.name()), pool.protocol().socket_name())?;
            let door = Arc::new(Door {
                owner: owner.to_owned(),
                pool: pool.clone(),
                first: Mutex::new(None),
                cancels: Mutex::default(),
            });
            tasks.spawn(accept(Listener::Unix(listener), Arc::clone(&door), Arc::clone(&places)));
            doors.push(door);
        }
        Ok(Self { doors, places, tasks })
    }

    /// The clients that this listener has are for the backend with this name. It must be in a network namespace that
    /// only the instance sees.
    ///
    /// # Errors
    /// When it cannot be watched, or there is no such backend.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn admit(&mut self, backend: &str, listener: std::net::TcpListener) -> io::Result<()> {
        let door = self.doors.iter().find(|door| door.pool.name() == backend);
        let door = door.ok_or_else(|| io::Error::other(format!("there is no backend {backend:?}")))?;
        listener.set_nonblocking(true)?;
        let listener = Listener::Tcp(TcpListener::from_std(listener)?);
        self.tasks.spawn(accept(listener, Arc::clone(door), Arc::clone(&self.places)));
        Ok(())
    }

    /// Clients will come soon: reserves a connection of each backend for the first, or begins one.
    pub fn expect_clients(&self) {
        for door in &self.doors {
            let lease = Box::pin(door.pool.lease());
            *door.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease);
        }
    }
}

/// The path of a unix socket has at most 107 bytes (unix(7)); through the open directory it is short.
fn listen_in(directory: &Path, name: &str) -> io::Result<UnixListener> {
    // The function is another user.
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    match fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let directory = File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => listener.accept().await.map(|(client, _)| Stream::Unix(client)),
            Self::Tcp(listener) => {
                let (client, _) = listener.accept().await?;
                client.set_nodelay(true)?;
                Ok(Stream::Tcp(client))
            }
        }
    }
}

async fn accept(listener: Listener, door: Arc<Door>, places: Arc<Semaphore>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(client) => {
                    let place = Arc::clone(&places).try_acquire_owned();
                    let door = Arc::clone(&door);
                    clients.spawn(async move {
                        let protocol = door.pool.protocol();
                        match place {
                            Ok(_place) => serve(client, &door).await,
                            Err(_) => protocol.turn_away(client).await,
                        }
                    });
                }
                Err(error) => {
                    tracing::error!(backend = door.pool.name(), "no client can be accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

async fn serve(mut client: Stream, door: &Door) {
    let Some(mut admitted) = door.pool.protocol().admit(&mut client, door).await else { return };
    let (instance, backend) = (&door.owner, door.pool.name());
    let process_id = admitted.key.as_ref().map(|(_, (process_id, _))| process_id);
    tracing::info!(target: AUDIT, instance, backend, process_id, "connection for a client of a socket");
    // Either side may end at any time.
    let _ = copy_bidirectional(&mut client, &mut admitted.server).await;
}

/// A client's connection to the server, which ends when this is dropped.
pub(crate) struct Admitted<'a> {
    pub(crate) server: Stream,
    pub(crate) _slot: Arc<LeaseSlot>,
    /// With which the client can cancel what it does.
    pub(crate) key: Option<(&'a Door, CancelKey)>,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if let Some((door, key)) = self.key.take() {
            door.cancels().remove(&key);
        }
    }
}

/// Process and secret, as a client was told them. The secret is not the server's.
pub(crate) type CancelKey = (i32, i32);

type Begun = BoxFuture<'static, Result<Lease, LeaseError>>;

/// One backend of one instance.
pub(crate) struct Door {
    /// The instance, for the log.
    owner: String,
    pool: Pool,
    /// Reserved for the first client.
    first: Mutex<Option<Begun>>,
    cancels: Mutex<HashMap<CancelKey, Arc<LeaseSlot>>>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("pool", &self.pool.name()).finish_non_exhaustive()
    }
}

impl Door {
    /// A connection for one client.
    pub(crate) async fn lease(&self) -> Result<(Stream, Session, LeaseSlot), LeaseError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(first) = first
            && let Ok(mut lease) = first.await
            && lease.is_good(Instant::now())
        {
            return Ok(lease.into_stream());
        }
        self.pool.lease().await.map(Lease::into_stream)
    }

    pub(crate) fn cancels(&self) -> std::sync::MutexGuard<'_, HashMap<CancelKey, Arc<LeaseSlot>>> {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
