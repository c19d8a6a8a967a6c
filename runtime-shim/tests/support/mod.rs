//! A function in a process of its own, and the agent that started it.

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
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// While one process inherits its control socket, no other is started: it would too.
static STARTING: Mutex<()> = Mutex::new(());

/// A running function.
pub(crate) struct Instance {
    child: Child,
    /// The agent's end of its control socket.
    pub(crate) agent: Channel,
    /// Where its clients connect to.
    pub(crate) address: SocketAddr,
}

impl Instance {
    /// Starts a function with its lease already queued, as the agent does.
    pub(crate) fn start(command: Command, backends: Vec<(Grant, Option<OwnedFd>)>) -> Self {
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
    pub(crate) fn heard(&self) -> ToAgent {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.agent.recv::<ToAgent>() {
                Ok(received) => return received.message,
                Err(error) => assert!(error.would_block(), "{error}"),
            }
            assert!(Instant::now() < deadline, "the function says nothing");
            let mut sockets = [PollFd::new(self.agent.as_fd(), PollFlags::POLLIN)];
            poll(&mut sockets, PollTimeout::from(1000u16)).unwrap();
        }
    }

    /// Hears everything up to "ready"; returns the times of hello, injection and readiness.
    pub(crate) fn heard_until_ready(&self) -> (u64, u64, u64) {
        let ToAgent::Hello { hello_ns, .. } = self.heard() else { panic!("hello comes first") };
        let ToAgent::Ack { injected_ns } = self.heard() else { panic!("then the lease is acknowledged") };
        let ToAgent::Ready { ready_ns } = self.heard() else { panic!("then the function is ready") };
        (hello_ns, injected_ns, ready_ns)
    }

    /// The agent goes away; the function does not. Returns what it says to that.
    pub(crate) fn lose_agent(&mut self) -> String {
        let (other, _) = Channel::pair().unwrap();
        self.agent = other;
        let (mut line, mut byte) = (Vec::new(), [0]);
        let stderr = self.child.stderr.as_mut().unwrap();
        while stderr.read(&mut byte).unwrap() == 1 && byte != [b'\n'] {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    pub(crate) fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    }

    /// Waits for the end; returns how, after how long, and what it had to say.
    pub(crate) fn ended(mut self) -> (ExitStatus, Duration, String) {
        let begin = Instant::now();
        let mut said = String::new();
        // The end of standard error is the end of the process: it has no children.
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap(), begin.elapsed(), said)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a process that inherits this end of a control socket.
pub(crate) fn start_with(mut command: Command, control: &Channel) -> Child {
    let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    fcntl(control, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    command.env(CONTROL_FD_ENV, control.as_raw_fd().to_string());
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    fcntl(control, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    child
}

/// Starts a process without an agent, and runs it to its end.
pub(crate) fn run_alone(mut command: Command) -> (ExitStatus, String) {
    let begin = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    drop(begin);
    let output = child.unwrap().wait_with_output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}
