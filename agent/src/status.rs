//! `headstart status`: what the running agent says of its functions; and how commands ask the agent.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal as _, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The agent answers from memory.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How every answer begins (RFC 9112, 2.3).
const PROTOCOL: &[u8] = b"HTTP/";

/// Largest answer that is read, in bytes.
const ANSWER_MAX: u64 = 16 * 1024 * 1024;

/// From one table of `--watch` to the next, in milliseconds.
const REDRAW_MS: u16 = 1000;

/// Cursor to the first place, then erase to the end (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[J";

const FUNCTIONS: &str = "/api/v1/functions";

/// A function as the API shows it: what can be told of every one, served or not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Function {
    /// Configured name.
    pub name: String,
    /// Where it is.
    pub state: State,
    /// Where it listens.
    pub listen: Option<String>,
    /// `oci`, `docker` or `process`.
    pub runtime: Option<String>,
    /// What clients may put into their SYN to name it.
    pub id: Option<u32>,
    /// What clients need a key for: `no`, `wake` or `connect`.
    pub require_auth: Option<String>,
    /// Containers that wait to be let go.
    #[serde(default)]
    pub prepared: usize,
    /// Containers that are being created.
    #[serde(default)]
    pub preparing: u32,
    /// Instances that were let go and are not known to be gone.
    #[serde(default)]
    pub instances: usize,
    /// The same, one by one.
    #[serde(default)]
    pub running: Vec<Instance>,
    /// Connections that wait in the accept queue.
    #[serde(default)]
    pub queued: u32,
    /// Starts that have failed in a row; 0 again in a cool-down.
    #[serde(default)]
    pub failed_starts: u32,
    /// Connections that one instance serves at a time; `None`: all.
    pub concurrency: Option<u32>,
    /// Instances that are kept ready without any demand.
    #[serde(default)]
    pub min_ready: u32,
    /// Most instances at a time.
    #[serde(default)]
    pub max_instances: u32,
    /// What clients are told that nobody will serve.
    pub overload: Option<String>,
    /// Idle time after which an instance is frozen.
    pub freeze_after_seconds: Option<f64>,
    /// Idle time after which an instance is stopped.
    pub stop_after_seconds: Option<f64>,
    /// What went wrong last, until an instance is ready.
    pub last_error: Option<String>,
    /// Until what failed is tried again.
    pub retry_in_seconds: Option<f64>,
    /// Why it is not served.
    pub reason: Option<String>,
}

/// An instance as the API shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Instance {
    /// The container's name.
    pub name: String,
    /// Where it is: see [`crate::decision::State`].
    pub state: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since_seconds: f64,
    /// Connections that are open; `None` when it does not count them.
    pub open: Option<u32>,
    /// Connections that it has accepted.
    pub accepted: u64,
    /// How long nobody has been connected.
    pub idle_seconds: Option<f64>,
}

/// The state of a function: [`crate::decision::Summary`] by its name, or not served at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No instance.
    Cold,
    /// One is on its way.
    Starting,
    /// One accepts.
    Ready,
    /// All are frozen.
    Frozen,
    /// All were asked to go.
    Stopping,
    /// Starts fail, and the next has to wait.
    Failed,
    /// `max_instances` is 0.
    Off,
    /// The agent is leaving, or the function was removed.
    Closed,
    /// Configured and not served.
    Unavailable,
}

