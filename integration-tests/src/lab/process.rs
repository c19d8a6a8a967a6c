//! A child process: its log as lines that can be waited for, and never left running.

use anyhow::{Context, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How long the last lines of a process may take to arrive after it has ended: a grandchild that
/// still holds the pipe must not delay the news.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A running child process. Killed and reaped on drop.
#[derive(Debug)]
pub struct ChildProcess {
    text: String,
    child: Child,
    pidfd: OwnedFd,
    log: Arc<ProcessLog>,
}

#[derive(Debug, Default)]
struct ProcessLog {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<(OutputPipe, String)>,
    open_pipes: usize,
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OutputPipe {
    Stdout,
    Stderr,
}

impl ChildProcess {
    /// Starts `command` with its output captured.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let text = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::adopt(text.clone(), command.spawn().with_context(|| format!("starting {text}"))?)
    }

    /// The same, with a pipe to its standard input.
    pub fn spawn_with_input(command: &mut Command) -> Result<(Self, ChildStdin)> {
        let text = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {text}"))?;
        let input = child.stdin.take().context("a piped input is there to take")?;
        Ok((Self::adopt(text, child)?, input))
    }

    fn adopt(text: String, mut child: Child) -> Result<Self> {
        let pidfd = pidfd(child.id())?;
        let log = Arc::new(ProcessLog::default());
        log.lock().open_pipes = 2;
        if let Some(pipe) = child.stdout.take() {
            log.collect(OutputPipe::Stdout, pipe);
        }
        if let Some(pipe) = child.stderr.take() {
            log.collect(OutputPipe::Stderr, pipe);
        }
        let (watched, watcher) = (pidfd.try_clone()?, Arc::clone(&log));
        thread::spawn(move || {
            // The child is killed and reaped by its owner at the latest, which ends this wait.
            if ended(watched.as_fd(), None) {
                watcher.lock().ended = true;
                watcher.changed.notify_all();
            }
        });
        Ok(Self { text, child, pidfd, log })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a line of its output contains `text`, and returns that line. Fails as soon as
    /// the process ends without it.
    pub fn wait_line(&self, text: &str, limit: Duration) -> Result<String> {
        let mut deadline = Instant::now() + limit;
        let mut state = self.log.lock();
        let mut last_words = false;
        loop {
            if let Some((_, line)) = state.lines.iter().find(|(_, line)| line.contains(text)) {
                return Ok(line.clone());
            }
            if state.ended && !last_words {
                last_words = true;
                deadline = Instant::now() + LAST_WORDS;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || (state.ended && state.open_pipes == 0) {
                let why = if state.ended { "ended" } else { "took too long" };
                drop(state);
                bail!("{} {why} without printing {text:?}:\n{}", self.text, self.log());
            }
            (state, _) = self.log.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until it ends by itself. After `limit` it is killed, and that is an error.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let in_time = self.ended_within(limit);
        if !in_time {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        if !in_time {
            bail!("{} was still running after {limit:?}:\n{}", self.text, self.log());
        }
        Ok(status)
    }

    /// Sends `signal` and waits for the end; after `grace` it is killed, and that is an error.
    pub fn stop(&mut self, signal: Signal, grace: Duration) -> Result<ExitStatus> {
        if self.child.try_wait()?.is_none() {
            kill(Pid::from_raw(i32::try_from(self.id())?), signal)?;
        }
        self.wait(grace)
    }

    /// Waits up to `limit` for the end and says whether it came: also the pause between two
    /// attempts at something that only a living process can grant.
    pub fn ended_within(&self, limit: Duration) -> bool {
        ended(self.pidfd.as_fd(), Some(limit))
    }

    /// Everything printed so far, both streams.
    pub fn log(&self) -> String {
        self.lines(|_| true)
    }

    /// Everything printed to standard output so far.
    pub fn stdout(&self) -> String {
        self.lines(|source| source == OutputPipe::Stdout)
    }

    fn lines(&self, wanted: impl Fn(OutputPipe) -> bool) -> String {
        if self.ended_within(Duration::ZERO) {
            self.log.drain();
        }
        let mut text = String::new();
        for (_, line) in self.log.lock().lines.iter().filter(|(source, _)| wanted(*source)) {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl ProcessLog {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(self: &Arc<Self>, source: OutputPipe, pipe: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                log.lock().lines.push((source, String::from_utf8_lossy(&line).into_owned()));
                log.changed.notify_all();
            }
            log.lock().open_pipes -= 1;
            log.changed.notify_all();
        });
    }

    fn drain(&self) {
        let open = self.lock();
        drop(self.changed.wait_timeout_while(open, LAST_WORDS, |state| state.open_pipes > 0));
    }
}

/// A descriptor that becomes readable when process `pid` ends; it need not be a child.
pub(super) fn pidfd(pid: u32) -> Result<OwnedFd> {
    let id =
        i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).context("no such process id")?;
    Ok(rustix::process::pidfd_open(id, rustix::process::PidfdFlags::empty())?)
}

/// Waits for the end of a process, without a limit if none is given.
pub(super) fn ended(pidfd: BorrowedFd<'_>, limit: Option<Duration>) -> bool {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = match deadline {
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Round up: a wait of 0 would make a busy loop of the last millisecond.
                PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        match nix::poll::poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], left) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return false,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}
