//! Small blocking clients whose every step is timed: what a user of a function sees. They connect
//! and send at once, and nothing in them waits longer than the limit they were given.

use std::{
    fmt,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection};

/// When things happened, counted from just before the SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// The handshake was complete.
    pub connect: Duration,
    /// The first byte of the answer was there.
    pub first_byte: Duration,
    /// The last byte was there.
    pub total: Duration,
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct HttpReply {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// Body.
    pub body: String,
    /// When it came.
    pub timings: Timings,
}

impl HttpReply {
    /// The value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(':'));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// What a connection was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The handshake.
    Connect,
    /// Sending the request.
    Send,
    /// Waiting for the first byte.
    Wait,
    /// Reading the rest.
    Read,
}

/// A failed exchange.
#[derive(Debug)]
pub struct ClientFailure {
    /// Where it failed.
    pub step: Step,
    /// How long after the start.
    pub after: Duration,
    /// Why.
    pub error: io::Error,
}

impl fmt::Display for ClientFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} failed after {:?}: {}", self.step, self.after, self.error)
    }
}

impl std::error::Error for ClientFailure {}

/// Fetches `path`.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<HttpReply, ClientFailure> {
    request(address, "GET", path, "", limit)
}

/// Makes one HTTP/1.1 request on a connection of its own.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    limit: Duration,
) -> Result<HttpReply, ClientFailure> {
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let mut connection = TimedConnection::open(address, limit)?;
    connection.send(text.as_bytes())?;
    connection.reply()
}

/// Makes one HTTP/1.0 request without a body to a unix socket. The answer has no timings but the total.
pub fn request_at(
    socket: &Path,
    method: &str,
    path: &str,
    limit: Duration,
) -> Result<HttpReply, ClientFailure> {
    let start = Instant::now();
    let fail = |step| move |error| ClientFailure { step, after: start.elapsed(), error };
    let mut stream = UnixStream::connect(socket).map_err(fail(Step::Connect))?;
    stream.set_read_timeout(Some(limit)).map_err(fail(Step::Connect))?;
    stream.write_all(format!("{method} {path} HTTP/1.0\r\n\r\n").as_bytes()).map_err(fail(Step::Send))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(fail(Step::Read))?;
    let reply = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let timings = Timings { total: start.elapsed(), ..Timings::default() };
        Some(HttpReply { status, head: head.to_owned(), body: body.to_owned(), timings })
    });
    reply.ok_or_else(|| fail(Step::Read)(io::Error::new(ErrorKind::InvalidData, "not HTTP")))
}

/// A connection that speaks lines, as the echo example does.
#[derive(Debug)]
pub struct LineClient(TimedConnection);

impl LineClient {
    /// Connects. `limit` is for the whole life of the connection.
    pub fn connect(address: SocketAddr, limit: Duration) -> Result<Self, ClientFailure> {
        TimedConnection::open(address, limit).map(Self)
    }

