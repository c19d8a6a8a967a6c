//! One backend connection: from the agent, or directly.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use headstart_wire::{Session, TlsSession};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::agent::Granted;
use crate::stream::BackendStream;
#[cfg(feature = "tls")]
use crate::tls::Keys;
use crate::{Error, Function, Reason};

/// A connection that came from the agent, before a driver owns it.
#[derive(Debug)]
pub struct Injected {
    /// The socket: non-blocking, close-on-exec, with nothing left unread. TCP, or
    /// a unix socket where somebody relays into a TLS session: the agent, or a task of this process.
    pub socket: OwnedFd,
    /// What a driver would have learned while logging in.
    pub session: Session,
    /// When it gets too old to be used after a thaw, in [`now_ns`](crate::now_ns) time; none for never.
    pub expires_ns: Option<u64>,
}

/// A backend that is about to be connected to, from [`Function::backend`].
#[must_use = "nothing happens before tcp(), postgres() or socket() is awaited"]
#[derive(Clone)]
pub struct Backend {
    function: Function,
    name: String,
    url: Option<String>,
    wait: Duration,
}

/// Where the connection comes from.
pub(crate) enum Source {
    Injected(Granted),
    Direct { url: String, reason: Reason },
}

impl Backend {
    pub(crate) fn new(function: Function, name: String) -> Self {
        let wait = function.limits().backend_wait;
        Self { function, name, url: None, wait }
    }

    /// Connects here when the agent gives no connection: `tcp://host:port`, or
    /// `postgres://user:password@host/database`. The environment variable
    /// `HEADSTART_BACKEND_<NAME>_URL` (upper case, `_` for everything but letters
    /// and digits) goes before it.
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

    /// A TCP connection on which nothing was said yet.
    ///
    /// # Errors
    /// [`Error::NoConnection`] and [`Error::UnknownBackend`] when there is neither
    /// a grant nor a URL; [`Error::Url`] and [`Error::Connect`] when the URL does
    /// not help; [`Error::WrongKind`] for a backend that is not configured as `tcp`.
    pub async fn tcp(self) -> Result<TcpStream, Error> {
        match self.source().await? {
            Source::Direct { url, reason } => self.connect(&url, reason).await,
            Source::Injected(granted) => {
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

    /// The connection as a stream of plaintext with its session, for an asynchronous driver of your own. Where TLS was
    /// handed over, it is spoken here.
    ///
    /// # Errors
    /// Those of [`socket`](Self::socket).
    pub async fn stream(self) -> Result<(BackendStream, Session), Error> {
        match self.source().await? {
            Source::Injected(granted) => {
                let session = granted.session.clone();
                Ok((self.open(granted)?, session))
            }
            Source::Direct { url, reason } => {
                Ok((BackendStream::tcp(self.connect(&url, reason).await?), Session::Tcp))
            }
        }
    }

    /// The bare descriptor with its session, for a driver of your own. Its
    /// `O_NONBLOCK` is set; clear it for a driver that blocks.
    ///
    /// Where TLS was handed over, a task of the current runtime relays between the descriptor and the server: the
    /// runtime must not be blocked by who uses it.
    ///
    /// Only a `tcp://` URL helps when there is none: nobody logs in here.
    ///
    /// # Errors
    /// Those of [`tcp`](Self::tcp), but never [`Error::WrongKind`]; [`Error::TlsNotBuilt`].
    pub async fn socket(self) -> Result<Injected, Error> {
        match self.source().await? {
            Source::Injected(granted) => self.plain(granted),
            Source::Direct { url, reason } => {
                let stream = self.connect(&url, reason).await?;
                let stream = stream.into_std().map_err(|source| self.descriptor(source))?;
                Ok(Injected { socket: stream.into(), session: Session::Tcp, expires_ns: None })
            }
        }
    }

    /// The agent's connection, or the URL to use instead: the one place where
    /// a fallback is decided and counted.
    pub(crate) async fn source(&self) -> Result<Source, Error> {
        let reason = match self.function.agent() {
            None => Reason::NoAgent,
            Some(agent) => match agent.take(&self.name, self.wait).await {
                Ok(granted) => return Ok(Source::Injected(granted)),
                Err(reason) => reason,
            },
        };
        let variable = url_variable(&self.name);
        let backend = self.name.clone();
        match (std::env::var(&variable).ok().or_else(|| self.url.clone()), reason) {
            (Some(url), reason) => {
                self.function.note_fallback(&backend, &reason);
                Ok(Source::Direct { url, reason })
            }
            (None, Reason::NotConfigured) => {
                let configured = self.function.agent().map(|agent| agent.backends()).unwrap_or_default();
                Err(Error::UnknownBackend { backend, configured })
            }
            (None, reason) => Err(Error::NoConnection { backend, reason, variable }),
        }
    }

    /// The stream of plaintext, whatever it takes.
    pub(crate) fn open(&self, granted: Granted) -> Result<BackendStream, Error> {
        let Granted { socket, tls, .. } = granted;
        #[cfg(feature = "tls")]
        if let (Some(session), Some(agent)) = (&tls, self.function.agent()) {
            let later = Keys::new(Arc::clone(agent), session.connection, self.wait);
            return BackendStream::tls(socket, session, later).map_err(|source| self.descriptor(source));
        }
        if needs_tls(tls.as_deref()) {
            return Err(Error::TlsNotBuilt { backend: self.name.clone() });
        }
        BackendStream::adopt(socket).map_err(|source| self.descriptor(source))
    }

    /// A descriptor of plaintext.
    fn plain(&self, granted: Granted) -> Result<Injected, Error> {
        if !needs_tls(granted.tls.as_deref()) {
            let Granted { socket, session, expires_ns, .. } = granted;
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

/// Without the URL: it may contain a password.
impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("name", &self.name).field("wait", &self.wait).finish_non_exhaustive()
    }
}

/// Whether TLS is to be spoken on the socket, by this process.
fn needs_tls(session: Option<&TlsSession>) -> bool {
    session.is_some_and(|session| session.keys.is_some())
}

fn url_variable(backend: &str) -> String {
    let name = backend.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    format!("HEADSTART_BACKEND_{}_URL", name.collect::<String>())
}

#[cfg(test)]
mod tests;
