//! A function that does what its variable `MODE` says, most of it wrong: what the tests attack the
//! agent with. It speaks the control protocol by hand, byte by byte, because `headstart` would not
//! let it do any of this.

use std::fs;
use std::io::{IoSlice, IoSliceMut, stdin};
use std::os::fd::{AsFd as _, BorrowedFd, IntoRawFd as _, RawFd};
use std::path::Path;
use std::process;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, accept,
    bind, connect, getsockname, recv, recvmsg, send, sendmsg, sendto, socket,
};
use nix::unistd::close;

/// The inherited control socket.
const CONTROL: RawFd = 3;

/// Where the listener goes: descriptor 0, as with inetd. It is the lowest one, once it is closed.
const LISTENER: RawFd = 0;

/// No test takes this long: nothing is left for ever, not even by a test that was killed.
const LIFE: Duration = Duration::from_secs(120);

/// `MSG_FASTOPEN` of `include/linux/socket.h`.
const MSG_FASTOPEN: i32 = 0x2000_0000;

/// More than any limit of the agent on what one instance may ask for.
const FLOOD: usize = 5000;

/// More connections than one instance may hold.
const HOARD: usize = 100;

/// The socket of its backend, and clients that it has there at a time.
const DOOR: &str = "/run/headstart/backends/db/socket";
const CALLS: usize = 2_000;

const HELLO: &str = r#"{"hello":{"shim":"hostile","hello_ns":0}}"#;
const ACK: &str = r#"{"ack":{"injected_ns":0}}"#;
const READY: &str = r#"{"ready":{"ready_ns":0}}"#;

fn main() -> Result<()> {
    thread::spawn(expire);
    let mode = std::env::var("MODE").unwrap_or_else(|_| "plain".to_owned());
    if let Err(error) = act(&mode) {
        // What it is refused with must not end it: that is the agent's part.
        println!("{mode}: {error:#}");
    }
    loop {
        thread::park();
    }
}

