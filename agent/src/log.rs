//! The agent's log: lines for standard error.
//!
//! The reader of standard error may pause, and functions may print any number of lines. So lines wait in memory for a thread
//! that writes them, and are left out when there is no more room. What functions print waits apart from the agent's own lines, and has a
//! rate of its own: neither can it displace a line about a decision or a hand-over, here or in a journal that limits the
//! rate of a unit (systemd: 10 000 lines in 30 s).

mod printable;

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use headstart_config::LogFormat;
use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::bucket::TokenBucket;
use crate::measure;
pub(crate) use printable::printable;

/// The target of lines that functions print.
pub(crate) const FUNCTION: &str = "function";

/// Bytes of the agent's own lines that may wait, and of those of functions.
const WAITING_MAX: usize = 1024 * 1024;

/// Lines of all functions at once, and a second from then on.
const FUNCTION_LINES_BURST: u32 = 2000;
const FUNCTION_LINES_PER_SECOND: u32 = 200;

/// How long the last lines may take at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Begins to log. Until [`LogWriter::start`] each thread writes its own lines.
pub(crate) fn init(format: LogFormat) -> LogWriter {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = io::stderr().is_terminal();
    let form = match format {
        LogFormat::Text => Form::Text { colours },
        LogFormat::Json => Form::Json,
    };
    let writer = LogWriter::new(form, Box::new(io::stderr()));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer.clone()).with_ansi(colours);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    writer
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Text {
        colours: bool,
    },
    /// It escapes what needs it.
    Json,
}

/// Whose lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Agent,
    Functions,
}

/// Where lines go. Clones share it.
#[derive(Clone)]
pub(crate) struct LogWriter(Arc<Shared>);

struct Shared {
    form: Form,
    lines: Mutex<Lines>,
    changed: Condvar,
    sink: Mutex<Box<dyn Write + Send>>,
}

struct Lines {
    /// There is a thread that writes.
    started: bool,
    /// It has taken a line that is not written yet.
    writing: bool,
    /// Of the next line: lines are written in the order in which they came.
    number: u64,
    agent: Queue,
    functions: Queue,
    rate: TokenBucket,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    /// Lines that were left out, and have not been reported.
    left_out: u64,
}

impl Queue {
    fn push(&mut self, number: u64, line: Vec<u8>) -> bool {
        let room = self.bytes + line.len() <= WAITING_MAX;
        if room {
            self.bytes += line.len();
            self.lines.push_back((number, line));
        }
        room
    }

    /// How many lines were left out, once there is room to say so.
    fn take_left_out(&mut self) -> u64 {
        if self.lines.is_empty() { std::mem::take(&mut self.left_out) } else { 0 }
    }

    fn first(&self) -> u64 {
        self.lines.front().map_or(u64::MAX, |(number, _)| *number)
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let (_, line) = self.lines.pop_front()?;
        self.bytes -= line.len();
        Some(line)
    }
}

impl Lines {
    fn pop(&mut self) -> Option<Vec<u8>> {
        let agent_first = self.agent.first() <= self.functions.first();
        if agent_first { self.agent.pop() } else { self.functions.pop() }
    }

    fn is_empty(&self) -> bool {
        self.agent.lines.is_empty() && self.functions.lines.is_empty()
    }
}

impl LogWriter {
    fn new(form: Form, sink: Box<dyn Write + Send>) -> Self {
        let lines = Lines {
            started: false,
            writing: false,
            number: 0,
            agent: Queue::default(),
            functions: Queue::default(),
            rate: TokenBucket::new(FUNCTION_LINES_BURST, FUNCTION_LINES_PER_SECOND),
        };
        Self(Arc::new(Shared {
            form,
            lines: Mutex::new(lines),
            changed: Condvar::new(),
            sink: Mutex::new(sink),
        }))
    }

    /// Starts the thread that writes. It has the privileges of the caller.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub(crate) fn start(&self) -> io::Result<()> {
        let writer = self.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.write())?;
        self.lines().started = true;
        Ok(())
    }

    /// Waits until everything is written, for 2 s at most: the reader may have paused.
    pub(crate) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_LIMIT;
        let mut lines = self.lines();
        while lines.started && (lines.writing || !lines.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            lines = self.0.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) {
        loop {
            let mut lines = self.lines();
            let line = loop {
                match lines.pop() {
                    Some(line) => break line,
                    None => lines = self.0.changed.wait(lines).unwrap_or_else(PoisonError::into_inner),
                }
            };
            lines.writing = true;
            drop(lines);
            self.put(&line);
            let mut lines = self.lines();
            lines.writing = false;
            // There is room again: says what was left out.
            let left_out = [lines.agent.take_left_out(), lines.functions.take_left_out()];
            let done = lines.is_empty();
            drop(lines);
            for (count, whose) in left_out.into_iter().zip(["the agent", "functions"]) {
                if count > 0 {
                    tracing::warn!(lines = count, "lines of {whose} left out: too many, or read too slowly");
                }
            }
            if done {
                self.0.changed.notify_all();
            }
        }
    }

    /// Ignores errors: when the reader is gone, there is no other place to report that.
    fn put(&self, line: &[u8]) {
        let mut sink = self.0.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = sink.write_all(line).and_then(|()| sink.flush());
    }

    /// Takes a line, which ends in a line end.
    fn take(&self, line: &[u8], source: Source) {
        let line = match self.0.form {
            Form::Json => line.to_vec(),
            Form::Text { colours } => {
                let text = String::from_utf8_lossy(line);
                let text = text.strip_suffix('\n').unwrap_or(&text);
                let mut text = printable::escape(text, colours).into_owned();
                text.push('\n');
                text.into_bytes()
            }
        };
        let mut lines = self.lines();
        if !lines.started {
            drop(lines);
            return self.put(&line);
        }
        lines.number += 1;
        let number = lines.number;
        let kept = match source {
            Source::Agent => lines.agent.push(number, line),
            Source::Functions => lines.rate.take(1) && lines.functions.push(number, line),
        };
        if !kept {
            let queue = if source == Source::Agent { &mut lines.agent } else { &mut lines.functions };
            queue.left_out += 1;
        }
        drop(lines);
        self.0.changed.notify_all();
        if !kept {
            measure::record_log_left_out(if source == Source::Agent { "agent" } else { "functions" }, 1);
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(self, Source::Agent)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        LineWriter(self, if meta.target() == FUNCTION { Source::Functions } else { Source::Agent })
    }
}

/// For one line, which comes as a whole.
pub(crate) struct LineWriter<'a>(&'a LogWriter, Source);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.take(line, self.1);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
