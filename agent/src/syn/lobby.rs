//! The lobby: answers ignored sources while the function they ask for is cold. A health checker of a load
//! balancer gets its 200 without having woken anything.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::http;

/// Visitors at a time; more wait in the accept queue.
const VISITORS_MAX: usize = 64;
/// Connections that wait for their turn.
const BACKLOG: i32 = 128;
const HEAD: &str = "200 OK\r\nContent-Type: text/plain";
const BODY: &str = "asleep\n";

/// Opens the lobby on a loopback address, where only the socket lookup leads; one that takes both IP versions
/// where there are two.
pub(super) fn open() -> io::Result<Socket> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let both = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0));
    bind(both).or_else(|_| bind(v4))
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Answers visitors for as long as the agent runs.
pub(super) async fn serve(listener: TcpListener) {
    let places = Arc::new(Semaphore::new(VISITORS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((mut visitor, _)) => {
                tokio::spawn(async move {
                    // A visitor that leaves early is no news.
                    let _ = http::reply(&mut visitor, HEAD, BODY).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("the lobby cannot accept: {error}");
                // Out of descriptors, most likely: accepting at once again would only spin.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
