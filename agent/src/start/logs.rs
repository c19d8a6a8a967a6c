//! What functions print becomes the agent's log, with the target `function`.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::bucket::TokenBucket;
use crate::log::FUNCTION;
use crate::measure;

/// Longest line in bytes; longer ones are logged in pieces.
const MAX_LINE_BYTES: usize = 4096;

/// Lines that an instance may print at once, and a second from then on; a line counts once for each [`LINE_BYTES`].
const LINES_BURST: u32 = 1000;
const LINES_PER_SECOND: u32 = 100;
const LINE_BYTES: usize = 512;

/// How often it is said how many lines were left out.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// The pause after a read while lines are left out: an instance that prints without end waits in its write.
const PAUSE: Duration = Duration::from_millis(1);

/// Bytes that are cut into lines before others have their turn.
const TURN_BYTES: usize = 256;

/// Read at a time, in bytes: with [`MAX_LINE_BYTES`] all that is buffered of one
/// instance. A function that prints faster than that is logged waits in its write.
const READ_BYTES: usize = 4096;

/// The mode of a pipe that every user may write to who finds it: only the instance does, in its `/proc`.
const OPENED_BY_ALL: u32 = 0o622;

/// A pipe for an instance's output: the agent's end, and the instance's.
///
/// The instance's end can be read too, only so that the pipe has a reader when
/// the agent dies: without one, the next line that a function prints would end it
/// (`SIGPIPE`), with the requests that it is answering. The next agent reads on.
///
/// Programs that log to `/dev/stderr` open it anew, as the function's user.
pub(super) fn pipe() -> io::Result<(io::PipeReader, File)> {
    let (output, writer) = io::pipe()?;
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let writer = OpenOptions::new().read(true).write(true).open(path)?;
    writer.set_permissions(Permissions::from_mode(OPENED_BY_ALL))?;
    Ok((output, writer))
}

/// The last line that is in such a pipe. Takes what is there, and waits for nothing.
pub(super) fn last_line(output: &tokio::net::unix::pipe::Receiver) -> Option<String> {
    let mut bytes = [0; MAX_LINE_BYTES];
    let length = rustix::io::read(output, &mut bytes).ok()?;
    let text = String::from_utf8_lossy(bytes.get(..length)?);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

/// Cuts a stream into lines.
pub(super) struct Lines {
    function: String,
    instance: String,
    partial: Vec<u8>,
    last: Arc<Mutex<String>>,
    budget: TokenBucket,
    /// Lines that were not logged, and when that was last said.
    left_out: u64,
    said_at: Option<Instant>,
}

impl Lines {
    pub(super) fn new(function: &str, instance: &str) -> Self {
        Self {
            function: function.to_owned(),
            instance: instance.to_owned(),
            partial: Vec::new(),
            last: Arc::default(),
            budget: TokenBucket::new(LINES_BURST, LINES_PER_SECOND),
            left_out: 0,
            said_at: None,
        }
    }

    /// Takes the next bytes and logs every line that they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.flush();
                continue;
            }
            self.partial.push(byte);
            if self.partial.len() >= MAX_LINE_BYTES {
                self.flush();
            }
        }
    }

    /// Logs what has no line end yet.
    fn flush(&mut self) {
        let line = String::from_utf8_lossy(&self.partial).trim_end_matches('\r').to_owned();
        self.partial.clear();
        if line.is_empty() {
            return;
        }
        let cost = u32::try_from(line.len() / LINE_BYTES + 1).unwrap_or(u32::MAX);
        if self.budget.take(cost) {
            tracing::info!(target: FUNCTION, function = %self.function, instance = %self.instance, "{line}");
        } else {
            self.left_out += 1;
            if self.said_at.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                self.say_left_out();
            }
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }

    /// Logs what has no line end, and how many lines were left out.
    pub(super) fn end(&mut self) {
        self.flush();
        self.say_left_out();
    }

    fn is_leaving_out(&self) -> bool {
        self.left_out > 0
    }

    fn say_left_out(&mut self) {
        let lines = std::mem::take(&mut self.left_out);
        if lines > 0 {
            self.said_at = Some(Instant::now());
            measure::record_log_left_out("functions", lines);
            let (function, instance) = (&self.function, &self.instance);
            tracing::warn!(function, instance, "{lines} lines left out that it has printed");
        }
    }
}

/// The task that logs one instance's output.
pub(super) struct Logs {
    task: JoinHandle<()>,
    last: Arc<Mutex<String>>,
}

impl Logs {
    /// Logs `output` until its writers are gone.
    pub(super) fn follow(function: &str, instance: &str, output: impl AsyncRead + Send + 'static) -> Self {
        let mut lines = Lines::new(function, instance);
        let last = Arc::clone(&lines.last);
        let task = tokio::spawn(async move {
            let mut output = std::pin::pin!(output);
            let mut buffer = [0u8; READ_BYTES];
            loop {
                let read = match lines.is_leaving_out() {
                    false => output.read(&mut buffer).await,
                    true => match tokio::time::timeout(SAY_EVERY, output.read(&mut buffer)).await {
                        Ok(read) => read,
                        Err(_) => {
                            lines.say_left_out();
                            continue;
                        }
                    },
                };
                let Ok(length @ 1..) = read else { break };
                for turn in buffer[..length].chunks(TURN_BYTES) {
                    lines.push(turn);
                    tokio::task::yield_now().await;
                }
                if lines.is_leaving_out() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            lines.end();
        });
        Self { task, last }
    }

    /// The last line. Waits until all output is read, at most `patience`.
    pub(super) async fn last(&self, patience: Duration) -> String {
        let ended = async {
            while !self.task.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // A process that outlives the first one may hold the pipe open: then what is there must do.
        let _waited = tokio::time::timeout(patience, ended).await;
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
