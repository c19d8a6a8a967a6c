//! One backend connection, from the agent or made directly.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use headstart_wire::{Session, TlsSession};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::agent::GrantedConnection;
use crate::stream::BackendStream;
#[cfg(feature = "tls")]
use crate::tls::KeyUpdates;
use crate::{Error, Function, Reason};

/// A connection that came from the agent, before a driver owns it.
#[derive(Debug)]
pub struct Injected {
    /// The socket: non-blocking, close-on-exec, with nothing left to read. TCP, or a
    /// unix socket if the agent or a task of this process relays into a TLS session.
    pub socket: OwnedFd,
    /// What a driver learns while it logs in.
    pub session: Session,
    /// The time from which it is too old for use after a thaw, in [`now_ns`](crate::now_ns) time; none for never.
    pub expires_ns: Option<u64>,
}

/// A backend before it is connected, from [`Function::backend`].
#[must_use = "nothing happens before tcp(), postgres() or socket() is awaited"]
#[derive(Clone)]
pub struct Backend {
    function: Function,
    name: String,
    url: Option<String>,
    wait: Duration,
}

/// The origin of a connection.
pub(crate) enum ConnectionSource {
    Injected(GrantedConnection),
    Direct { url: String, reason: Reason },
}

impl Backend {
    pub(crate) fn new(function: Function, name: String) -> Self {
        let wait = function.limits().backend_wait;
        Self { function, name, url: None, wait }
    }

