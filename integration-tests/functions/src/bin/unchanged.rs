//! HTTP servers that know nothing of Headstart, and programs that should be servers. `MODE` is one of [`MODES`].
//!
//! `GET /` answers with the process number.

use std::env;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use axum::{Router, routing::get};
use listenfd::ListenFd;
use nix::sys::socket::sockopt::{ReuseAddr, ReusePort};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
};

type Mode = fn(u16) -> Result<()>;

/// What the program does, by the word in `MODE`.
const MODES: [(&str, Mode); 14] = [
    ("events", |port| serve(Server::bind(port)?)),
    ("inherits", |_| serve(ListenFd::from_env().take_tcp_listener(0)?.context("no socket is inherited")?)),
    ("blocks", |port| accept(&Server::bind(port)?)),
    ("workers", workers),
    ("again", again),
    ("ends-listener", ends_listener),
    ("other-port", |_| accept(&Server::bind(3000)?)),
    ("nothing", |_| idle()),
    ("deaf", |port| idle_with(bound(port)?)),
    ("background", background),
    ("background-ready", background_ready),
    ("exits", |_| Err(anyhow!("no database"))),
    ("binds-for-ever", binds_for_ever),
    ("many-bind", many_bind),
];

struct Server;

impl Server {
    fn bind(port: u16) -> io::Result<TcpListener> {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
    }
}

fn main() -> Result<()> {
    let mode = env::var("MODE").context("MODE is not set")?;
    let port = env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080);
    let known = MODES.iter().find(|(word, _)| *word == mode);
    known.with_context(|| format!("MODE is {mode:?}"))?.1(port)
}

/// An event loop.
#[tokio::main(flavor = "current_thread")]
async fn serve(listener: TcpListener) -> Result<()> {
    let app = Router::new().route("/", get(async || std::process::id().to_string()));
    listener.set_nonblocking(true)?;
    axum::serve(tokio::net::TcpListener::from_std(listener)?, app).await?;
    Ok(())
}

/// A thread per connection, and one that blocks in accept.
fn accept(listener: &TcpListener) -> Result<()> {
    loop {
        let (client, _) = listener.accept()?;
        thread::spawn(move || answer(client));
    }
}

fn answer(mut client: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    loop {
        let mut line = String::new();
        while line.trim_end() != "" || line.is_empty() {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
        }
        let body = std::process::id().to_string();
        write!(client, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    }
}

fn bound(port: u16) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    setsockopt(&socket, ReusePort, &true)?;
    use std::os::fd::AsRawFd as _;
    bind(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    Ok(socket)
}

/// Four sockets on the same port, each with a thread.
fn workers(port: u16) -> Result<()> {
    let sockets = (0..4).map(|_| bound(port)).collect::<Result<Vec<_>>>()?;
    let mut threads = Vec::new();
    for socket in sockets {
        listen(&socket, Backlog::new(16)?)?;
        threads.push(thread::spawn(move || accept(&socket.into())));
    }
    threads
        .into_iter()
        .map(|thread| thread.join())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| anyhow!("panic"))?;
    Ok(())
}

/// Closes its listener after it has listened, as a reload does, and makes another. Listens on another port too.
fn again(port: u16) -> Result<()> {
    let private = Server::bind(port + 1)?;
    drop(Server::bind(port)?);
    let listener = Server::bind(port)?;
    // Its own network is there as before.
    thread::spawn(move || accept(&private));
    let own = TcpStream::connect((Ipv4Addr::LOCALHOST, port + 1))?;
    (&own).write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut head = [0; 12];
    (&own).read_exact(&mut head)?;
    if head != *b"HTTP/1.1 200" {
        return Err(anyhow!("the private port says {head:?}"));
    }
    accept(&listener)
}

/// Ends the socket that all instances share, as a stop that takes it for its own.
fn ends_listener(port: u16) -> Result<()> {
    let listener = Server::bind(port)?;
    let socket = TcpStream::from(OwnedFd::from(listener.try_clone()?));
    socket.shutdown(Shutdown::Both)?;
    accept(&listener)
}

fn idle() -> Result<()> {
    loop {
        thread::park();
    }
}

fn idle_with(_kept: OwnedFd) -> Result<()> {
    idle()
}

/// Goes to the background, as daemons did.
fn background(_port: u16) -> Result<()> {
    Command::new("/proc/self/exe").env("MODE", "blocks").spawn()?;
    Ok(())
}

/// As `background`, and listens before.
fn background_ready(port: u16) -> Result<()> {
    let _listener = Server::bind(port)?;
    background(port)
}

fn binds_for_ever(port: u16) -> Result<()> {
    loop {
        drop(Server::bind(port));
    }
}

/// More threads bind than calls are answered at a time, also at addresses that are none.
fn many_bind(port: u16) -> Result<()> {
    let port = Arc::new(port);
    for _ in 0..32 {
        let port = Arc::clone(&port);
        thread::spawn(move || {
            loop {
                drop(TcpListener::bind(SocketAddr::from(([10, 255, 255, 1], *port))));
                drop(bound(*port));
            }
        });
    }
    accept(&Server::bind(*port)?)
}
