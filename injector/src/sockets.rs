//! Sockets on which drivers that know nothing of this crate find the backends of one instance.
//!
//! ```text
//! driver ── connects ──> NAME/.s.PGSQL.5432 ── its login is answered here ──> a connection of the pool
//!        <────────────────── from then on everything is passed on ───────────────────>
//! ```
//!
//! For drivers that know only TCP the caller adds listeners that only the instance can reach.
//!
//! Each client has a connection of its own, which ends with it. Passwords stay here: every client that can connect is
//! admitted, so only the instance may see the directory.

mod client;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backend::{BoxFuture, LoginVariant, Stream};
use crate::{Lease, LeaseError, LeaseSlot, Pool, Session};
pub(crate) use client::{CancelKey, CancelRegistration, ClientSession};

/// Pause after a failed accept. The usual error, too many open files, ends only when something is closed.
const PAUSE: Duration = Duration::from_millis(100);

/// Clients of one instance that are told at a time that there are too many. Further ones are only disconnected.
const TURNED_AWAY_MAX: usize = 16;

/// The target of the log lines that say which instance has which connection.
pub const AUDIT: &str = "headstart::audit";

/// The sockets of one instance. Dropping it ends every connection that was made through them.
#[derive(Debug)]
pub struct Sockets {
    sockets: Vec<Arc<BackendSocket>>,
    places: Places,
    tasks: JoinSet<()>,
}

/// How many clients of one instance may be connected.
#[derive(Debug, Clone)]
struct Places {
    served: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
}

impl Sockets {
    /// Listens below `directory`, for `instance` of this function: for each pool in a directory of its name. A socket that
    /// is there is replaced. At most `clients_max` clients are connected at a time, over all pools. Clients are served on
    /// the runtime of their pool.
    ///
    /// # Errors
    /// When a directory or a socket cannot be made, or a pool is not started.
    pub fn listen(
        function: &str,
        instance: &str,
        directory: &Path,
        pools: &[Pool],
        clients_max: usize,
    ) -> io::Result<Self> {
        let (mut sockets, mut tasks) = (Vec::new(), JoinSet::new());
        let places = Places {
            served: Arc::new(Semaphore::new(clients_max)),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY_MAX)),
        };
        let function: Arc<str> = function.into();
        for pool in pools {
            let data = pool.data()?;
            let listener = {
                let _its_reactor = data.enter();
                listen_in(&directory.join(pool.name()), pool.protocol().socket_name())?
            };
            let socket = Arc::new(BackendSocket {
                function: Arc::clone(&function),
                instance: instance.to_owned(),
                pool: pool.clone(),
                first: Mutex::new(None),
                cancels: Mutex::default(),
            });
            tasks.spawn_on(accept(Listener::Unix(listener), Arc::clone(&socket), places.clone()), data);
            sockets.push(socket);
        }
        Ok(Self { sockets, places, tasks })
    }

    /// Serves clients of this listener too, with connections of this backend. The listener must be in a network namespace
    /// that only the instance sees.
    ///
    /// # Errors
    /// When the listener cannot be watched, or there is no such backend.
    pub fn admit(&mut self, backend: &str, listener: std::net::TcpListener) -> io::Result<()> {
        let socket = self.sockets.iter().find(|socket| socket.pool.name() == backend);
        let socket = socket.ok_or_else(|| io::Error::other(format!("there is no backend {backend:?}")))?;
        let data = socket.pool.data()?;
        listener.set_nonblocking(true)?;
        let listener = {
            let _its_reactor = data.enter();
            Listener::Tcp(TcpListener::from_std(listener)?)
        };
        self.tasks.spawn_on(accept(listener, Arc::clone(socket), self.places.clone()), data);
        Ok(())
    }

    /// Clients will come soon: reserves a connection of each backend for the first client, or begins one.
    pub fn expect_clients(&self) {
        for socket in &self.sockets {
            let variant = socket.expected();
            let lease = Box::pin(socket.pool.lease_again(&socket.function, variant.clone()));
            *socket.first.lock().unwrap_or_else(PoisonError::into_inner) = Some((variant, lease));
        }
    }
}

/// The path of a unix socket has at most 107 bytes (unix(7)); through the open directory it is short.
fn listen_in(directory: &Path, name: &str) -> io::Result<UnixListener> {
    // The function runs as another user.
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    match fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let directory = File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let listener = UnixListener::bind(&path)?;
    // Older kernels cannot.
    let _ = headstart_wire::refuse_descriptors(&listener);
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

async fn accept(listener: Listener, socket: Arc<BackendSocket>, places: Places) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(client) => {
                    let socket = Arc::clone(&socket);
                    if let Ok(place) = Arc::clone(&places.served).try_acquire_owned() {
                        clients.spawn(async move {
                            client::serve(client, &socket).await;
                            drop(place);
                        });
                    } else if let Ok(place) = Arc::clone(&places.turned_away).try_acquire_owned() {
                        clients.spawn(async move {
                            socket.pool.protocol().turn_away(client).await;
                            drop(place);
                        });
                    }
                }
                Err(error) => {
                    tracing::error!(backend = socket.pool.name(), "no client can be accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

type LeaseFuture = BoxFuture<'static, Result<Lease, LeaseError>>;

/// One backend of one instance.
pub(crate) struct BackendSocket {
    function: Arc<str>,
    /// For the log.
    instance: String,
    pool: Pool,
    /// Reserved for the first client.
    first: Mutex<Option<(LoginVariant, LeaseFuture)>>,
    /// The connections whose queries clients of this instance can cancel.
    cancels: Mutex<HashMap<CancelKey, Arc<LeaseSlot>>>,
}

impl std::fmt::Debug for BackendSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackendSocket").field("pool", &self.pool.name()).finish_non_exhaustive()
    }
}

impl BackendSocket {
    /// What the next client will probably ask for.
    pub(crate) fn expected(&self) -> LoginVariant {
        self.pool.expected(&self.function)
    }

    /// A connection of this kind for one client.
    pub(crate) async fn lease(
        &self,
        variant: LoginVariant,
    ) -> Result<(Stream, Session, LeaseSlot), LeaseError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((kind, first)) = first
            && kind == variant
            && let Ok(mut lease) = first.await
            && lease.is_good(Instant::now())
        {
            return Ok(lease.into_stream());
        }
        self.pool.lease_again(&self.function, variant).await.map(Lease::into_stream)
    }

    /// Keeps a connection, on which nothing was said since it was leased, for the next client of the function.
    pub(crate) fn give_back(&self, (server, session, slot): (Stream, Session, LeaseSlot)) {
        slot.give_back(&self.function, server, session);
    }

    pub(crate) fn cancels(&self) -> MutexGuard<'_, HashMap<CancelKey, Arc<LeaseSlot>>> {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