    /// Sets the URL for a direct connection when the agent has none: `tcp://host:port`, or
    /// `postgres://user:password@host/database`. The environment variable
    /// `HEADSTART_BACKEND_<NAME>_URL` (upper case, `_` for everything but letters
    /// and digits) overrides it.
    pub fn or_url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Waits this long for a grant of the agent, and as long again for a direct
    /// connection, instead of [`Limits::backend_wait`](crate::Limits::backend_wait).
    pub fn wait_at_most(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// A TCP connection without any traffic so far.
    ///
    /// # Errors
    /// [`Error::NoConnection`] and [`Error::UnknownBackend`] when there is neither
    /// a grant nor a URL; [`Error::Url`] and [`Error::Connect`] when the direct
    /// connection fails; [`Error::WrongKind`] for a backend that is not configured as `tcp`.
    pub async fn tcp(self) -> Result<TcpStream, Error> {
        match self.source().await? {
            ConnectionSource::Direct { url, reason } => self.connect(&url, reason).await,
            ConnectionSource::Injected(granted) => {
                if granted.session != Session::Tcp {
                    return Err(self.wrong_kind(&granted.session));
                }
                let stream = std::net::TcpStream::from(self.plain(granted)?.socket);
                stream
                    .set_nonblocking(true)
                    .and_then(|()| TcpStream::from_std(stream))
                    .map_err(|source| self.descriptor(source))
            }
        }
    }

    /// The connection as a stream of plaintext with its session, for an asynchronous driver of your own. The stream
    /// encrypts and decrypts a TLS session that the agent handed over.
    ///
    /// # Errors
    /// Those of [`socket`](Self::socket).
    pub async fn stream(self) -> Result<(BackendStream, Session), Error> {
        match self.source().await? {
            ConnectionSource::Injected(granted) => {
                let session = granted.session.clone();
                Ok((self.open(granted)?, session))
            }
            ConnectionSource::Direct { url, reason } => {
                Ok((BackendStream::tcp(self.connect(&url, reason).await?), Session::Tcp))
            }
        }
    }

    /// The bare descriptor with its session, for a driver of your own. Its
    /// `O_NONBLOCK` is set; clear it for a driver that blocks.
    ///
    /// If the agent handed a TLS session over, a task of the current runtime relays between the descriptor and the
    /// server, so the user of the descriptor must not block the runtime.
    ///
    /// Without a grant, only a `tcp://` URL is used, because this method does not log in.
    ///
    /// # Errors
    /// Those of [`tcp`](Self::tcp), but never [`Error::WrongKind`]; [`Error::TlsNotBuilt`].
    pub async fn socket(self) -> Result<Injected, Error> {
        match self.source().await? {
            ConnectionSource::Injected(granted) => self.plain(granted),
            ConnectionSource::Direct { url, reason } => {
                let stream = self.connect(&url, reason).await?;
                let stream = stream.into_std().map_err(|source| self.descriptor(source))?;
                Ok(Injected { socket: stream.into(), session: Session::Tcp, expires_ns: None })
            }
        }
    }

    /// The agent's connection, or the URL to use instead. Only this method decides on
    /// fallbacks and counts them.
    pub(crate) async fn source(&self) -> Result<ConnectionSource, Error> {
        let reason = match self.function.agent() {
            None => Reason::NoAgent,
            Some(agent) => match agent.take(&self.name, self.wait).await {
                Ok(granted) => return Ok(ConnectionSource::Injected(granted)),
                Err(reason) => reason,
            },
        };
        let variable = url_variable(&self.name);
        let backend = self.name.clone();
        match (std::env::var(&variable).ok().or_else(|| self.url.clone()), reason) {
            (Some(url), reason) => {
                self.function.note_fallback(&backend, &reason);
                Ok(ConnectionSource::Direct { url, reason })
            }
            (None, Reason::NotConfigured) => {
                let configured = self.function.agent().map(|agent| agent.backends()).unwrap_or_default();
                Err(Error::UnknownBackend { backend, configured })
            }
            (None, reason) => Err(Error::NoConnection { backend, reason, variable }),
        }
    }

    /// The stream of plaintext, through TLS if necessary.
    pub(crate) fn open(&self, granted: GrantedConnection) -> Result<BackendStream, Error> {
        let GrantedConnection { socket, tls, .. } = granted;
        #[cfg(feature = "tls")]
        if let (Some(session), Some(agent)) = (&tls, self.function.agent()) {
            let later = KeyUpdates::new(Arc::clone(agent), session.connection, self.wait);
            return BackendStream::tls(socket, session, later).map_err(|source| self.descriptor(source));
        }
        if needs_tls(tls.as_deref()) {
            return Err(Error::TlsNotBuilt { backend: self.name.clone() });
        }
        BackendStream::adopt(socket).map_err(|source| self.descriptor(source))
    }

    /// A descriptor of plaintext.
    fn plain(&self, granted: GrantedConnection) -> Result<Injected, Error> {
        if !needs_tls(granted.tls.as_deref()) {
            let GrantedConnection { socket, session, expires_ns, .. } = granted;
            return Ok(Injected { socket, session, expires_ns });
        }
        let (session, expires_ns) = (granted.session.clone(), granted.expires_ns);
        let stream = self.open(granted)?;
        let socket = stream.relay().map_err(|source| self.descriptor(source))?;
        Ok(Injected { socket, session, expires_ns })
    }

    async fn connect(&self, url: &str, reason: Reason) -> Result<TcpStream, Error> {
        let address = url
            .strip_prefix("tcp://")
            .map(|rest| rest.trim_end_matches('/'))
            .ok_or_else(|| self.bad_url("does not begin with tcp://"))?;
        let connected = timeout(self.wait, TcpStream::connect(address)).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|source| Error::Connect {
            backend: self.name.clone(),
            reason,
            source,
        })
    }

    pub(crate) fn bad_url(&self, problem: &'static str) -> Error {
        Error::Url { backend: self.name.clone(), problem }
    }

    pub(crate) fn descriptor(&self, source: io::Error) -> Error {
        Error::Descriptor { backend: self.name.clone(), source }
    }

    pub(crate) fn wrong_kind(&self, session: &Session) -> Error {
        Error::WrongKind { backend: self.name.clone(), kind: session.kind() }
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn function(&self) -> &Function {
        &self.function
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn wait(&self) -> Duration {
        self.wait
    }
}

/// Without the URL, because it may contain a password.
impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("name", &self.name).field("wait", &self.wait).finish_non_exhaustive()
    }
}

/// Whether this process must encrypt and decrypt on the socket.
fn needs_tls(session: Option<&TlsSession>) -> bool {
    session.is_some_and(|session| session.keys.is_some())
}

fn url_variable(backend: &str) -> String {
    let name = backend.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    format!("HEADSTART_BACKEND_{}_URL", name.collect::<String>())
}

#[cfg(test)]
mod tests;
