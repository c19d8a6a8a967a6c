//! Test support: a function in a process of its own, with the test as the agent that started it.

#![expect(clippy::unwrap_used, reason = "it is part of tests, where a failed step must end the test")]
#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use headstart_wire::{Activity, CONTROL_FD_ENV, Channel, Grant, Lease, ToAgent, ToFunction};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than any step should take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Locked while a process starts, so that no other process inherits its control socket.
static STARTING: Mutex<()> = Mutex::new(());

/// A running function.
#[derive(Debug)]
pub struct FunctionProcess {
    child: Child,
    /// The agent's end of its control socket.
    pub agent: Channel,
    /// The address that its clients connect to.
    pub address: SocketAddr,
}

impl FunctionProcess {
    /// Starts a function with its lease already in the control socket, as the agent does.
    pub fn start(command: Command, backends: Vec<(Grant, Option<OwnedFd>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (backends, sockets): (Vec<_>, Vec<_>) = backends.into_iter().unzip();
        let (_, page) = Activity::create().unwrap();
        let (function, instance) = ("test".into(), "test-1".into());
        let lease = Lease { function, instance, concurrency: None, backends };
        let mut descriptors = vec![listener.as_fd(), page.as_fd()];
        descriptors.extend(sockets.iter().flatten().map(AsFd::as_fd));
        let (agent, function) = Channel::pair().unwrap();
        agent.send(&ToFunction::Lease(lease), &descriptors).unwrap();
        Self { child: start_with(command, &function), agent, address }
    }

    /// The next message of the function.
    pub fn next_message(&self) -> ToAgent {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.agent.recv::<ToAgent>() {
                Ok(received) => return received.message,
                Err(error) => assert!(error.would_block(), "{error}"),
            }
            assert!(Instant::now() < deadline, "the function sends nothing");
            let mut sockets = [PollFd::new(self.agent.as_fd(), PollFlags::POLLIN)];
            poll(&mut sockets, PollTimeout::from(1000u16)).unwrap();
        }
    }

    /// Receives all messages up to "ready"; returns the times of hello, injection and readiness, in nanoseconds.
    pub fn messages_until_ready(&self) -> (u64, u64, u64) {
        let ToAgent::Hello { hello_ns, .. } = self.next_message() else { panic!("hello comes first") };
        let ToAgent::Ack { injected_ns } = self.next_message() else {
            panic!("then the lease is acknowledged")
        };
        let ToAgent::Ready { ready_ns } = self.next_message() else { panic!("then the function is ready") };
        (hello_ns, injected_ns, ready_ns)
    }

    /// Closes the agent's end, and returns the line that the function then writes to standard error.
    pub fn lose_agent(&mut self) -> String {
        let (other, _) = Channel::pair().unwrap();
        self.agent = other;
        let (mut line, mut byte) = (Vec::new(), [0]);
        let stderr = self.child.stderr.as_mut().unwrap();
        while stderr.read(&mut byte).unwrap() == 1 && byte != [b'\n'] {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    }

    /// Waits for the end; returns the exit status, the time it took, and standard error.
    pub fn ended(mut self) -> (ExitStatus, Duration, String) {
        let begin = Instant::now();
        let mut stderr = String::new();
        // The end of standard error is the end of the process: it has no children.
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap(), begin.elapsed(), stderr)
    }
}

impl Drop for FunctionProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a process that inherits this end of a control socket.
pub fn start_with(mut command: Command, control: &Channel) -> Child {
    let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    fcntl(control, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    command.env(CONTROL_FD_ENV, control.as_raw_fd().to_string());
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    fcntl(control, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    child
}

/// Runs a process without an agent; returns its exit status and standard error.
pub fn run_alone(mut command: Command) -> (ExitStatus, String) {
    let begin = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    drop(begin);
    let output = child.unwrap().wait_with_output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}
