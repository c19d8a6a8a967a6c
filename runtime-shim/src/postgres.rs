//! A tokio-postgres client on a session that the agent has logged in.

mod replay;
mod session;

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;

use headstart_wire::Session;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls};

use crate::agent::GrantedConnection;
use crate::backend::ConnectionSource;
use crate::{Backend, Error, Reason, report};
use replay::Replay;
pub use session::PostgresSession;

impl Backend {
    /// A PostgreSQL client. Its connection runs in a task of the current runtime
    /// and ends with the client. It is not replaced when the server ends it, nor after a thaw: for that use
    /// [`session`](Self::session).
    ///
    /// The agent has logged in. The driver gets a replay of that login, and the first
    /// message to the server is the first query. Role, database and parameters are
    /// those of the agent's configuration; the driver needs `client_encoding` UTF8.
    ///
    /// [`Client::cancel_token`] cannot cancel queries, because the session's key stays in
    /// the agent. Use `statement_timeout`.
    ///
    /// A direct connection from a `postgres://` URL has no TLS.
    ///
    /// # Errors
    /// Those of [`tcp`](Self::tcp), and [`Error::Postgres`] with the driver's answer.
    pub async fn postgres(self) -> Result<Client, Error> {
        Ok(self.connect_postgres().await?.client)
    }

    async fn connect_postgres(&self) -> Result<PostgresConnection, Error> {
        match self.source().await? {
            ConnectionSource::Injected(granted) => self.adopt(granted).await,
            ConnectionSource::Direct { url, reason } => self.log_in(&url, reason).await,
        }
    }

    async fn adopt(&self, granted: GrantedConnection) -> Result<PostgresConnection, Error> {
        let Session::Postgres { process_id, user, database, parameters } = &granted.session else {
            return Err(self.wrong_kind(&granted.session));
        };
        let mut config = Config::new();
        config.user(user).dbname(database);
        let greeting = replay::greeting(*process_id, parameters);
        let socket = granted.socket.try_clone().map_err(|source| self.descriptor(source))?;
        let connection = granted.tls.as_ref().map(|keys| keys.connection);
        let probe = LeaseProbe { socket, expires_ns: granted.expires_ns, connection };
        let connected = self.talk(Replay::new(self.open(granted)?, greeting), &config).await?;
        Ok(PostgresConnection { probe: Some(probe), ..connected })
    }

    async fn talk<S>(&self, stream: S, config: &Config) -> Result<PostgresConnection, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connected = config.connect_raw(stream, NoTls).await;
        let (client, connection) = connected.map_err(|source| self.driver(source))?;
        Ok(PostgresConnection { client, task: self.drive(connection), probe: None })
    }

    async fn log_in(&self, url: &str, reason: Reason) -> Result<PostgresConnection, Error> {
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(self.bad_url("does not begin with postgres://"));
        }
        // The driver's error is left out, because it can quote parts of the URL.
        let config: Config = url.parse().map_err(|_| self.bad_url("is not a valid PostgreSQL URL"))?;
        let connected = timeout(self.wait(), config.connect(NoTls)).await.map_err(|_| Error::Connect {
            backend: self.name().to_owned(),
            reason,
            source: io::ErrorKind::TimedOut.into(),
        })?;
        let (client, connection) = connected.map_err(|source| self.driver(source))?;
        Ok(PostgresConnection { client, task: self.drive(connection), probe: None })
    }

    fn drive<C>(&self, connection: C) -> JoinHandle<()>
    where
        C: Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
    {
        let name = self.name().to_owned();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                report::line(&format!("backend {name:?} ended: {}", report::chain(&error)));
            }
        })
    }

    fn driver(&self, source: tokio_postgres::Error) -> Error {
        Error::Postgres { backend: self.name().to_owned(), source }
    }
}

/// A client and its connection.
struct PostgresConnection {
    client: Client,
    /// Ends with the client, or when the server ends it.
    task: JoinHandle<()>,
    /// For a connection that came from the agent.
    probe: Option<LeaseProbe>,
}

/// What decides whether a connection of the agent is still usable.
struct LeaseProbe {
    /// The same socket, to check it without the driver.
    socket: OwnedFd,
    expires_ns: Option<u64>,
    /// The agent's number for the connection, if the agent keeps keys of its TLS session.
    connection: Option<u64>,
}

#[cfg(test)]
mod tests;
