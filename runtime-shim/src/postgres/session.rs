//! A PostgreSQL session that replaces dead connections.

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

use super::{LeaseProbe, PostgresConnection};
use crate::freeze::{BoxFuture, RenewableSession};
use crate::{Backend, Error, now_ns, report};

/// Longest time for a connection to end its session with the server.
const TERMINATION_WAIT: Duration = Duration::from_millis(500);

/// A PostgreSQL session, from [`Backend::session`]. Clones share it.
#[derive(Clone)]
pub struct PostgresSession(Arc<SharedSession>);

struct SharedSession {
    backend: Backend,
    connection: Mutex<Option<SessionConnection>>,
}

struct SessionConnection {
    client: Arc<Client>,
    task: tokio::task::JoinHandle<()>,
    probe: Option<LeaseProbe>,
}

impl Backend {
    /// A PostgreSQL session that outlives its connections: [`PostgresSession::client`] replaces a dead one. After a thaw it
    /// checks its connection before the function accepts a client, so that no request fails on a connection that the
    /// server has ended meanwhile, or that is older than the agent's pool allows.
    ///
    /// # Errors
    /// Those of [`postgres`](Self::postgres), for the first connection.
    pub async fn session(self) -> Result<PostgresSession, Error> {
        let connection = SessionConnection::new(self.connect_postgres().await?);
        let session = Arc::new(SharedSession { backend: self, connection: Mutex::new(Some(connection)) });
        let weak: Weak<dyn RenewableSession> = Arc::<SharedSession>::downgrade(&session);
        session.backend.function().freeze_hooks().add(weak);
        Ok(PostgresSession(session))
    }
}

impl PostgresSession {
    /// The client of the current connection, or of a new one when that has ended. Keep it for one request only, because
    /// a client that you keep is not replaced.
    ///
    /// # Errors
    /// Those of [`Backend::postgres`].
    pub async fn client(&self) -> Result<Arc<Client>, Error> {
        let mut current = self.0.connection.lock().await;
        if let Some(connection) = &*current
            && !connection.client.is_closed()
        {
            return Ok(Arc::clone(&connection.client));
        }
        self.0.replace(&mut current).await
    }
}

impl SharedSession {
    async fn replace(&self, current: &mut Option<SessionConnection>) -> Result<Arc<Client>, Error> {
        self.close(current.take()).await;
        let new = SessionConnection::new(self.backend.connect_postgres().await?);
        Ok(Arc::clone(&current.insert(new).client))
    }

    /// Closes a connection, and returns its place in the agent's pool.
    async fn close(&self, connection: Option<SessionConnection>) {
        let Some(SessionConnection { client, mut task, probe }) = connection else { return };
        drop(client);
        // A request may still hold the client; the connection closes anyway.
        if timeout(TERMINATION_WAIT, &mut task).await.is_err() {
            task.abort();
            let _ = task.await;
        }
        if let Some(LeaseProbe { connection, .. }) = probe {
            let backend = self.backend.name().to_owned();
            self.backend.function().tell(&ToAgent::Returned { backend, connection });
        }
    }
}

impl RenewableSession for SharedSession {
    fn refresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut current = self.connection.lock().await;
            if current.as_ref().is_some_and(SessionConnection::is_usable) {
                return;
            }
            if let Err(error) = self.replace(&mut current).await {
                report::line(&report::chain(&error));
            }
        })
    }

    fn give_back(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let connection = self.connection.lock().await.take();
            self.close(connection).await;
        })
    }
}

impl SessionConnection {
    fn new(connected: PostgresConnection) -> Self {
        let PostgresConnection { client, task, probe } = connected;
        Self { client: Arc::new(client), task, probe }
    }

    /// Checks the socket itself, because the driver's task may not have run since the server closed it.
    fn is_usable(&self) -> bool {
        !self.client.is_closed() && self.probe.as_ref().is_none_or(LeaseProbe::is_usable)
    }
}

impl LeaseProbe {
    /// Whether it is young enough, open, and has nothing to read: without a query, a message can only be the server's
    /// end of the session.
    fn is_usable(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let silent = recv(self.socket.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN);
        silent && self.expires_ns.is_none_or(|expires_ns| now_ns() < expires_ns)
    }
}

impl fmt::Debug for PostgresSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSession").field("backend", &self.0.backend).finish_non_exhaustive()
    }
}
