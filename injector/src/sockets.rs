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

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional, split};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::backend::{BoxFuture, Goodbye, Stream};
use crate::{Lease, LeaseError, LeaseSlot, Pool, Session};

/// After an error that only others can end, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a session may take to become what it was.
const CLEAN_LIMIT: Duration = Duration::from_secs(5);

/// What is passed on at a time.
const CHUNK_BYTES: usize = 8 * 1024;

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
    /// Listens below `directory`, for the instance `owner` of this function: for each pool in a directory of its name. A
    /// socket that is there is replaced. At most `clients_max` clients are connected at a time, over all pools.
    ///
    /// Its clients are served on the runtime of the pool.
    ///
    /// # Errors
    /// When a directory or a socket cannot be made, or a pool is not started.
    pub fn listen(
        function: &str,
        owner: &str,
        directory: &Path,
        pools: &[Pool],
        clients_max: usize,
    ) -> io::Result<Self> {
        let (mut doors, mut tasks) = (Vec::new(), JoinSet::new());
        let places = Arc::new(Semaphore::new(clients_max));
        let function: Arc<str> = function.into();
        for pool in pools {
            let data = pool.data()?;
            let listener = {
                let _its_reactor = data.enter();
                listen_in(&directory.join(pool.name()), pool.protocol().socket_name())?
            };
            let door = Arc::new(Door {
                function: Arc::clone(&function),
                owner: owner.to_owned(),
                pool: pool.clone(),
                first: Mutex::new(None),
                cancels: Mutex::default(),
            });
            tasks.spawn_on(accept(Listener::Unix(listener), Arc::clone(&door), Arc::clone(&places)), data);
            doors.push(door);
        }
        Ok(Self { doors, places, tasks })
    }

    /// The clients that this listener has are for the backend with this name. It must be in a network namespace that
    /// only the instance sees.
    ///
    /// # Errors
    /// When it cannot be watched, or there is no such backend.
    pub fn admit(&mut self, backend: &str, listener: std::net::TcpListener) -> io::Result<()> {
        let door = self.doors.iter().find(|door| door.pool.name() == backend);
        let door = door.ok_or_else(|| io::Error::other(format!("there is no backend {backend:?}")))?;
        let data = door.pool.data()?;
        listener.set_nonblocking(true)?;
        let listener = {
            let _its_reactor = data.enter();
            Listener::Tcp(TcpListener::from_std(listener)?)
        };
        self.tasks.spawn_on(accept(listener, Arc::clone(door), Arc::clone(&self.places)), data);
        Ok(())
    }

    /// Clients will come soon: reserves a connection of each backend for the first, or begins one.
    pub fn expect_clients(&self) {
        for door in &self.doors {
            let lease = Box::pin(door.pool.lease_for(Some(&door.function)));
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
    let protocol = door.pool.protocol();
    let Some(mut admitted) = protocol.admit(&mut client, door).await else { return };
    let (instance, backend) = (&door.owner, door.pool.name());
    let process_id = admitted.key.as_ref().map(|registered| registered.key.0);
    tracing::info!(target: AUDIT, instance, backend, process_id, "connection for a client of a socket");
    // Either side may end at any time.
    match protocol.goodbye().filter(|_| door.pool.recycles()) {
        Some(goodbye) => {
            if pass_on(&mut client, &mut admitted.server, goodbye).await {
                drop(client);
                admitted.recycle(door).await;
            }
        }
        None => drop(copy_bidirectional(&mut client, &mut admitted.server).await),
    }
}

/// Passes everything on but the client's goodbye. Whether it said one.
async fn pass_on(client: &mut Stream, server: &mut Stream, goodbye: Box<dyn Goodbye>) -> bool {
    let (mut from_client, mut to_client) = split(client);
    let (mut from_server, mut to_server) = split(server);
    let goodbye = Mutex::new(goodbye);
    let goodbye = || goodbye.lock().unwrap_or_else(PoisonError::into_inner);
    let up = async {
        let mut buf = vec![0; CHUNK_BYTES];
        loop {
            let bytes = from_client.read(&mut buf).await?;
            let end = goodbye().find(&buf[..bytes]);
            to_server.write_all(&buf[..end.unwrap_or(bytes)]).await?;
            to_server.flush().await?;
            if bytes == 0 || end.is_some() {
                return io::Result::Ok(end.is_some() || goodbye().is_through());
            }
        }
    };
    let down = async {
        let mut buf = vec![0; CHUNK_BYTES];
        loop {
            let bytes = from_server.read(&mut buf).await?;
            if bytes == 0 {
                return io::Result::Ok(());
            }
            goodbye().answered(&buf[..bytes]);
            to_client.write_all(&buf[..bytes]).await?;
            to_client.flush().await?;
        }
    };
    tokio::select! {
        // Both may have ended: a session whose server has is of no use.
        biased;
        _ = down => false,
        said = up => said.unwrap_or(false),
    }
}

/// A client's connection to the server, which ends when this is dropped.
pub(crate) struct Admitted<'a> {
    pub(crate) server: Stream,
    /// As it was after the login.
    pub(crate) session: Session,
    pub(crate) slot: Arc<LeaseSlot>,
    pub(crate) key: Option<Registered<'a>>,
}

/// The key with which a client can cancel what it does, as long as this lives.
pub(crate) struct Registered<'a> {
    door: &'a Door,
    pub(crate) key: CancelKey,
}

impl<'a> Registered<'a> {
    pub(crate) fn new(door: &'a Door, key: CancelKey, slot: &Arc<LeaseSlot>) -> Self {
        door.cancels().insert(key, Arc::clone(slot));
        Self { door, key }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.door.cancels().remove(&self.key);
    }
}

impl Admitted<'_> {
    /// For the next client of the same function, if the session can be cleaned.
    async fn recycle(self, door: &Door) {
        let Self { mut server, session, slot, key } = self;
        drop(key);
        // Somebody may be cancelling what it did, which could hit the next one.
        let Some(slot) = Arc::into_inner(slot) else { return };
        match timeout(CLEAN_LIMIT, door.pool.protocol().clean(&mut server)).await {
            Ok(Ok(())) => slot.recycle(&door.function, server, session),
            Ok(Err(cause)) => tracing::debug!(backend = door.pool.name(), "not used again: {cause}"),
            Err(_) => tracing::debug!(backend = door.pool.name(), "not used again: cleaning takes too long"),
        }
    }
}

/// Process and secret, as a client was told them. The secret is not the server's.
pub(crate) type CancelKey = (i32, i32);

type Begun = BoxFuture<'static, Result<Lease, LeaseError>>;

/// One backend of one instance.
pub(crate) struct Door {
    function: Arc<str>,
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
        self.pool.lease_for(Some(&self.function)).await.map(Lease::into_stream)
    }

    pub(crate) fn cancels(&self) -> std::sync::MutexGuard<'_, HashMap<CancelKey, Arc<LeaseSlot>>> {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
