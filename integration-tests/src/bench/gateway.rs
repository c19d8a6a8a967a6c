//! A gateway that learns of a request as late as others do: a proxy before the function, which connects to it, and so
//! has it started, once the request begins, or once it is there.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(60);
const HEAD_MAX: usize = 16 * 1024;

/// When the function hears of the client.
#[derive(Clone, Debug)]
pub enum When {
    /// At its first byte, whatever that is.
    FirstByte,
    /// When the whole request was read.
    Request,
    /// The same, where the gateway speaks TLS for the function.
    RequestInTls(Arc<ServerConfig>),
}

/// A gateway. It ends on drop.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    stop: Option<PipeWriter>,
    acceptor: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Listens on `listen` for the function at `upstream`.
    pub fn start(when: When, listen: SocketAddr, upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(listen).with_context(|| format!("a gateway at {listen}"))?;
        let (address, (stopped, stop)) = (listener.local_addr()?, io::pipe()?);
        let acceptor = thread::spawn(move || accept(&when, &listener, upstream, &stopped));
        Ok(Self { address, stop: Some(stop), acceptor: Some(acceptor) })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.acceptor.take().map(JoinHandle::join);
    }
}

/// One client at a time: the bench has no others, and what goes wrong it sees as a failed request.
fn accept(when: &When, listener: &TcpListener, upstream: SocketAddr, stopped: &PipeReader) {
    loop {
        let mut sources =
            [listener.as_fd(), stopped.as_fd()].map(|source| PollFd::new(source, PollFlags::POLLIN));
        let _ = poll(&mut sources, PollTimeout::NONE);
        if sources[1].any().unwrap_or(false) {
            return;
        }
        let Ok((client, _)) = listener.accept() else { continue };
        if let Err(error) = serve(when, &client, upstream) {
            eprintln!("gateway: {error}");
        }
        let _ = client.shutdown(Shutdown::Both);
    }
}

fn serve(when: &When, client: &TcpStream, upstream: SocketAddr) -> io::Result<()> {
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(FIRST_BYTE_LIMIT))?;
    match when {
        When::FirstByte => {
            client.peek(&mut [0])?;
            let function = connect(upstream)?;
            thread::scope(|scope| {
                scope.spawn(|| forward(client, &function));
                forward(&function, client);
            });
            Ok(())
        }
        When::Request => ask(&mut &*client, upstream),
        When::RequestInTls(config) => {
            let session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
            let mut client = StreamOwned::new(session, client);
            ask(&mut client, upstream)?;
            client.conn.send_close_notify();
            client.flush()
        }
    }
}

/// Reads a request without a body, and answers it with what the function says until it closes.
fn ask(client: &mut (impl Read + Write), upstream: SocketAddr) -> io::Result<()> {
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        let count = client.read(&mut piece)?;
        if count == 0 || head.len() > HEAD_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(&piece[..count]);
    }
    let mut function = connect(upstream)?;
    function.write_all(&head)?;
    io::copy(&mut function, client)?;
    client.flush()
}

fn connect(upstream: SocketAddr) -> io::Result<TcpStream> {
    let function = TcpStream::connect(upstream)?;
    function.set_nodelay(true)?;
    Ok(function)
}

/// Copies until `from` ends, then passes the end on. Broken connections are the peers' to notice.
fn forward(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
