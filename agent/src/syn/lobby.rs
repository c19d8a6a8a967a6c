//! The lobby answers connections of ignored sources while their function is cold, so that a load balancer's health
//! check gets its 200 without starting an instance.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::http;

/// Most connections at a time; others wait in the accept queue.
const CONNECTIONS_MAX: usize = 64;
/// Length of the accept queue.
const BACKLOG: i32 = 128;
const HEAD: &str = "200 OK\r\nContent-Type: text/plain";
const BODY: &str = "asleep\n";

/// Opens the lobby on a loopback address, to which only the socket lookup gives connections; for both IP versions if the
/// host has them.
pub(super) fn open() -> io::Result<Socket> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let both = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0));
    bind(both).or_else(|_| bind(v4))
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Its connections have the functions' ports. In TIME_WAIT they would keep the next agent from binding those.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Answers connections until the agent ends.
pub(super) async fn serve(listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((mut client, _)) => {
                tokio::spawn(async move {
                    // An error means that the client has gone.
                    let _ = http::reply(&mut client, HEAD, BODY).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection from a source in `ignore`: {error}");
                // Probably no descriptors are left, so that accepting at once would spin.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
