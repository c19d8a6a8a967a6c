//! Connections whose TLS the agent speaks: the function gets one end of a socket pair, and its bytes there are passed on
//! in TLS.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// How long a server may take to close after the function has.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Begins to relay on `data`, and returns the function's end: non-blocking, close-on-exec. The relay ends when either
/// side does; the server is told at once that the function is gone. `place` is dropped when it has ended.
pub(super) fn begin<S>(server: S, data: &Handle, place: impl Send + 'static) -> io::Result<OwnedFd>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    // Older kernels cannot.
    let _ = headstart_wire::refuse_descriptors(&ours);
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let ours = {
        let _its_reactor = data.enter();
        UnixStream::from_std(ours)?
    };
    data.spawn(async move {
        relay(server, ours).await;
        drop(place);
    });
    Ok(theirs.into())
}

async fn relay(server: impl AsyncRead + AsyncWrite, function: UnixStream) {
    let (mut from_server, mut to_server) = split(server);
    let (mut from_function, mut to_function) = function.into_split();
    let up = async {
        // Either end may be lost at any time: then it is closed as after the last byte.
        let _ = copy(&mut from_function, &mut to_server).await;
        let _ = to_server.shutdown().await;
    };
    let mut down = std::pin::pin!(async {
        let _ = copy(&mut from_server, &mut to_function).await;
        let _ = to_function.shutdown().await;
    });
    tokio::select! {
        () = up => drop(timeout(CLOSE_LIMIT, down).await),
        () = &mut down => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, duplex};

    fn start() -> (tokio::io::DuplexStream, UnixStream) {
        let (server, relayed) = duplex(64);
        let function = std::os::unix::net::UnixStream::from(begin(relayed, &Handle::current(), ()).unwrap());
        (server, UnixStream::from_std(function).unwrap())
    }

    #[tokio::test]
    async fn both_ways_and_both_ends() {
        let (mut server, mut function) = start();
        let mut buf = [0; 4];
        function.write_all(b"ping").await.unwrap();
        server.read_exact(&mut buf).await.unwrap();
        server.write_all(b"pong").await.unwrap();
        function.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"pong");
        drop(function);
        assert_eq!(server.read(&mut buf).await.unwrap(), 0, "the server is told");
        drop(server);

        let (server, mut function) = start();
        drop(server);
        assert_eq!(function.read(&mut buf).await.unwrap(), 0, "the function is told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_close_is_left_alone_after_a_while() {
        let (mut server, function) = start();
        drop(function);
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        let gone = async {
            while server.write_all(&[0; 64]).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(CLOSE_LIMIT * 2, gone).await.expect("the relay has ended");
    }
}