    /// Sends a line and returns the next one, both without their end.
    pub fn ask(&mut self, line: &str) -> Result<String, ClientFailure> {
        self.0.send(format!("{line}\n").as_bytes())?;
        let answer = self.0.until(b"\n")?;
        self.0.timings.total = self.0.start.elapsed();
        Ok(answer.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// When the connection, its first byte and the latest answer were there.
    pub fn timings(&self) -> Timings {
        self.0.timings
    }
}

/// Fetches `path` over TLS. The time of its handshake is before that of the first byte.
pub fn get_tls(
    address: SocketAddr,
    path: &str,
    limit: Duration,
    config: &Arc<ClientConfig>,
) -> Result<HttpReply, ClientFailure> {
    let mut connection = TimedConnection::open(address, limit)?;
    let session = ClientConnection::new(Arc::clone(config), address.ip().into());
    let session = session.map_err(|error| connection.failure(Step::Connect, io::Error::other(error)))?;
    connection.session = Some(session);
    connection
        .send(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    connection.reply()
}

#[derive(Debug)]
struct TimedConnection {
    stream: TcpStream,
    session: Option<ClientConnection>,
    start: Instant,
    limit: Duration,
    received: Vec<u8>,
    timings: Timings,
}

impl TimedConnection {
    fn open(address: SocketAddr, limit: Duration) -> Result<Self, ClientFailure> {
        let start = Instant::now();
        let fail = |error| ClientFailure { step: Step::Connect, after: start.elapsed(), error };
        let stream = TcpStream::connect_timeout(&address, limit).map_err(fail)?;
        let timings = Timings { connect: start.elapsed(), ..Timings::default() };
        stream.set_nodelay(true).map_err(fail)?;
        Ok(Self { stream, session: None, start, limit, received: Vec::new(), timings })
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ClientFailure> {
        let send = |connection: &mut Self| {
            let left = connection.left()?;
            connection.stream.set_write_timeout(Some(left))?;
            match &mut connection.session {
                None => connection.stream.write_all(bytes),
                Some(session) => {
                    connection.stream.set_read_timeout(Some(left))?;
                    rustls::Stream::new(session, &mut connection.stream).write_all(bytes)
                }
            }
        };
        send(self).map_err(|error| self.failure(Step::Send, error))
    }

    /// Reads an answer whose end is its length or the end of the connection.
    fn reply(mut self) -> Result<HttpReply, ClientFailure> {
        let head = self.until(b"\r\n\r\n")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let wrong = |what| io::Error::new(ErrorKind::InvalidData, what);
        let status = status.ok_or_else(|| self.failure(Step::Read, wrong("not HTTP")))?;
        let mut reply = HttpReply { status, head, body: String::new(), timings: self.timings };
        if reply.header("transfer-encoding").is_some() {
            return Err(self.failure(Step::Read, wrong("a transfer coding this client does not know")));
        }
        let length = reply.header("content-length").and_then(|length| length.parse::<usize>().ok());
        while length.is_none_or(|length| self.received.len() < length) {
            if self.fill()? == 0 {
                if length.is_some() {
                    return Err(self.failure(Step::Read, ErrorKind::UnexpectedEof.into()));
                }
                break;
            }
        }
        reply.body = String::from_utf8_lossy(&self.received).into_owned();
        reply.timings = Timings { total: self.start.elapsed(), ..self.timings };
        Ok(reply)
    }

    /// Takes what was received up to and with `end`.
    fn until(&mut self, end: &[u8]) -> Result<String, ClientFailure> {
        loop {
            if let Some(at) = self.received.windows(end.len()).position(|window| window == end) {
                let taken: Vec<u8> = self.received.drain(..at + end.len()).collect();
                return Ok(String::from_utf8_lossy(&taken).into_owned());
            }
            if self.fill()? == 0 {
                let step = if self.timings.first_byte.is_zero() { Step::Wait } else { Step::Read };
                return Err(self.failure(step, ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads once; 0 is the end of the connection.
    fn fill(&mut self) -> Result<usize, ClientFailure> {
        let mut buffer = [0; 16 * 1024];
        let first = self.timings.first_byte.is_zero();
        let read = |connection: &mut Self, buffer: &mut [u8]| loop {
            let left = connection.left()?;
            connection.stream.set_read_timeout(Some(left))?;
            let read = match &mut connection.session {
                None => connection.stream.read(buffer),
                Some(session) => rustls::Stream::new(session, &mut connection.stream).read(buffer),
            };
            match read {
                // A read with a timeout is not restarted after a signal (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        };
        let step = if first { Step::Wait } else { Step::Read };
        let count = read(self, &mut buffer).map_err(|error| self.failure(step, error))?;
        if first && count > 0 {
            self.timings.first_byte = self.start.elapsed();
        }
        self.received.extend(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.limit.saturating_sub(self.start.elapsed());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn failure(&self, step: Step, error: io::Error) -> ClientFailure {
        ClientFailure { step, after: self.start.elapsed(), error }
    }
}
