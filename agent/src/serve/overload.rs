//! Answers to clients that no instance will serve in time.
//!
//! The agent takes them out of the accept queue itself. A client of HTTP gets its status with `Retry-After` (RFC 9110,
//! 10.2.3; RFC 6585, 4), any other, and all with `overload = "reset"`, a connection reset.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use headstart_config::Overload;
use socket2::{SockRef, Socket};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::http;

/// Clients that are being answered at a time, on the whole node; more are reset.
const ANSWERS_MAX: usize = 256;

static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(ANSWERS_MAX)));

/// Takes up to `count` connections, those that have waited longest, and answers them by tasks of their own. `why` is the
/// text for clients of HTTP. Returns how many there were.
///
/// # Errors
/// When no more can be accepted, for another reason than that none waits.
pub(crate) fn answer(
    listener: impl AsFd,
    count: u32,
    how: Overload,
    retry_after: Duration,
    why: &'static str,
) -> (u32, io::Result<()>) {
    let listener = SockRef::from(&listener);
    for taken in 0..count {
        match listener.accept() {
            Ok((client, _)) => turn_away(client, how, retry_after, why),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return (taken, Ok(())),
                // That client has left already.
                io::ErrorKind::ConnectionAborted => {}
                _ => return (taken, Err(error)),
            },
        }
    }
    (count, Ok(()))
}

fn turn_away(client: Socket, how: Overload, retry_after: Duration, why: &'static str) {
    let Some(head) = head(how, retry_after) else { return reset(&client) };
    let Ok(place) = Arc::clone(&PLACES).try_acquire_owned() else { return reset(&client) };
    tokio::spawn(async move {
        // A client that leaves early needs no answer.
        let _ = tell(client, &head, why).await;
        drop(place);
    });
}

async fn tell(client: Socket, head: &str, why: &str) -> io::Result<()> {
    client.set_nonblocking(true)?;
    let mut client = TcpStream::from_std(client.into())?;
    if !http::reply(&mut client, head, why).await? {
        reset(&SockRef::from(&client));
    }
    Ok(())
}

/// The end, when it is dropped, is a reset and not a FIN (socket(7), `SO_LINGER`).
fn reset(client: &Socket) {
    // An option that every socket has.
    let _ = client.set_linger(Some(Duration::ZERO));
}

/// Status and header of the answer, if it is one.
fn head(how: Overload, retry_after: Duration) -> Option<String> {
    let status = match how {
        Overload::Http503 => "503 Service Unavailable",
        Overload::Http429 => "429 Too Many Requests",
        Overload::Reset => return None,
    };
    let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
    Some(format!("{status}\r\nRetry-After: {}\r\nContent-Type: text/plain", seconds.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpStream as Client};

    fn listening() -> (std::os::fd::OwnedFd, SocketAddr) {
        let listener = crate::serve::listen((Ipv4Addr::LOCALHOST, 0).into(), 16).unwrap();
        let socket = Socket::from(listener);
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket.into(), address)
    }

    async fn asked(address: SocketAddr, request: &'static [u8]) -> io::Result<String> {
        let client = tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(address)?;
            client.write_all(request)?;
            let mut text = String::new();
            client.read_to_string(&mut text)?;
            Ok(text)
        });
        client.await.unwrap()
    }

    async fn exchange(how: Overload, request: &'static [u8]) -> io::Result<String> {
        let (listener, address) = listening();
        let client = tokio::spawn(asked(address, request));
        let mut watch = crate::serve::QueueWatch::new(Arc::new(listener.try_clone().unwrap()));
        let (sender, mut came) = tokio::sync::mpsc::channel(8);
        watch.arm(Duration::ZERO, move |at_ns| {
            let sender = sender.clone();
            async move { sender.send(at_ns).await.unwrap() }
        });
        came.recv().await.unwrap();
        let (taken, result) = answer(&listener, 5, how, Duration::from_millis(1500), "why\n");
        result.unwrap();
        assert_eq!(taken, 1, "only one waits");
        client.await.unwrap()
    }

    #[tokio::test]
    async fn clients_of_http_are_told_when_to_come_again() {
        for (how, status) in [(Overload::Http503, "503 Service"), (Overload::Http429, "429 Too Many")] {
            let text = exchange(how, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text}");
            assert!(text.contains("\r\nRetry-After: 2\r\n") && text.ends_with("\r\n\r\nwhy\n"), "{text}");
        }
    }

    #[tokio::test]
    async fn others_are_reset() {
        for (how, request) in [
            (Overload::Http503, b"\x16\x03\x01 no HTTP\n\n".as_slice()),
            (Overload::Reset, b"GET / HTTP/1.1\r\n\r\n"),
        ] {
            let error = exchange(how, request).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{how:?}");
        }
    }
}
