//! The program: a child of this process.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use command_fds::{CommandFdExt as _, FdMapping};
use headstart_wire::CONTROL_FD_ENV;
use nix::sys::signal::SigSet;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use crate::notify::Calls;
use crate::{InitError, at, filter};

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const LISTEN_FDS_START: RawFd = 3;

/// Selects [`exec_with_listen_pid`].
pub(crate) const WITH_LISTEN_PID: &str = "__with-listen-pid";

/// Takes a descriptor that this process has inherited.
#[expect(unsafe_code, reason = "a descriptor is inherited as a number")]
pub(crate) fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: the number is that of a descriptor which the agent has made for this process, and which is taken once. If it
    // is none, each use of it is an error.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Runs the program with a filter, and returns it with the descriptor on which its calls are answered.
pub(crate) fn filtered(command: &[OsString]) -> Result<(Child, Calls), InitError> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)
        .map_err(at("making a pair of sockets"))?;
    let mut program = prepared(command);
    before_exec(&mut program, move || {
        let calls = filter::install()?;
        let rights = [calls.as_raw_fd()];
        sendmsg::<()>(
            theirs.as_raw_fd(),
            &[io::IoSlice::new(b"!")],
            &[ControlMessage::ScmRights(&rights)],
            MsgFlags::empty(),
            None,
        )?;
        Ok(())
    });
    let child = spawn(program, command)?;
    let calls = receive(&ours).map_err(at("receiving the program's calls"))?;
    Ok((child, Calls::new(calls)))
}

/// Runs the program with the listening socket as its descriptor 3.
pub(crate) fn with_listener(command: &[OsString], listener: OwnedFd, name: &str) -> Result<Child, InitError> {
    let mut program = Command::new("/proc/self/exe");
    program.arg(WITH_LISTEN_PID).args(command).env_remove(CONTROL_FD_ENV);
    program.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name);
    let mapping = FdMapping { parent_fd: listener, child_fd: LISTEN_FDS_START };
    program.fd_mappings(vec![mapping]).map_err(at("passing the listening socket"))?;
    before_exec(&mut program, || Ok(()));
    spawn(program, command)
}

/// `LISTEN_PID` is the number of the process itself, which is not known before it is there. Returns why it cannot be run.
pub(crate) fn exec_with_listen_pid(command: &[OsString]) -> InitError {
    let Some((program, arguments)) = command.split_first() else {
        return InitError("no program".to_owned());
    };
    let pid = std::process::id().to_string();
    cannot_run(program, Command::new(program).args(arguments).env("LISTEN_PID", pid).exec())
}

fn prepared(command: &[OsString]) -> Command {
    let (program, arguments) =
        command.split_first().map_or((OsString::new(), &[][..]), |(program, rest)| (program.clone(), rest));
    let mut prepared = Command::new(program);
    prepared.args(arguments).env_remove(CONTROL_FD_ENV);
    prepared
}

fn spawn(mut program: Command, command: &[OsString]) -> Result<Child, InitError> {
    let name = command.first().cloned().unwrap_or_default();
    program.spawn().map_err(|error| cannot_run(&name, error))
}

fn cannot_run(program: &OsString, error: io::Error) -> InitError {
    InitError(format!("{} cannot be run: {error}", program.display()))
}

/// Does something in the child, between fork and exec.
#[expect(
    unsafe_code,
    reason = "the standard library leaves the safety of what runs after a fork to its caller"
)]
fn before_exec(program: &mut Command, mut work: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    let in_child = move || {
        // This process waits for signals, and has them blocked. A child inherits that.
        SigSet::all().thread_unblock()?;
        work()
    };
    // SAFETY: this process has one thread, so that no lock can be held by another one at the fork.
    unsafe { program.pre_exec(in_child) };
}

fn receive(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut byte = [0];
    let mut data = [io::IoSliceMut::new(&mut byte)];
    let received =
        recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message
            && let [number] = numbers[..]
        {
            return Ok(inherited(number));
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
