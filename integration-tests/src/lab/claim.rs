//! Numbers that processes on one host must divide among themselves: subnets and ports.
//!
//! A claim is an abstract unix socket. It lives in the same network namespace as what it stands
//! for, and dies with its process, however that ends.

use anyhow::{Result, bail};
use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
};

/// Ports below those that the kernel gives to clients (32768 and up): no other program takes one by
/// chance, and a client that polls one before its server listens cannot connect to itself.
const FIRST_PORT: u16 = 20_000;
const PORTS_PER_PROCESS: u16 = 200;
const PROCESSES: u32 = 50;

/// A number that this process alone has, until dropped.
#[derive(Debug)]
pub(super) struct NumberClaim {
    number: u32,
    _socket: UnixListener,
}

impl NumberClaim {
    /// Claims one of the numbers below `count`.
    pub(super) fn take(kind: &str, count: u32) -> Result<Self> {
        let start = process::id() % count;
        for number in (start..count).chain(0..start) {
            let name = UnixAddr::from_abstract_name(format!("headstart-lab-{kind}-{number}"))?;
            match UnixListener::bind_addr(&name) {
                Ok(socket) => return Ok(Self { number, _socket: socket }),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("all {count} of {kind} are taken")
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

/// A loopback address whose port is free, and which no other program takes by chance.
pub fn free_port() -> Result<SocketAddr> {
    static RANGE: Mutex<Option<NumberClaim>> = Mutex::new(None);
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let mut range = RANGE.lock().unwrap_or_else(PoisonError::into_inner);
    let claim = match range.take() {
        Some(claim) => claim,
        None => NumberClaim::take("ports", PROCESSES)?,
    };
    let first = FIRST_PORT + u16::try_from(claim.number())? * PORTS_PER_PROCESS;
    *range = Some(claim);
    for _ in 0..PORTS_PER_PROCESS {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS_PER_PROCESS;
        let address = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(address).is_ok() {
            return Ok(address.into());
        }
    }
    bail!("all {PORTS_PER_PROCESS} ports of this process are in use")
}
