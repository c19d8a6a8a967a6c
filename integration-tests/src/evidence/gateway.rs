//! A gateway before a function, as others have it: it learns of a request once that is there, and only then connects to
//! the function, which may have to be started for it.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::lab::ChildProcess;

const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(60);
const HEAD_MAX: usize = 16 * 1024;
const START_LIMIT: Duration = Duration::from_secs(30);
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// When the function hears of the client.
#[derive(Clone, Debug)]
pub enum When {
    /// At its first byte, whatever that is.
    FirstByte,
    /// When the whole request was read. There is one for each connection, without a body.
    Request,
    /// The same, where the gateway speaks TLS for the function.
    RequestInTls(Arc<ServerConfig>),
}

/// What is behind the gateway.
pub trait GatewayUpstream: Send + Sync {
    /// A connection to it; it is started if it does not run.
    fn connect(&self) -> Result<TcpStream>;
}

/// What runs already, or is started by being connected to.
impl GatewayUpstream for SocketAddr {
    fn connect(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect(*self)?)
    }
}

/// Connects to what `process` will listen on.
pub fn reach(address: SocketAddr, process: &ChildProcess) -> Result<TcpStream> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => return Err(error).context(process.log()),
            Err(_) => ensure!(!process.ended_within(TRY_AGAIN), "the function ended: {}", process.log()),
        }
    }
}

/// A gateway. It ends on drop, with its connections.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    shared: Arc<GatewayState>,
    stop: Option<PipeWriter>,
    acceptor: Option<JoinHandle<()>>,
}

struct GatewayState {
    when: When,
    upstream: Box<dyn GatewayUpstream>,
    connections: Mutex<Vec<(TcpStream, JoinHandle<()>)>>,
    problems: Mutex<Vec<String>>,
}

impl std::fmt::Debug for GatewayState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("when", &self.when).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Listens on `listen` for `upstream`.
    pub fn start(when: When, listen: SocketAddr, upstream: impl GatewayUpstream + 'static) -> Result<Self> {
        let listener = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
        listener.set_nonblocking(true)?;
        let (address, (stopped, stop)) = (listener.local_addr()?, io::pipe()?);
        let (connections, problems) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(GatewayState { when, upstream: Box::new(upstream), connections, problems });
        let accepting = Arc::clone(&shared);
        let acceptor = thread::spawn(move || accepting.accept(&listener, &stopped));
        Ok(Self { address, shared, stop: Some(stop), acceptor: Some(acceptor) })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What went wrong so far: nothing, in a valid comparison.
    pub fn problems(&self) -> Vec<String> {
        lock(&self.shared.problems).clone()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.acceptor.take().map(JoinHandle::join);
        for (stream, thread) in std::mem::take(&mut *lock(&self.shared.connections)) {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

impl GatewayState {
    fn accept(self: Arc<Self>, listener: &TcpListener, stopped: &PipeReader) {
        loop {
            let mut sources =
                [listener.as_fd(), stopped.as_fd()].map(|source| PollFd::new(source, PollFlags::POLLIN));
            let _ = poll(&mut sources, PollTimeout::NONE);
            if sources[1].any().unwrap_or(false) {
                return;
            }
            let Ok((client, _)) = listener.accept() else { continue };
            let Ok(copy) = client.try_clone() else { continue };
            let shared = Arc::clone(&self);
            let thread = thread::spawn(move || {
                if let Err(error) = shared.serve(&client) {
                    lock(&shared.problems).push(format!("{error:#}"));
                }
                let _ = client.shutdown(Shutdown::Both);
            });
            let mut connections = lock(&self.connections);
            connections.retain(|(_, thread)| !thread.is_finished());
            connections.push((copy, thread));
        }
    }

    fn serve(&self, client: &TcpStream) -> Result<()> {
        client.set_nonblocking(false)?;
        client.set_nodelay(true)?;
        client.set_read_timeout(Some(FIRST_BYTE_LIMIT))?;
        if client.peek(&mut [0])? == 0 {
            return Ok(()); // it never asked for anything
        }
        match &self.when {
            When::FirstByte => {
                client.set_read_timeout(None)?;
                let function = self.connect()?;
                thread::scope(|scope| {
                    scope.spawn(|| forward(client, &function));
                    forward(&function, client);
                });
                Ok(())
            }
            When::Request => self.ask(&mut &*client),
            When::RequestInTls(config) => {
                let mut client = StreamOwned::new(ServerConnection::new(Arc::clone(config))?, client);
                self.ask(&mut client)?;
                client.conn.send_close_notify();
                Ok(client.flush()?)
            }
        }
    }

    /// Reads a request, and answers it with what the function says until it closes.
    fn ask(&self, client: &mut (impl Read + Write)) -> Result<()> {
        let (mut head, mut piece) = (Vec::new(), [0; 1024]);
        while !head.ends_with(b"\r\n\r\n") {
            let count = client.read(&mut piece)?;
            ensure!(count > 0 && head.len() < HEAD_MAX, "not a request: {} bytes", head.len());
            head.extend_from_slice(&piece[..count]);
        }
        let mut function = self.connect()?;
        function.write_all(&head)?;
        io::copy(&mut function, client)?;
        Ok(client.flush()?)
    }

    fn connect(&self) -> Result<TcpStream> {
        let function = self.upstream.connect()?;
        function.set_nodelay(true)?;
        Ok(function)
    }
}

/// Copies until `from` ends, then passes the end on. Broken connections are the peers' to notice.
fn forward(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
