//! Listeners on the loopback interface of a container, for drivers that know only TCP.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use nix::sched::{CloneFlags, setns};

/// Listens at these ports of 127.0.0.1 in a network namespace. Only who is in it can connect.
pub(super) fn listen(
    network: &File,
    ports: impl Iterator<Item = u16> + Send,
) -> io::Result<Vec<TcpListener>> {
    let enter_and_bind = || {
        setns(network, CloneFlags::CLONE_NEWNET)?;
        ports.map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).collect()
    };
    // A namespace belongs to a thread: to one that does nothing else.
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter_and_bind)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that listens died")))
    })
}
