//! The lobby: answers ignored sources while the function they ask for is cold. A health checker of a load
//! balancer gets its 200 without having woken anything.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Visitors at a time; more wait in the accept queue.
const VISITORS_MAX: usize = 64;
/// Connections that wait for their turn.
const BACKLOG: i32 = 128;
/// Bytes of a request that are read.
const REQUEST_MAX: usize = 4096;
/// From the connection to the end of the request.
const PATIENCE: Duration = Duration::from_secs(5);

const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 7\r\nConnection: close\r\n\r\n";
const BODY: &[u8] = b"asleep\n";

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
            Ok((visitor, _)) => {
                tokio::spawn(async move {
                    // A visitor that leaves early is no news.
                    let _ = answer(visitor).await;
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

async fn answer(mut visitor: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut request = Vec::with_capacity(REQUEST_MAX);
    let whole = tokio::time::timeout(PATIENCE, async {
        while request.len() < REQUEST_MAX && !is_whole(&request) {
            if (&mut visitor).take((REQUEST_MAX - request.len()) as u64).read_buf(&mut request).await? == 0 {
                break;
            }
        }
        io::Result::Ok(is_whole(&request))
    });
    if matches!(whole.await, Ok(Ok(true))) && is_http(&request) {
        let body = if request.starts_with(b"HEAD ") { b"".as_slice() } else { BODY };
        visitor.write_all(&[HEAD, body].concat()).await?;
        visitor.shutdown().await?;
    }
    Ok(())
}

/// Up to the blank line (RFC 9112, 2.1; a lone LF counts, as its 2.2 allows).
fn is_whole(request: &[u8]) -> bool {
    request.windows(4).any(|end| end == b"\r\n\r\n") || request.windows(2).any(|end| end == b"\n\n")
}

/// Whether the first line ends in an HTTP version.
fn is_http(request: &[u8]) -> bool {
    let line = request.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn visit(request: &[u8]) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(2 * REQUEST_MAX);
        client.write_all(request).await.unwrap();
        let lobby = tokio::spawn(answer(server));
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).await.unwrap();
        lobby.await.unwrap().unwrap();
        reply
    }

    #[tokio::test(start_paused = true)]
    async fn http_is_answered() {
        let both = [("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "asleep\n"), ("HEAD / HTTP/1.0\n\n", "")];
        for (request, body) in both {
            let reply = String::from_utf8(visit(request.as_bytes()).await).unwrap();
            assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
            assert_eq!(reply.split_once("\r\n\r\n").unwrap().1, body);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn everything_else_is_closed_when_it_is_complete_or_too_long_or_late() {
        let long = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'x'; REQUEST_MAX]].concat();
        for request in [b"".as_slice(), b"\x16\x03\x01", b"*1\r\n$4\r\nPING\r\n", b"GET / FTP\r\n\r\n", &long]
        {
            assert_eq!(visit(request).await, b"", "{request:?}");
        }
    }

    #[test]
    fn the_declared_length_is_the_bodys() {
        let head = std::str::from_utf8(HEAD).unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", BODY.len())) && head.ends_with("\r\n\r\n"));
    }
}
