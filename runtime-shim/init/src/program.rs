//! The program: a child of this process, which waits before its exec until the instance is released.
//!
//! ```text
//! init                               child
//!   | <-- its calls (port) ------------ |   filtered, waits
//!   | --- function, socket (listen-fds) -> |   execs the program
//! ```

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use command_fds::{CommandFdExt as _, FdMapping};
use headstart_wire::{CONTROL_FD, CONTROL_FD_ENV};
use nix::sys::signal::SigSet;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use nix::unistd::{ForkResult, Pid, fork};

use crate::notify::Calls;
use crate::{Contract, InitError, NOT_RUN, at, filter};

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const LISTEN_FDS_START: RawFd = 3;

/// Longer than any name of a function.
const NAME_BYTES: usize = 256;

/// A child that waits for its exec.
pub(crate) struct ParkedProgram {
    pub(crate) pid: Pid,
    /// The descriptor on which its calls are answered.
    pub(crate) calls: Option<Calls>,
    socket: OwnedFd,
}

impl ParkedProgram {
    /// Makes the child, with a filter for contract `port`.
    pub(crate) fn fork(contract: Contract, command: &[OsString]) -> Result<Self, InitError> {
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(at("making a pair of sockets"))?;
        let Some(pid) = fork_alone().map_err(at("making a process"))? else {
            drop(socket);
            let error = run(contract, command, &theirs);
            eprintln!("headstart-init: {error}");
            std::process::exit(NOT_RUN.into());
        };
        drop(theirs);
        let calls = match contract {
            Contract::ListenFds | Contract::Headstart => None,
            Contract::Port(_) => {
                let (_, calls) = receive(&socket).map_err(at("filtering the program's system calls"))?;
                Some(Calls::new(calls.ok_or_else(|| InitError("the program has no filter".to_owned()))?))
            }
        };
        Ok(Self { pid, calls, socket })
    }

    /// Lets it exec. With a listening socket, the program inherits that.
    pub(crate) fn release(&self, function: &str, listener: Option<OwnedFd>) -> Result<(), InitError> {
        send(&self.socket, function.as_bytes(), listener.as_ref()).map_err(at("releasing the program"))
    }
}

/// Runs a program that speaks the protocol itself, in the place of this one. Returns why it cannot be run.
pub(crate) fn exec_with_control(command: &[OsString], control: OwnedFd) -> InitError {
    let Some((program, arguments)) = command.split_first() else {
        return InitError("no program".to_owned());
    };
    let mut command = Command::new(program);
    command.args(arguments).env(CONTROL_FD_ENV, CONTROL_FD.to_string());
    let mapped = command.fd_mappings(vec![FdMapping { parent_fd: control, child_fd: CONTROL_FD }]);
    if let Err(error) = mapped.map_err(at("passing the control socket")) {
        return error;
    }
    match SigSet::all().thread_unblock().map_err(at("unblocking signals")) {
        Ok(()) => InitError(format!("{} cannot be run: {}", program.display(), command.exec())),
        Err(error) => error,
    }
}

/// Takes a descriptor that this process has inherited.
#[expect(unsafe_code, reason = "a descriptor is inherited as a number")]
pub(crate) fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: the number is that of a descriptor which was made for this process, and which is taken once. If it is none,
    // each use of it is an error.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Returns the child's number in the parent, and `None` in the child.
#[expect(unsafe_code, reason = "fork is safe where there is one thread, which the compiler cannot know")]
fn fork_alone() -> nix::Result<Option<Pid>> {
    // SAFETY: this process has one thread, so that no lock can be held by another one at the fork.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// The child. Returns why the program cannot be run.
fn run(contract: Contract, command: &[OsString], socket: &OwnedFd) -> InitError {
    let Some((program, arguments)) = command.split_first() else {
        return InitError("no program".to_owned());
    };
    let mut command = Command::new(program);
    command.args(arguments).env_remove(CONTROL_FD_ENV);
    match wait(contract, socket, &mut command) {
        Ok(()) => InitError(format!("{} cannot be run: {}", program.display(), command.exec())),
        Err(error) => error,
    }
}

fn wait(contract: Contract, socket: &OwnedFd, command: &mut Command) -> Result<(), InitError> {
    // The parent waits for signals, and has them blocked.
    SigSet::all().thread_unblock().map_err(at("unblocking signals"))?;
    if let Contract::Port(_) = contract {
        let calls = filter::install().map_err(at("filtering system calls"))?;
        send(socket, b"calls", Some(&calls)).map_err(at("passing the filter on"))?;
    }
    let (function, listener) = receive(socket).map_err(at("waiting for the release"))?;
    if let Some(listener) = listener {
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", function);
        command.env("LISTEN_PID", std::process::id().to_string());
        let mapping = FdMapping { parent_fd: listener, child_fd: LISTEN_FDS_START };
        command.fd_mappings(vec![mapping]).map_err(at("passing the listening socket"))?;
    }
    Ok(())
}

fn send(socket: &OwnedFd, bytes: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptor.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// One message, and the descriptor that came with it. The end of the other process is an error.
fn receive(socket: &OwnedFd) -> io::Result<(String, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut bytes = [0; NAME_BYTES];
    let mut data = [IoSliceMut::new(&mut bytes)];
    let received =
        recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let (length, mut descriptor) = (received.bytes, None);
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            descriptor = numbers.first().map(|number| inherited(*number));
        }
    }
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = bytes.get(..length).unwrap_or_default();
    Ok((String::from_utf8_lossy(text).into_owned(), descriptor))
}
