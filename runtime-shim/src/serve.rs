//! The accept loop: ready, accept, and a bounded end.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::time::Duration;

use nix::errno::Errno;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::{Connection, Error, Function, report};

/// Where to listen without an agent; the first that is set counts.
const LISTEN_ENV: &str = "HEADSTART_LISTEN";
/// A port on all addresses, as most container platforms set it.
const PORT_ENV: &str = "PORT";

/// Pause before accepting again when the process ran out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

impl Function {
    /// Serves every client connection with `handler`, each in a task of its own,
    /// until SIGTERM; the whole of a function that does not speak HTTP.
    ///
    /// Tells the agent that the function is ready, and when it has served its
    /// first response. On SIGTERM it stops accepting, lets the handlers finish
    /// for [`Limits::drain_wait`](crate::Limits::drain_wait), then cuts off those
    /// that did not. A handler that waits for its client should select on
    /// [`stopping`](Self::stopping). A panic in a handler ends its connection only.
    ///
    /// No more connections are open at a time than [`concurrency`](Self::concurrency) and
    /// [`Limits::connections_max`](crate::Limits::connections_max) allow; the others wait in the kernel's queue.
    ///
    /// # Errors
    /// Those of [`listener`](Self::listener); [`Error::Accept`] when the listening
    /// socket breaks; [`Error::Runtime`] when SIGTERM cannot be handled.
    pub async fn serve_connections<H, F>(&self, handler: H) -> Result<(), Error>
    where
        H: Fn(Connection) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = self.listener()?;
        self.handle_sigterm()?;
        let mut connections = JoinSet::new();
        let mut stopping = pin!(self.stopping());
        let places = self.places();
        places.limit(self.limits().connections_max);
        places.count();
        self.ready();
        loop {
            tokio::select! {
                biased;
                () = stopping.as_mut() => break,
                Some(_) = connections.join_next() => {}
                accepted = places.accept(&listener) => match accepted {
                    Ok((stream, peer, open)) => {
                        connections.spawn(handler(Connection::new(stream, peer, open, self)));
                    }
                    Err(error) => survive(error).await?,
                },
            }
        }
        // The agent and the other instances keep the socket, and its queue.
        drop(listener);
        drain(connections, self.limits().drain_wait).await;
        Ok(())
    }
}

/// Returns the error only when accepting again cannot help.
async fn survive(error: io::Error) -> Result<(), Error> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
            report::line(&format!("cannot accept for now: {error}"));
            sleep(EXHAUSTED_PAUSE).await;
            Ok(())
        }
        Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP) => Err(Error::Accept(error)),
        // accept(2): errors of the one connection, which has gone again.
        _ => Ok(()),
    }
}

async fn drain(mut connections: JoinSet<()>, wait: Duration) {
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(wait, finish).await.is_err() {
        report::line(&format!("{} connections are cut off after {wait:?}", connections.len()));
        connections.shutdown().await;
    }
}

/// The listening socket of a function that no agent started.
pub(crate) fn listen_alone() -> Result<TcpListener, Error> {
    let set = |variable| std::env::var(variable).ok().filter(|value| !value.is_empty());
    let (address, variable) = match (set(LISTEN_ENV), set(PORT_ENV)) {
        (Some(address), _) => (address, LISTEN_ENV),
        (None, Some(port)) => (format!("0.0.0.0:{port}"), PORT_ENV),
        (None, None) => return Err(Error::NoListener),
    };
    let listen = || {
        let listener = TcpListener::bind(&address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|source| Error::Listen { address: address.clone(), variable, source })
}