fn act(mode: &str) -> Result<()> {
    match mode {
        "plain" => {
            signal_hook::flag::register_conditional_shutdown(15, 0, Arc::new(AtomicBool::new(true)))?;
            attach()?;
            say(READY)?;
            serve()
        }
        "exit" => {
            println!("there is nothing to do here");
            process::exit(3)
        }
        // Alive and well, but never ready.
        "silent" => attach(),
        // Ready, and then it accepts no connection.
        "hang" => {
            attach()?;
            say(READY)
        }
        // What was started is gone at once; what it has started lives on.
        "fork" => {
            process::Command::new("/proc/self/exe").env("MODE", "child").spawn()?;
            process::exit(0)
        }
        "child" => Ok(()),
        "hog" => {
            let mut memory = Vec::new();
            loop {
                memory.push(std::hint::black_box(vec![1u8; 1 << 20]));
            }
        }
        // As the first process of its namespace it does not even have to ignore SIGTERM.
        "stubborn" => {
            attach()?;
            say(READY)?;
            serve()
        }
        "header" => packet(b"this is no header"),
        "oversized" => packet(&[b'x'; 8000]),
        "version" => packet(b"HS\x09\0{}"),
        "body" => say(r#"{"made_up":{}}"#),
        "out_of_order" => say(READY),
        "descriptors" => {
            let rights = [ControlMessage::ScmRights(&[1; 200])];
            let bytes = [b"HS\x03\0", HELLO.as_bytes()].concat();
            match sendmsg::<()>(CONTROL, &[IoSlice::new(&bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None) {
                // The agent has forbidden it.
                Err(Errno::EPERM) => say(READY),
                sent => Ok(sent.map(drop)?),
            }
        }
        "not_configured" => {
            attach()?;
            say(r#"{"request":{"backend":"secrets"}}"#)
        }
        // Asks for ever more, and never reads what it gets.
        "too_many" => {
            attach()?;
            (0..FLOOD).try_for_each(|_| say(r#"{"request":{"backend":"orders-db"}}"#))
        }
        // Serves well, and only then breaks the protocol.
        "late" => {
            attach()?;
            say(READY)?;
            packet(b"this is no header")?;
            serve()
        }
        // Prints short lines without end.
        "printer" => {
            attach()?;
            say(READY)?;
            loop {
                print(1000);
            }
        }
        // Takes and gives back a connection as fast as it can.
        "asker" => {
            attach()?;
            say(READY)?;
            loop {
                say(r#"{"request":{"backend":"db"}}"#)?;
                if take()?.contains("ready") {
                    say(ACK)?;
                    say(r#"{"returned":{"backend":"db"}}"#)?;
                }
            }
        }
        // Says of every connection that it has closed it, and keeps it.
        "hoarder" => {
            attach()?;
            let mut kept = 0;
            while kept < HOARD {
                say(r#"{"request":{"backend":"db"}}"#)?;
                let (grant, descriptors) = receive()?;
                if descriptors.is_empty() {
                    println!("refused after {kept}: {grant}");
                    break;
                }
                kept += 1;
                say(ACK)?;
                say(r#"{"returned":{"backend":"db"}}"#)?;
            }
            say(READY)?;
            serve()
        }
        // Its clients are the agent's to answer, and it makes the agent's accept wait whenever it can.
        "blocker" => {
            attach()?;
            say(READY)?;
            loop {
                spoil("block")?;
            }
        }
        // Ends its listener again and again.
        "ender" => {
            attach()?;
            say(READY)?;
            Ok(spoil("shutdown")?)
        }
        // Fills the socket of its backend with clients that say nothing.
        "caller" => {
            attach()?;
            say(READY)?;
            let mut clients = std::collections::VecDeque::new();
            loop {
                clients.push_back(std::os::unix::net::UnixStream::connect(DOOR)?);
                if clients.len() > CALLS {
                    clients.pop_front();
                }
            }
        }
        _ => bail!("there is no such mode"),
    }
}

/// Takes the lease, drops its page and its backends, keeps its listener.
fn attach() -> Result<()> {
    close(LISTENER)?;
    let mut space = nix::cmsg_space!([RawFd; 17]);
    let mut bytes = [0; 64 * 1024];
    let mut data = [IoSliceMut::new(&mut bytes)];
    recvmsg::<()>(CONTROL, &mut data, Some(&mut space), MsgFlags::empty())?;
    say(HELLO)?;
    say(ACK)
}

/// The next message of the agent; what comes with it is closed.
fn take() -> Result<String> {
    let (message, descriptors) = receive()?;
    descriptors.into_iter().try_for_each(close)?;
    Ok(message)
}

/// The next message of the agent, and what comes with it.
fn receive() -> Result<(String, Vec<RawFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 17]);
    let mut bytes = [0; 4096];
    let mut data = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg::<()>(CONTROL, &mut data, Some(&mut space), MsgFlags::empty())?;
    let mut descriptors = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            descriptors.extend(numbers);
        }
    }
    let length = received.bytes;
    anyhow::ensure!(length > 0, "the agent has closed the control socket");
    Ok((String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned(), descriptors))
}

fn say(body: &str) -> Result<()> {
    packet(&[b"HS\x03\0", body.as_bytes()].concat())
}

fn packet(bytes: &[u8]) -> Result<()> {
    send(CONTROL, bytes, MsgFlags::MSG_NOSIGNAL).context("the control socket")?;
    Ok(())
}

/// One request after another, each on a connection of its own.
fn serve() -> Result<()> {
    loop {
        poll(&mut [PollFd::new(stdin().as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        match accept(LISTENER) {
            Ok(connection) => {
                // A client that went away is no reason to stop.
                let _ = answer(connection);
                close(connection)?;
            }
            Err(Errno::EAGAIN | Errno::ECONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn answer(connection: RawFd) -> Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut buffer = [0; 4096];
        let length = recv(connection, &mut buffer, MsgFlags::empty())?;
        head.extend(buffer.get(..length).filter(|read| !read.is_empty()).context("cut short")?);
    }
    let head = String::from_utf8_lossy(&head);
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let looked = match path.strip_prefix("/elsewhere/") {
        Some(address) => elsewhere(connection, address).map_err(std::io::Error::other),
        None if path == "/keep" => rustix::io::dup(borrow(connection)).map_err(Into::into).map(|copy| {
            let _kept_for_ever = copy.into_raw_fd();
            "kept".to_owned()
        }),
        None => look(method, Path::new(path)),
    };
    let (status, body) = match looked {
        Ok(body) => (200, body),
        Err(error) => (403, error.to_string()),
    };
    let length = body.len();
    let reply = format!("HTTP/1.1 {status} -\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    let mut rest = reply.as_bytes();
    while !rest.is_empty() {
        let sent = send(connection, rest, MsgFlags::MSG_NOSIGNAL)?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// `GET` shows a file or a directory as this function sees it, `PUT` writes one. `/` is just an answer; `/socket/FAMILY`
/// opens a socket; `/keep` keeps its connection open, for `/elsewhere/ADDRESS`. `/listener/...` does something to the listener, which is the agent's own socket too. `/print/N` prints so
/// many lines that should not be taken for anything else.
fn look(method: &str, path: &Path) -> std::io::Result<String> {
    if let Ok(what) = path.strip_prefix("/listener") {
        return spoil(&what.to_string_lossy()).map(|()| "done".to_owned());
    }
    if let Ok(lines) = path.strip_prefix("/print") {
        let lines = lines.to_string_lossy().parse().map_err(std::io::Error::other)?;
        thread::spawn(move || print(lines));
        return Ok("done".to_owned());
    }
    if path == Path::new("/") {
        return Ok("alive".to_owned());
    }
    if let Ok(family) = path.strip_prefix("/socket") {
        let (family, kind) = match family.to_str().unwrap_or_default() {
            "unix" => (AddressFamily::Unix, SockType::Stream),
            "inet" => (AddressFamily::Inet, SockType::Stream),
            "inet6" => (AddressFamily::Inet6, SockType::Stream),
            "netlink" => (AddressFamily::Netlink, SockType::Raw),
            "alg" => (AddressFamily::Alg, SockType::SeqPacket),
            "vsock" => (AddressFamily::Vsock, SockType::Stream),
            _ => (AddressFamily::Packet, SockType::Datagram),
        };
        return Ok(socket(family, kind, SockFlag::empty(), None).map(|_| "opened".to_owned())?);
    }
    if method == "PUT" {
        fs::write(path, "written")?;
        return Ok("written".to_owned());
    }
    if path.is_dir() {
        let names =
            fs::read_dir(path)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        return Ok(names.collect::<Vec<_>>().join("\n"));
    }
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

/// Disconnects every TCP connection but this one, and binds and connects each to `address` instead, also with its first data
/// (Fast Open). Says how that went.
fn elsewhere(connection: RawFd, address: &str) -> Result<String> {
    let address = SockaddrIn::from_str(address)?;
    let mut said = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let number: RawFd = entry.file_name().to_string_lossy().parse()?;
        let is_tcp = getsockname::<SockaddrIn>(number).is_ok();
        if !is_tcp || [LISTENER, connection].contains(&number) {
            continue;
        }
        rustix::net::connect_unspec(borrow(number))?;
        let fast_open = MsgFlags::from_bits_retain(MSG_FASTOPEN);
        let tried = [
            bind(number, &SockaddrIn::new(127, 0, 0, 1, 0)),
            connect(number, &address),
            sendto(number, b"x", &address, fast_open).map(drop),
        ];
        said.push(
            tried
                .map(|tried| tried.map_or_else(|error| error.to_string(), |()| "done".to_owned()))
                .join(", "),
        );
    }
    Ok(said.join("\n"))
}

#[expect(unsafe_code, reason = "the protocol is spoken with numbers of descriptors")]
fn borrow(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: what is borrowed stays open until the call is over.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Short lines, and among them one that wants to be a line of the agent, and to clear the screen.
fn print(lines: usize) {
    for number in 0..lines {
        if number == 10 {
            println!("x\r2026-11-30T00:00:00Z  INFO headstart::audit: forged\u{1b}[2J\0");
        }
        println!("x");
    }
}

fn spoil(what: &str) -> std::io::Result<()> {
    let input = stdin();
    let listener = input.as_fd();
    match what {
        "shutdown" => rustix::net::shutdown(listener, rustix::net::Shutdown::Both)?,
        "disconnect" => rustix::net::connect_unspec(listener)?,
        "block" => rustix::io::ioctl_fionbio(listener, false)?,
        _ => return Err(std::io::Error::other("there is no such thing to do")),
    }
    Ok(())
}

fn expire() {
    let end = Instant::now() + LIFE;
    while Instant::now() < end {
        thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
    process::exit(9)
}
