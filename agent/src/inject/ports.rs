//! Listeners on the loopback interface of a container, for drivers that know only TCP.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use nix::sched::{CloneFlags, setns};

/// Listens at these ports of 127.0.0.1 in a network namespace. Only processes in that namespace can connect.
pub(super) fn listen(
    network: &File,
    ports: impl Iterator<Item = u16> + Send,
) -> io::Result<Vec<TcpListener>> {
    let enter_and_bind = || {
        setns(network, CloneFlags::CLONE_NEWNET)?;
        ports.map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).collect()
    };
    // setns(2) changes the namespace of one thread, so a thread of its own does it and ends.
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter_and_bind)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that listens died")))
    })
}
