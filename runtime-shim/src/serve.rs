//! The accept loop: ready, accept, and a stop within a limit.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::time::Duration;

use nix::errno::Errno;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::{Connection, Error, Function, report};

/// The address to listen on without an agent; it overrides [`PORT_ENV`].
const LISTEN_ENV: &str = "HEADSTART_LISTEN";
/// A port on all addresses; most container platforms set this variable.
const PORT_ENV: &str = "PORT";

/// Pause before the next accept when the process has no descriptors or memory left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

impl Function {
    /// Serves every client connection with `handler`, each in a task of its own,
    /// until SIGTERM. A function that does not speak HTTP needs no other call.
    ///
    /// Reports to the agent when the function is ready, and when it has written its
    /// first response. On SIGTERM it stops accepting, waits
    /// [`Limits::drain_wait`](crate::Limits::drain_wait) for the handlers to finish,
    /// then cancels the others. A handler that waits for its client should select on
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
        // The agent and the other instances keep the socket and its queue.
        drop(listener);
        drain(connections, self.limits().drain_wait).await;
        Ok(())
    }
}

/// Returns the error only when another accept cannot succeed.
async fn survive(error: io::Error) -> Result<(), Error> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
            report::line(&format!("cannot accept at the moment: {error}"));
            sleep(EXHAUSTED_PAUSE).await;
            Ok(())
        }
        Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP) => Err(Error::Accept(error)),
        // accept(2): an error of this one connection, which is gone.
        _ => Ok(()),
    }
}

async fn drain(mut connections: JoinSet<()>, wait: Duration) {
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(wait, finish).await.is_err() {
        report::line(&format!(
            "closing {} connections that have not ended within {wait:?}",
            connections.len()
        ));
        connections.shutdown().await;
    }
}

/// The listening socket of a function without an agent.
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
