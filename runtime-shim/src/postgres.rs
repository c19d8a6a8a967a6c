//! A tokio-postgres client over a session that the agent logged in.

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

use crate::agent::Granted;
use crate::backend::Source;
use crate::{Backend, Error, Reason, report};
use replay::Replay;
pub use session::PostgresSession;

impl Backend {
    /// A PostgreSQL client. Its connection runs in a task of the current runtime
    /// and ends with the client. When the server ends it, and after a thaw, it is not replaced: see
    /// [`session`](Self::session).
    ///
    /// The agent has logged in: the driver gets a replay of that login, and the
    /// server sees the first query at once. Role, database and parameters are
    /// those of the agent's configuration; the driver needs `client_encoding` UTF8.
    ///
    /// Queries cannot be cancelled through [`Client::cancel_token`]: the key of the
    /// session stays in the agent. Use `statement_timeout`.
    ///
    /// A direct connection, from a `postgres://` URL, is made without TLS.
    ///
    /// # Errors
    /// Those of [`tcp`](Self::tcp), and [`Error::Postgres`] with the driver's answer.
    pub async fn postgres(self) -> Result<Client, Error> {
        Ok(self.connect_postgres().await?.client)
    }

    async fn connect_postgres(&self) -> Result<Connected, Error> {
        match self.source().await? {
            Source::Injected(granted) => self.adopt(granted).await,
            Source::Direct { url, reason } => self.log_in(&url, reason).await,
        }
    }

    async fn adopt(&self, granted: Granted) -> Result<Connected, Error> {
        let Session::Postgres { process_id, user, database, parameters } = &granted.session else {
            return Err(self.wrong_kind(&granted.session));
        };
        let mut config = Config::new();
        config.user(user).dbname(database);
        let greeting = replay::greeting(*process_id, parameters);
        let probe = granted.socket.try_clone().map_err(|source| self.descriptor(source))?;
        let connection = granted.tls.as_ref().map(|keys| keys.connection);
        let lent = Lent { probe, expires_ns: granted.expires_ns, connection };
        let connected = self.talk(Replay::new(self.open(granted)?, greeting), &config).await?;
        Ok(Connected { lent: Some(lent), ..connected })
    }

    async fn talk<S>(&self, stream: S, config: &Config) -> Result<Connected, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connected = config.connect_raw(stream, NoTls).await;
        let (client, connection) = connected.map_err(|source| self.driver(source))?;
        Ok(Connected { client, task: self.drive(connection), lent: None })
    }

    async fn log_in(&self, url: &str, reason: Reason) -> Result<Connected, Error> {
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(self.bad_url("does not begin with postgres://"));
        }
        // The driver's own text is left out: it can quote parts of the URL.
        let config: Config = url.parse().map_err(|_| self.bad_url("is not a valid PostgreSQL URL"))?;
        let connected = timeout(self.wait(), config.connect(NoTls)).await.map_err(|_| Error::Connect {
            backend: self.name().to_owned(),
            reason,
            source: io::ErrorKind::TimedOut.into(),
        })?;
        let (client, connection) = connected.map_err(|source| self.driver(source))?;
        Ok(Connected { client, task: self.drive(connection), lent: None })
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

/// A client, and what is behind it.
struct Connected {
    client: Client,
    /// Ends with the client, or when the server ends it.
    task: JoinHandle<()>,
    /// Of a connection that came from the agent.
    lent: Option<Lent>,
}

/// By which a connection of the agent is judged.
struct Lent {
    /// The same socket: to look at it needs no driver.
    probe: OwnedFd,
    expires_ns: Option<u64>,
    /// Its name for the agent, which has more of its TLS session.
    connection: Option<u64>,
}

#[cfg(test)]
mod tests;
