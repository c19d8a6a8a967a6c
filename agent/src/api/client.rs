//! How commands ask the agent: one request of HTTP/1.0 each, to its `admin` address; what changes something, to its unix
//! socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::socket_path::SocketPath;
use super::{
    AGENT, AgentStatus, FRONTS, FUNCTIONS, FrontStatus, Function, Operation, RELOAD, ReloadOutcome, STARTS,
    Timeline,
};

/// How long the agent may take to answer, which it does from memory.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How every answer begins (RFC 9112, 2.3).
const PROTOCOL: &[u8] = b"HTTP/";

/// Largest answer that is read, in bytes.
const ANSWER_MAX: u64 = 16 * 1024 * 1024;

/// Why the agent gave no useful answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiRequestError {
    /// Nothing answers there, or something else than an agent.
    #[error("no agent answers at {admin}: is it running, and is this its `admin` address (--admin)?")]
    NoAgent {
        /// Where it was asked.
        admin: String,
        /// What went wrong.
        source: io::Error,
    },
    /// This user may not change anything.
    #[error(
        "only root and the agent's user may change something: run this command as root ({socket}: {source})"
    )]
    NotAllowed {
        /// The agent's unix socket.
        socket: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The same, in the agent's words.
    #[error("{0}")]
    Forbidden(String),
    /// The agent does not do what it was asked for.
    #[error("the agent at {admin} answers {status} to {path}: {body}")]
    Refused {
        /// Where it was asked.
        admin: String,
        /// What it was asked for.
        path: String,
        /// As in RFC 9110.
        status: u16,
        /// Its reason.
        body: String,
    },
    /// The answer is not JSON of this version.
    #[error("{path} is not as expected: is the agent at {admin} of another version than this program?")]
    Unexpected {
        /// Where it was asked.
        admin: String,
        /// What it was asked for.
        path: &'static str,
        /// Where reading stopped.
        source: serde_json::Error,
    },
    /// The agent has no function of this name.
    #[error("{0}")]
    NoSuchFunction(String),
    /// The agent did not accept an operation.
    #[error("the agent does not {} {name} ({status}): {body}", operation.as_str())]
    NotOperated {
        /// What it was asked to do.
        operation: Operation,
        /// With this function.
        name: String,
        /// As in RFC 9110.
        status: u16,
        /// Its reason.
        body: String,
    },
    /// The agent did not accept its new configuration.
    #[error("the configuration is not taken, everything stays as it was: {0}")]
    NotReloaded(String),
}

/// Asks one agent.
#[derive(Debug, Clone)]
pub struct Client {
    admin: String,
}

impl Client {
    /// Of the agent whose `admin` address this is: a host name or an IP address, and a port; or the path of its unix
    /// socket.
    #[must_use]
    pub fn new(admin: String) -> Self {
        Self { admin }
    }

    /// Every configured function.
    ///
    /// # Errors
    /// When no agent answers, or not as expected.
    pub fn functions(&self) -> Result<Vec<Function>, ApiRequestError> {
        self.read(FUNCTIONS)
    }

    /// The same as the agent's JSON.
    ///
    /// # Errors
    /// When no agent answers.
    pub fn functions_json(&self) -> Result<String, ApiRequestError> {
        self.get(FUNCTIONS)
    }

    /// The function `name`.
    ///
    /// # Errors
    /// Those of [`Client::functions`], and when there is no such function: then with the names that may have been meant.
    pub fn function(&self, name: &str) -> Result<Function, ApiRequestError> {
        let functions = self.functions()?;
        // The one that leaves comes before the one that takes its name.
        if let Some(function) = functions.iter().find(|function| function.name() == name) {
            return Ok(function.clone());
        }
        Err(ApiRequestError::NoSuchFunction(unknown(name, functions.iter().map(Function::name))))
    }

    /// Every front.
    ///
    /// # Errors
    /// When no agent answers, or not as expected.
    pub fn fronts(&self) -> Result<Vec<FrontStatus>, ApiRequestError> {
        self.read(FRONTS)
    }

    /// The same as the agent's JSON.
    ///
    /// # Errors
    /// When no agent answers.
    pub fn fronts_json(&self) -> Result<String, ApiRequestError> {
        self.get(FRONTS)
    }

    /// The last cold starts, oldest first.
    ///
    /// # Errors
    /// When no agent answers, or not as expected.
    pub fn starts(&self) -> Result<Vec<Timeline>, ApiRequestError> {
        self.read(STARTS)
    }

    /// Begins an operation on a function.
    ///
    /// # Errors
    /// When no agent answers, or it does not accept the operation.
    pub fn operate(&self, name: &str, operation: Operation) -> Result<(), ApiRequestError> {
        match self.change(&format!("{FUNCTIONS}/{name}/{}", operation.as_str()))? {
            Reply { status: 202, .. } => Ok(()),
            Reply { status, body } => Err(ApiRequestError::NotOperated {
                operation,
                name: name.to_owned(),
                status,
                body: body.trim().to_owned(),
            }),
        }
    }

    /// Reads the agent's configuration again.
    ///
    /// # Errors
    /// When no agent answers, or it does not accept the configuration: with its reason.
    pub fn reload(&self) -> Result<ReloadOutcome, ApiRequestError> {
        match self.change(RELOAD)? {
            Reply { status: 200, body } => self.parse(RELOAD, &body),
            Reply { body, .. } => Err(ApiRequestError::NotReloaded(body.trim().to_owned())),
        }
    }