impl State {
    /// Its name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Frozen => "frozen",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Off => "off",
            Self::Closed => "closed",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Prints a table of the functions, or the API's JSON; with `watch` every second, until the reader is gone. An
/// agent that stops answering meanwhile is waited for: it may be restarting.
///
/// # Errors
/// When no agent answers at `admin`, the first time.
pub fn print(admin: &str, json: bool, watch: bool) -> anyhow::Result<()> {
    let look = || get(admin, FUNCTIONS).and_then(|body| if json { Ok(body + "\n") } else { table(&body) });
    let mut page = look()?;
    let clear = if watch && !json && io::stdout().is_terminal() { CLEAR } else { "" };
    while show(&format!("{clear}{page}"))? && watch && !reader_is_gone_within(REDRAW_MS)? {
        page = match look() {
            Ok(page) => page,
            Err(error) if json => {
                eprintln!("headstart: {error:#}");
                String::new()
            }
            Err(error) => format!("{error:#}\n"),
        };
    }
    Ok(())
}

fn table(body: &str) -> anyhow::Result<String> {
    let functions: Vec<Value> =
        serde_json::from_str(body).context("the answer is not a list of functions")?;
    let mut table = format!(
        "{:<24} {:<22} {:<8} {:<12} {:>8} {:>9} {:>6} {:>6}  NOTE\n",
        "FUNCTION", "LISTEN", "RUNTIME", "STATE", "PREPARED", "INSTANCES", "OPEN", "QUEUED"
    );
    for function in &functions {
        let text = |key: &str| function[key].as_str().unwrap_or("-");
        let number = |key: &str| function[key].as_u64().map_or("-".to_owned(), |number| number.to_string());
        let note = function["last_error"].as_str().or(function["reason"].as_str()).unwrap_or_default();
        writeln!(
            table,
            "{:<24} {:<22} {:<8} {:<12} {:>8} {:>9} {:>6} {:>6}  {note}",
            text("name"),
            text("listen"),
            text("runtime"),
            text("state"),
            number("prepared"),
            number("instances"),
            open(&function["running"]).map_or("-".to_owned(), |open| open.to_string()),
            number("queued"),
        )?;
    }
    Ok(table)
}

/// Connections that are open in all instances that count them.
fn open(running: &Value) -> Option<u64> {
    let counted = running.as_array()?.iter().filter_map(|instance| instance["open"].as_u64());
    Some(counted.sum())
}

/// Writes to standard output; false when nobody reads it any more, which ends a command without an error.
pub(crate) fn show(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

/// Waits, but not longer than somebody reads standard output.
fn reader_is_gone_within(pause_ms: u16) -> nix::Result<bool> {
    let out = io::stdout();
    // Asked for no event, the kernel still tells of the other end's leaving.
    match poll(&mut [PollFd::new(out.as_fd(), PollFlags::empty())], PollTimeout::from(pause_ms)) {
        Err(Errno::EINTR) => Ok(false),
        gone => gone.map(|gone| gone > 0),
    }
}

/// What the API says of the function `name`.
///
/// # Errors
/// When no agent answers, or there is no such function: then with the names that may have been meant.
pub(crate) fn find(admin: &str, name: &str) -> anyhow::Result<Function> {
    let functions: Vec<Function> = get_json(admin, FUNCTIONS)?;
    match functions.iter().find(|function| function.name == name) {
        Some(function) => Ok(function.clone()),
        None => bail!(unknown(name, functions.iter().map(|function| function.name.as_str()))),
    }
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

/// A page of the API, read.
///
/// # Errors
/// Those of [`get`], and when it is not what this version expects.
pub(crate) fn get_json<T: DeserializeOwned>(admin: &str, path: &str) -> anyhow::Result<T> {
    serde_json::from_str(&get(admin, path)?).with_context(|| {
        format!("{path} is not as expected: is the agent at {admin} of another version than this program?")
    })
}

/// A page of the API.
///
/// # Errors
/// When no agent answers, or not with 200.
fn get(admin: &str, path: &str) -> anyhow::Result<String> {
    match request(admin, "GET", path)? {
        Reply { status: 200, body } => Ok(body),
        Reply { status, body } => bail!("the agent at {admin} answers {status} to {path}: {}", body.trim()),
    }
}

/// What the agent answered.
pub(crate) struct Reply {
    /// As in RFC 9110.
    pub(crate) status: u16,
    /// Its text.
    pub(crate) body: String,
}

/// Asks the agent.
///
/// # Errors
/// When none answers there.
pub(crate) fn request(admin: &str, method: &str, path: &str) -> anyhow::Result<Reply> {
    exchange(admin, method, path, TIMEOUT).with_context(|| {
        format!("no agent answers at {admin}: is it running, and is this its `admin` address (--admin)?")
    })
}

/// One request of HTTP/1.0 (RFC 1945): the answer ends with the connection.
pub(crate) fn exchange(address: &str, method: &str, path: &str, limit: Duration) -> anyhow::Result<Reply> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n")?;
    // What is no answer may never end.
    let mut answer = vec![0; PROTOCOL.len()];
    match stream.read_exact(&mut answer) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error.into()),
        read if read.is_err() || answer != PROTOCOL => bail!("it does not speak HTTP"),
        _ => stream.take(ANSWER_MAX).read_to_end(&mut answer)?,
    };
    let answer = String::from_utf8_lossy(&answer);
    let reply = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.strip_prefix("HTTP/")?.split_whitespace().nth(1)?.parse().ok()?;
        Some(Reply { status, body: body.to_owned() })
    });
    reply.context("it does not speak HTTP")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Summary;

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
                // What speaks goes on as long as the client does.
                if says.len() > 2 {
                    let _ = client.read_to_end(&mut Vec::new());
                }
            });
            let refused = exchange(&address, "GET", "/", TIMEOUT).err().unwrap().to_string();
            assert!(refused.contains("does not speak HTTP") || refused.contains("reset"), "{refused}");
            server.join().unwrap();
        }
    }

    #[test]
    fn every_summary_is_a_state() {
        for summary in Summary::ALL {
            let state = serde_json::from_value::<State>(summary.as_str().into());
            assert_eq!(state.unwrap().as_str(), summary.as_str());
        }
    }
}
