//! Puts the agent's listening socket in the place of the program's own.
//!
//! ```text
//! program                          answer
//! socket()                         the kernel's
//! bind(fd, PORT)                   the kernel's, in the instance's own network; the socket is remembered
//! listen(fd)                       fd becomes the agent's listening socket
//! accept(fd), epoll_ctl(fd)        the kernel's: clients of the node come directly
//! listen(fd) again, shutdown(fd)   nothing is done
//! ```
//!
//! The socket is replaced at listen and not at bind, because by then most programs have said whether they block in accept:
//! `O_NONBLOCK` belongs to the socket, which all instances of the function share. Ports below 1024 are not bound, which
//! would need a privilege. Other ports and other families stay the kernel's own business.

use std::fs::File;
use std::io;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use headstart_wire::Channel;
use nix::libc;

use crate::memory::{self, BindAddress};
use crate::notify::{Call, Calls};

/// Sockets that are bound to the port and do not listen yet. A server has one per worker.
const BOUND_MAX: usize = 1024;

/// Ports from here on need no privilege (ip(7)).
const FREE_PORTS: u16 = 1024;

/// The listening socket, and what the program has done for it.
pub(crate) struct Place {
    port: NonZeroU16,
    listener: OwnedFd,
    /// Of the listener.
    inode: u64,
    /// The inodes of sockets that are bound to the port.
    bound: Vec<u64>,
    /// Another port that the program has bound last.
    other: Option<u16>,
    listens: bool,
}

impl Place {
    pub(crate) fn new(port: NonZeroU16, listener: OwnedFd) -> io::Result<Self> {
        let inode = File::from(listener.try_clone()?).metadata()?.ino();
        Ok(Self { port, listener, inode, bound: Vec::new(), other: None, listens: false })
    }

    /// Answers a call. True when the program listens from now on, and has not before.
    pub(crate) fn answer(&mut self, calls: &Calls, call: &Call) -> bool {
        match call.number {
            libc::SYS_bind => self.bind(calls, call),
            libc::SYS_listen => return self.listen(calls, call),
            libc::SYS_shutdown if self.is_ours(call) => calls.succeed(call),
            _ => calls.run(call),
        }
        false
    }

    fn bind(&mut self, calls: &Calls, call: &Call) {
        let [descriptor, place, length, ..] = call.arguments;
        let address = memory::address(call.thread, place, length);
        let Ok(inode) = memory::inode(call.thread, descriptor) else { return calls.run(call) };
        if !calls.is_waiting(call) {
            return;
        }
        self.bound.retain(|known| *known != inode);
        match address {
            Ok(BindAddress::Port(port)) if port == self.port.get() => {
                if self.bound.len() == BOUND_MAX {
                    self.bound.remove(0);
                }
                self.bound.push(inode);
                if port < FREE_PORTS {
                    return calls.succeed(call);
                }
            }
            Ok(BindAddress::Port(port)) if port != 0 => self.other = Some(port),
            // The kernel says what is wrong with it.
            _ => {}
        }
        calls.run(call);
    }

    fn listen(&mut self, calls: &Calls, call: &Call) -> bool {
        let [descriptor, ..] = call.arguments;
        let Ok(inode) = memory::inode(call.thread, descriptor) else {
            calls.run(call);
            return false;
        };
        if inode == self.inode {
            // Its backlog is the configured one.
            calls.succeed(call);
            return false;
        }
        let Some(index) = self.bound.iter().position(|bound| *bound == inode) else {
            calls.run(call);
            return false;
        };
        self.bound.swap_remove(index);
        if let Err(error) = self.replace(calls, call, descriptor) {
            eprintln!("headstart-init: the listening socket cannot be passed to the program: {error}");
            calls.run(call);
            return false;
        }
        calls.succeed(call);
        !std::mem::replace(&mut self.listens, true)
    }

    fn replace(&self, calls: &Calls, call: &Call, descriptor: u64) -> io::Result<()> {
        use std::os::fd::AsFd as _;

        let flags = memory::flags(call.thread, descriptor)?;
        set_nonblocking(&self.listener, flags & libc::O_NONBLOCK != 0)?;
        let number = memory::number(descriptor);
        calls.replace(call, number, self.listener.as_fd(), flags & libc::O_CLOEXEC != 0)
    }

    fn is_ours(&self, call: &Call) -> bool {
        memory::inode(call.thread, call.arguments[0]).is_ok_and(|inode| inode == self.inode)
    }

    /// What a program that should listen by now has done instead.
    pub(crate) fn complaint(&self) -> Option<String> {
        if self.listens {
            return None;
        }
        let port = self.port;
        Some(match (self.bound.is_empty(), self.other) {
            (false, _) => format!("the program has bound port {port} and does not listen"),
            (true, Some(other)) => format!(
                "the program has bound port {other}, and `port` of its function is {port}: make it use the variable \
                 PORT, or set port = {other}"
            ),
            (true, None) => format!("the program has not bound port {port}, which is in the variable PORT"),
        })
    }
}

fn set_nonblocking(listener: &OwnedFd, on: bool) -> io::Result<()> {
    let copy = Channel::from(listener.try_clone()?);
    copy.set_nonblocking(on).map_err(io::Error::other)
}
