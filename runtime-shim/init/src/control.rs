//! The control socket: the lease, and the answers that a shim would give.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use headstart_wire::{CONTROL_FD, CONTROL_FD_ENV, CONTROL_PATH, Channel, ToAgent, ToFunction, monotonic_ns};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

use crate::{InitError, at};

/// The instance's end of the control socket.
pub(crate) struct Control(Channel);

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Control {
    /// Takes the socket that is inherited, or connects to the one that the container sees. The program does not inherit it.
    pub(crate) fn open() -> Result<Self, InitError> {
        let number = CONTROL_FD.to_string();
        let socket = match std::env::var(CONTROL_FD_ENV) {
            Ok(named) if named == number => crate::program::inherited(CONTROL_FD),
            Ok(named) => return Err(InitError(format!("{CONTROL_FD_ENV} is {named:?} and not {number}"))),
            Err(_) => connect().map_err(at("connecting to the agent, which alone runs this program"))?,
        };
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(at("reading the control socket"))?;
        Ok(Self(Channel::from(socket)))
    }

    /// The socket, for a program that speaks the protocol itself.
    pub(crate) fn into_socket(self) -> OwnedFd {
        self.0.into()
    }

    /// All is ready for the lease.
    pub(crate) fn hello(&self) -> Result<(), InitError> {
        let shim = concat!("headstart-init ", env!("CARGO_PKG_VERSION")).to_owned();
        self.tell(&ToAgent::Hello { shim, hello_ns: now_ns() })
    }

    /// Reads the lease. Returns the function's name and the listening socket.
    pub(crate) fn lease(&self) -> Result<(String, OwnedFd), InitError> {
        let received = self.0.recv::<ToFunction>().map_err(at("reading the lease"))?;
        let ToFunction::Lease(lease) = received.message else {
            return Err(InitError("the agent's first message is no lease".to_owned()));
        };
        // The page is not needed: the agent counts the connections of this program.
        let listener = received.descriptors.into_iter().next();
        let listener = listener.ok_or_else(|| InitError("a lease without a socket".to_owned()))?;
        Ok((lease.function, listener))
    }

    /// The lease has arrived.
    pub(crate) fn acknowledge(&self) -> Result<(), InitError> {
        self.tell(&ToAgent::Ack { injected_ns: now_ns() })
    }

    /// The program listens.
    pub(crate) fn ready(&self) -> Result<(), InitError> {
        self.tell(&ToAgent::Ready { ready_ns: now_ns() })
    }

    /// Reads one message and answers it. An error means that the agent is gone.
    pub(crate) fn answer(&self) -> Result<(), InitError> {
        let received = self.0.recv::<ToFunction>().map_err(at("reading the control socket"))?;
        match received.message {
            // The agent looks itself whether a connection is open, when all is stopped.
            ToFunction::Freeze { .. } => self.tell(&ToAgent::Quiet {}),
            ToFunction::Thaw {} => self.tell(&ToAgent::Thawed { thawed_ns: now_ns() }),
            ToFunction::Lease(_) | ToFunction::Grant(_) | ToFunction::NextKey { .. } => Ok(()),
        }
    }

    fn tell(&self, message: &ToAgent) -> Result<(), InitError> {
        self.0.send(message, &[]).map_err(at("writing to the control socket"))
    }
}

fn connect() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(CONTROL_PATH)?)?;
    Ok(socket)
}

fn now_ns() -> u64 {
    // It fails only where the kernel has no such clock.
    monotonic_ns().unwrap_or(0)
}
