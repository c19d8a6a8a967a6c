//! What functions print becomes the agent's log, with the target `function`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::task::JoinHandle;

/// Longest line in bytes; longer ones are logged in pieces.
const MAX_LINE_BYTES: usize = 4096;

/// Read at a time, in bytes: with [`MAX_LINE_BYTES`] all that is buffered of one
/// instance. A function that prints faster than that is logged waits in its write.
const READ_BYTES: usize = 4096;

/// A pipe for an instance's output: the agent's end, and the instance's.
///
/// The instance's end can be read too, only so that the pipe has a reader when
/// the agent dies: without one, the next line that a function prints would end it
/// (`SIGPIPE`), with the requests that it is answering. The next agent reads on.
pub(super) fn pipe() -> io::Result<(io::PipeReader, File)> {
    let (output, writer) = io::pipe()?;
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    Ok((output, OpenOptions::new().read(true).write(true).open(path)?))
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
}

impl Lines {
    pub(super) fn new(function: &str, instance: &str) -> Self {
        Self {
            function: function.to_owned(),
            instance: instance.to_owned(),
            partial: Vec::new(),
            last: Arc::default(),
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
    pub(super) fn flush(&mut self) {
        let line = String::from_utf8_lossy(&self.partial).trim_end_matches('\r').to_owned();
        self.partial.clear();
        if line.is_empty() {
            return;
        }
        tracing::info!(target: "function", function = %self.function, instance = %self.instance, "{line}");
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = line;
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
            while let Ok(length @ 1..) = output.read(&mut buffer).await {
                lines.push(&buffer[..length]);
            }
            lines.flush();
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
