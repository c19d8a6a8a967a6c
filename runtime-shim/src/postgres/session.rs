//! A PostgreSQL session that is there when it is needed: dead connections are replaced.

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use headstart_wire::ToAgent;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::{Connected, Lent};
use crate::rest::{BoxFuture, Session};
use crate::{Backend, Error, now_ns, report};

/// How long a connection may take to say goodbye to its server.
const GOODBYE_WAIT: Duration = Duration::from_millis(500);

/// A PostgreSQL session, from [`Backend::session`]. Clones are the same.
#[derive(Clone)]
pub struct PostgresSession(Arc<Inner>);

struct Inner {
    backend: Backend,
    held: Mutex<Option<Held>>,
}

struct Held {
    client: Arc<Client>,
    task: tokio::task::JoinHandle<()>,
    lent: Option<Lent>,
}

impl Backend {
    /// A PostgreSQL session that outlives its connections: [`PostgresSession::client`] has always a living one. After a
    /// thaw it has looked before anybody else can: a connection that the server has ended meanwhile, or that is older
    /// than the agent's pool allows, costs no request.
    ///
    /// # Errors
    /// Those of [`postgres`](Self::postgres), for the first connection.
    pub async fn session(self) -> Result<PostgresSession, Error> {
        let held = Held::new(self.connect_postgres().await?);
        let inner = Arc::new(Inner { backend: self, held: Mutex::new(Some(held)) });
        let weak: Weak<dyn Session> = Arc::<Inner>::downgrade(&inner);
        inner.backend.function().rest().add(weak);
        Ok(PostgresSession(inner))
    }
}

impl PostgresSession {
    /// The client of the present connection; of a new one when that has ended. Do not keep it longer than for a
    /// request: it would not be replaced.
    ///
    /// # Errors
    /// Those of [`Backend::postgres`].
    pub async fn client(&self) -> Result<Arc<Client>, Error> {
        let mut held = self.0.held.lock().await;
        if let Some(held) = &*held
            && !held.client.is_closed()
        {
            return Ok(Arc::clone(&held.client));
        }
        self.0.replace(&mut held).await
    }
}

impl Inner {
    async fn replace(&self, held: &mut Option<Held>) -> Result<Arc<Client>, Error> {
        self.close(held.take()).await;
        let new = Held::new(self.backend.connect_postgres().await?);
        Ok(Arc::clone(&held.insert(new).client))
    }

    /// Closes a connection, and gives the agent its place back.
    async fn close(&self, held: Option<Held>) {
        let Some(Held { client, mut task, lent }) = held else { return };
        drop(client);
        // Somebody may hold the client yet; the connection goes all the same.
        if timeout(GOODBYE_WAIT, &mut task).await.is_err() {
            task.abort();
            let _ = task.await;
        }
        if let Some(Lent { connection, .. }) = lent {
            let backend = self.backend.name().to_owned();
            self.backend.function().tell(&ToAgent::Returned { backend, connection });
        }
    }
}

impl Session for Inner {
    fn refresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut held = self.held.lock().await;
            if held.as_ref().is_some_and(Held::is_usable) {
                return;
            }
            if let Err(error) = self.replace(&mut held).await {
                report::line(&report::chain(&error));
            }
        })
    }

    fn give_back(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let held = self.held.lock().await.take();
            self.close(held).await;
        })
    }
}

impl Held {
    fn new(connected: Connected) -> Self {
        let Connected { client, task, lent } = connected;
        Self { client: Arc::new(client), task, lent }
    }

    /// Judged by the socket itself: the driver's task may not have run since the server ended it.
    fn is_usable(&self) -> bool {
        !self.client.is_closed() && self.lent.as_ref().is_none_or(Lent::is_usable)
    }
}

impl Lent {
    /// Young enough, open, and with nothing to read: nobody has asked, so it could only be a goodbye.
    fn is_usable(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let silent = recv(self.probe.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN);
        silent && self.expires_ns.is_none_or(|expires_ns| now_ns() < expires_ns)
    }
}

impl fmt::Debug for PostgresSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSession").field("backend", &self.0.backend).finish_non_exhaustive()
    }
}