    fn read<T: DeserializeOwned>(&self, path: &'static str) -> Result<T, ApiRequestError> {
        self.parse(path, &self.get(path)?)
    }

    fn parse<T: DeserializeOwned>(&self, path: &'static str, body: &str) -> Result<T, ApiRequestError> {
        serde_json::from_str(body).map_err(|source| ApiRequestError::Unexpected {
            admin: self.admin.clone(),
            path,
            source,
        })
    }

    fn get(&self, path: &str) -> Result<String, ApiRequestError> {
        match request(&self.admin, "GET", path)? {
            Reply { status: 200, body } => Ok(body),
            Reply { status, body } => Err(ApiRequestError::Refused {
                admin: self.admin.clone(),
                path: path.to_owned(),
                status,
                body: body.trim().to_owned(),
            }),
        }
    }

    /// Asks for a change, over the unix socket. An address is asked for its place.
    fn change(&self, path: &str) -> Result<Reply, ApiRequestError> {
        let socket = match self.admin.starts_with('/') {
            true => self.admin.clone(),
            false => self.read::<AgentStatus>(AGENT)?.admin_socket,
        };
        match request(&socket, "POST", path)? {
            Reply { status: 403, body } => Err(ApiRequestError::Forbidden(body.trim().to_owned())),
            reply => Ok(reply),
        }
    }
}

fn request(admin: &str, method: &str, path: &str) -> Result<Reply, ApiRequestError> {
    exchange(admin, method, path, REQUEST_TIMEOUT).map_err(|source| match source.kind() {
        ErrorKind::PermissionDenied => ApiRequestError::NotAllowed { socket: admin.to_owned(), source },
        _ => ApiRequestError::NoAgent { admin: admin.to_owned(), source },
    })
}

/// What a server of HTTP answered.
pub struct Reply {
    /// As in RFC 9110.
    pub status: u16,
    /// Its text.
    pub body: String,
}

/// One request of HTTP/1.0 (RFC 1945): the answer ends with the connection. An address that begins with / is the path of
/// a unix socket.
///
/// # Errors
/// When nothing listens at `address`, it is silent for longer than `limit`, or it does not speak HTTP.
pub fn exchange(address: &str, method: &str, path: &str, limit: Duration) -> io::Result<Reply> {
    if address.starts_with('/') {
        let stream = UnixStream::connect(SocketPath::of(Path::new(address))?.short())?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        return converse(stream, method, path);
    }
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    converse(stream, method, path)
}

fn converse(mut stream: impl Read + Write, method: &str, path: &str) -> io::Result<Reply> {
    let no_http = || io::Error::new(ErrorKind::InvalidData, "it does not speak HTTP");
    let request = format!("{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
    match stream.write_all(request.as_bytes()) {
        // It has closed already; what it said before is more telling.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    // What is not HTTP may never end.
    let mut answer = vec![0; PROTOCOL.len()];
    match stream.read_exact(&mut answer) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error),
        read if read.is_err() || answer != PROTOCOL => return Err(no_http()),
        _ => stream.take(ANSWER_MAX).read_to_end(&mut answer)?,
    };
    let answer = String::from_utf8_lossy(&answer);
    let reply = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.strip_prefix("HTTP/")?.split_whitespace().nth(1)?.parse().ok()?;
        Some(Reply { status, body: body.to_owned() })
    });
    reply.ok_or_else(no_http)
}

/// Names for an operator who mistyped one.
fn unknown<'n>(name: &str, known: impl Iterator<Item = &'n str> + Clone) -> String {
    /// More are for `headstart status`.
    const LISTED_MAX: usize = 5;
    if let Some(meant) = headstart_config::closest(name, known.clone()) {
        return format!("there is no function {name:?}: did you mean {meant:?}?");
    }
    let listed: Vec<_> = known.clone().take(LISTED_MAX).collect();
    match known.count() {
        0 => format!("there is no function {name:?}: the agent has none, see its configuration"),
        count if count > LISTED_MAX => format!(
            "there is no function {name:?}: there are {} and {} more, see headstart status",
            listed.join(", "),
            count - LISTED_MAX
        ),
        _ => format!("there is no function {name:?}: there are {}", listed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_answered_with_the_closest_or_with_a_few() {
        let known = ["orders", "invoices", "a", "b", "c", "d", "e"];
        for (typed, known, said) in [
            ("ordres", &known[..], "did you mean \"orders\"?"),
            ("zzz", &known[..2], "there are orders, invoices"),
            ("zzz", &known[..], "there are orders, invoices, a, b, c and 2 more, see headstart status"),
            ("zzz", &[], "the agent has none, see its configuration"),
        ] {
            let text = unknown(typed, known.iter().copied());
            assert_eq!(text, format!("there is no function {typed:?}: {said}"));
        }
    }

    #[test]
    fn what_does_not_speak_http_is_told_at_once() {
        for says in ["220 ready\r\n", "HT", ""] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let server = std::thread::spawn(move || {
                let (mut client, _) = listener.accept().unwrap();
                client.write_all(says.as_bytes()).unwrap();
                // The client ends the connection at the first bytes that are not HTTP.
                if says.len() > 2 {
                    let _ = client.read_to_end(&mut Vec::new());
                }
            });
            let refused = exchange(&address, "GET", "/", REQUEST_TIMEOUT).err().unwrap().to_string();
            assert!(refused.contains("does not speak HTTP") || refused.contains("reset"), "{refused}");
            server.join().unwrap();
        }
    }
}
