//! Runs the program, answers its calls and the agent, passes signals on, and ends as the program ends.

use std::ffi::OsString;
use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::control::Control;
use crate::notify::Calls;
use crate::place::Place;
use crate::program::ParkedProgram;
use crate::{Contract, InitError, at, program};

/// Added to the number of the signal that has killed the program: the exit code of shells.
const KILLED: i32 = 128;

/// The exit code in place of 0 when the program has left processes behind.
const LEFT_BEHIND: u8 = 1;

/// What is passed on to the program.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// The program, and what is done for it.
struct Supervisor {
    pid: Pid,
    control: Option<Control>,
    calls: Option<(Calls, Place)>,
    signals: SignalFd,
    /// What SIGTERM is for the program.
    stop: Signal,
    /// It was asked to stop.
    stopping: bool,
}

/// Runs the program to its end. Returns the exit code.
pub(crate) fn run(contract: Contract, stop: Signal, command: &[OsString]) -> Result<u8, InitError> {
    let mut handled: SigSet = PASSED_ON.into_iter().collect();
    handled.add(Signal::SIGCHLD);
    handled.thread_block().map_err(at("blocking signals"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&handled, flags).map_err(at("watching signals"))?;

    let control = Control::open()?;
    if contract == Contract::Headstart {
        return match released(&control, &signals)? {
            true => Err(program::exec_with_control(command, control.into_socket())),
            false => Ok(0),
        };
    }
    let program = ParkedProgram::fork(contract, command)?;
    control.hello()?;
    if !released(&control, &signals)? {
        return Ok(0);
    }
    let (function, listener) = control.lease()?;
    control.acknowledge()?;
    let place = match contract {
        Contract::Port(port) => {
            // All is in place before its first call.
            let place = Place::new(port, listener).map_err(at("reading the listening socket"))?;
            program.release(&function, None)?;
            Some(place)
        }
        Contract::ListenFds | Contract::Headstart => {
            program.release(&function, Some(listener))?;
            control.ready()?;
            None
        }
    };
    let calls = program.calls.zip(place);
    Supervisor { pid: program.pid, control: Some(control), calls, signals, stop, stopping: false }.supervise()
}

/// Waits for the lease. False when the container is not needed: it was asked to stop, or the agent is gone.
fn released(control: &Control, signals: &SignalFd) -> Result<bool, InitError> {
    loop {
        let mut polled =
            [signals.as_fd(), control.as_fd()].map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.map_err(at("waiting for the lease"))?,
        };
        let has = |one: &PollFd<'_>, flag| one.revents().is_some_and(|events| events.contains(flag));
        let [signal, message] = &polled;
        if has(message, PollFlags::POLLIN) && !has(message, PollFlags::POLLHUP) {
            return Ok(true);
        }
        if message.any().unwrap_or(false) {
            return Ok(false);
        }
        if signal.any().unwrap_or(false)
            && let Some(read) = signals.read_signal().map_err(at("reading signals"))?
        {
            let number = i32::try_from(read.ssi_signo).unwrap_or_default();
            match Signal::try_from(number) {
                // The program's process has ended, and has said why.
                Ok(Signal::SIGCHLD) => return Err(InitError("the program's process has ended".to_owned())),
                Ok(Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT) => return Ok(false),
                _ => {}
            }
        }
    }
}

impl Supervisor {
    fn supervise(mut self) -> Result<u8, InitError> {
        loop {
            let [signal, message, call] = self.wait()?;
            if call {
                self.take_call();
            }
            // The agent is gone: the program serves on, and another agent stops it.
            if message && self.control.as_ref().is_some_and(|control| control.answer().is_err()) {
                self.control = None;
            }
            if signal && let Some(code) = self.take_signals()? {
                return Ok(code);
            }
        }
    }

    /// Which of signals, control socket and calls have something to read.
    fn wait(&self) -> Result<[bool; 3], InitError> {
        let mut polled = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        polled.extend(self.control.iter().map(|control| PollFd::new(control.as_fd(), PollFlags::POLLIN)));
        polled.extend(self.calls.iter().map(|(calls, _)| PollFd::new(calls.as_fd(), PollFlags::POLLIN)));
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok([false; 3]),
            result => result.map_err(at("waiting"))?,
        };
        let mut events = polled.iter().map(|one| one.revents().unwrap_or(PollFlags::empty()));
        let mut next = || events.next().unwrap_or(PollFlags::empty());
        let signal = !next().is_empty();
        let message = self.control.is_some() && !next().is_empty();
        // When all processes with the filter have ended it only hangs up, and to receive would wait for ever.
        let call = self.calls.is_some() && next().contains(PollFlags::POLLIN);
        Ok([signal, message, call])
    }

    fn take_call(&mut self) {
        let Some((calls, place)) = &mut self.calls else { return };
        match calls.next() {
            Ok(Some(call)) => {
                if place.answer(calls, &call)
                    && self.control.as_ref().is_some_and(|control| control.ready().is_err())
                {
                    self.control = None;
                }
            }
            Ok(None) => {}
            // All processes with the filter have ended.
            Err(_) => self.calls = None,
        }
    }

    /// Passes signals on and waits for children. Returns the exit code when the program has ended.
    fn take_signals(&mut self) -> Result<Option<u8>, InitError> {
        while let Some(signal) = self.signals.read_signal().map_err(at("reading signals"))? {
            let signal =
                i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            match signal {
                Some(Signal::SIGCHLD) | None => {
                    if let Some(code) = self.reap() {
                        return Ok(Some(code));
                    }
                }
                Some(signal) => {
                    if matches!(signal, Signal::SIGTERM | Signal::SIGINT) && !self.stopping {
                        self.stopping = true;
                        self.complain();
                    }
                    // It may have ended.
                    let signal = if signal == Signal::SIGTERM { self.stop } else { signal };
                    let _gone = kill(self.pid, signal);
                }
            }
        }
        Ok(None)
    }

    /// Waits for every child that has ended: as the first process of its namespace it inherits orphans.
    fn reap(&self) -> Option<u8> {
        let mut ended = None;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.pid => ended = Some(code),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.pid => {
                    ended = Some(KILLED + signal as i32);
                }
                Ok(WaitStatus::StillAlive) => break,
                Err(_) => break,
                Ok(_) => {}
            }
        }
        let code = ended?;
        // A program that fails says itself why.
        if code == 0 && !self.stopping {
            let others = matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive));
            if others {
                // They end with this process anyway. What is said last is what the operator sees.
                let _gone = kill(Pid::from_raw(-1), Signal::SIGKILL);
                while waitpid(None, None).is_ok() {}
                eprintln!(
                    "headstart-init: the program has ended and has left processes behind: run it in the foreground"
                );
                // An end without an error would say that all is well, if what it left has listened in time.
                return Some(LEFT_BEHIND);
            }
            self.complain();
        }
        Some(u8::try_from(code).unwrap_or(u8::MAX))
    }

    fn complain(&self) {
        if let Some(complaint) = self.calls.as_ref().and_then(|(_, place)| place.complaint()) {
            eprintln!("headstart-init: {complaint}");
        }
    }
}
