//! TCP connections: to a name with several addresses, and how long a silent peer is believed to be there.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::ConnectCause;

/// How long an address has before the next one is tried too ("Connection Attempt Delay", RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Keep-alive probes that are lost until the peer is gone.
const KEEPALIVE_PROBES: u32 = 3;

/// Connects to the first address of `host_port` that answers; or to this address, if there is one.
pub(super) async fn dial(
    host_port: &str,
    address: Option<SocketAddr>,
    peer_timeout: Duration,
) -> Result<TcpStream, ConnectCause> {
    let stream = match address {
        Some(address) => first([address].into_iter()).await?,
        None => first(lookup_host(host_port).await.map_err(ConnectCause::Resolve)?).await?,
    };
    tune(stream, peer_timeout).map_err(ConnectCause::Dial)
}

/// Tries the addresses in the resolver's order, the next one also if the one before takes long: a host that is gone does not
/// refuse. Reports the last failure.
async fn first(addresses: impl Iterator<Item = SocketAddr>) -> Result<TcpStream, ConnectCause> {
    let mut addresses = addresses.peekable();
    let mut failure = ConnectCause::Resolve(io::Error::from(io::ErrorKind::NotFound));
    let mut attempts = JoinSet::new();
    loop {
        addresses.next().map(|address| attempts.spawn(TcpStream::connect(address)));
        let more = addresses.peek().is_some();
        let patience = async { if more { sleep(STAGGER).await } else { pending().await } };
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => failure = ConnectCause::Dial(error),
                Some(Err(_)) => failure = ConnectCause::TaskDied,
                None => return Err(failure),
            },
            () = patience => {}
        }
    }
}

/// The kernel ends the connection if the peer acknowledges nothing for this long: neither probes nor data (tcp(7),
/// `TCP_USER_TIMEOUT`).
fn tune(stream: TcpStream, peer_timeout: Duration) -> io::Result<TcpStream> {
    let socket = SockRef::from(&stream);
    let probe = peer_timeout / (2 * KEEPALIVE_PROBES);
    let keepalive = TcpKeepalive::new()
        .with_time(peer_timeout / 2)
        .with_interval(probe.max(Duration::from_secs(1)))
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(peer_timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use tokio::time::timeout;

    /// An address whose SYNs are dropped: its queue is full.
    fn silent() -> (SocketAddr, Socket, Vec<Socket>) {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let fill = (0..4).map(|_| {
            let client = socket();
            client.set_nonblocking(true).unwrap();
            drop(client.connect(&address)); // in progress, or never
            client
        });
        let fill = fill.collect();
        (address.as_socket().unwrap(), listener, fill)
    }

    #[tokio::test]
    async fn an_address_that_says_nothing_does_not_keep_the_others_from_being_tried() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = server.local_addr().unwrap();
        let (silent, _listener, _fill) = silent();
        let refusing = SocketAddr::from(([127, 0, 0, 1], 1));
        for addresses in [&[silent, good][..], &[silent, refusing, good], &[refusing, good], &[good, silent]]
        {
            let connected = timeout(Duration::from_secs(60), first(addresses.iter().copied()));
            let stream = connected.await.expect("in time").unwrap();
            assert_eq!(stream.peer_addr().unwrap(), good, "{addresses:?}");
        }
        let cause = first([refusing, refusing].into_iter()).await.unwrap_err();
        assert!(matches!(cause, ConnectCause::Dial(_)), "{cause}");
        assert!(matches!(first([].into_iter()).await, Err(ConnectCause::Resolve(_))));
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_noticed_in_time() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream =
            dial(&server.local_addr().unwrap().to_string(), None, Duration::from_secs(60)).await.unwrap();
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(60)));
        let probes = socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap() + probes, Duration::from_secs(60));
    }
}
