//! Real sockets. Where the limits are seconds the clock is paused, and goes on by itself while all tasks wait.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

const REQUEST: &[u8] = b"GET /ok HTTP/1.1\r\nhost: localhost\r\n\r\n";
const HALF: &[u8] = b"GET /ok HTTP/1.1\r\nhost: loc";
const SLOW: &[u8] = b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Long enough for an answer over loopback that comes, short for one that does not.
const MOMENT: Duration = Duration::from_millis(100);

/// A server with a route that answers at once, and one that answers after `finish`.
struct Bed {
    address: SocketAddr,
    stop: watch::Sender<()>,
    serving: JoinHandle<()>,
    finish: Arc<Notify>,
}

impl Bed {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(());
        let finish = Arc::new(Notify::new());
        let wait = Arc::clone(&finish);
        let slow = async move || {
            wait.notified().await;
            "done\n"
        };
        let router = Router::new()
            .route("/ok", get(async || "ok\n").post(async || "posted\n"))
            .route("/slow", get(slow));
        let routes = Routes { changes: router.clone(), reads: router };
        Self { address, stop, serving: tokio::spawn(serve(listener, routes, stopped)), finish }
    }

    /// A connection that has sent this.
    async fn client(&self, bytes: &[u8]) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(bytes).await.unwrap();
        client
    }

    /// A connection that has got an answer. The server has accepted all earlier ones.
    async fn served(&self) -> TcpStream {
        let mut client = self.client(REQUEST).await;
        assert!(answer(&mut client, "ok\n").await.starts_with("HTTP/1.1 200 OK\r\n"));
        client
    }

    /// Stops the server, and returns the time that it takes.
    async fn stop(self) -> Duration {
        let from = Instant::now();
        drop(self.stop);
        self.serving.await.unwrap();
        from.elapsed()
    }
}

/// Reads up to the end of an answer.
async fn answer(client: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut bytes = [0; 1024];
        let length = client.read(&mut bytes).await.unwrap();
        assert_ne!(length, 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    }
    text
}

/// Waits until the server has closed the connection, with nothing more to read.
async fn closed(client: &mut TcpStream) {
    match client.read(&mut [0; 64]).await {
        Ok(length) => assert_eq!(length, 0),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let bed = Bed::new().await;
    let mut client = bed.served().await;
    for _ in 0..10 {
        client.write_all(REQUEST).await.unwrap();
        let text = answer(&mut client, "ok\n").await;
        assert!(text.contains("content-length: 3\r\n") && !text.contains("connection:"), "{text}");
    }
    client.write_all(b"POST /ok HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    answer(&mut client, "posted\n").await;
    client.write_all(REQUEST).await.unwrap();
    answer(&mut client, "ok\n").await;
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_not_complete_in_time_ends_the_connection() {
    let bed = Bed::new().await;
    let from = Instant::now();
    let mut half = bed.client(HALF).await;
    let mut silent = bed.client(b"").await;
    closed(&mut half).await;
    assert!(from.elapsed() >= HEAD_WAIT && from.elapsed() < 2 * HEAD_WAIT, "{:?}", from.elapsed());
    closed(&mut silent).await;
    assert!(from.elapsed() <= 2 * HEAD_WAIT + MOMENT, "{:?}", from.elapsed());
}

#[tokio::test(start_paused = true)]
async fn bytes_that_trickle_in_do_not_extend_the_time() {
    let bed = Bed::new().await;
    let from = Instant::now();
    let mut client = bed.client(HALF).await;
    // It fails when the server has closed.
    while client.write_all(b"x").await.is_ok() {
        assert!(from.elapsed() < 2 * HEAD_WAIT, "{:?}", from.elapsed());
        tokio::time::sleep(HEAD_WAIT / 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends() {
    let bed = Bed::new().await;
    let mut client = bed.served().await;
    let from = Instant::now();
    closed(&mut client).await;
    assert!(from.elapsed() <= HEAD_WAIT + MOMENT, "{:?}", from.elapsed());
}

#[tokio::test]
async fn a_further_connection_waits_until_another_ends() {
    let bed = Bed::new().await;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        clients.push(bed.served().await);
    }
    let mut further = bed.client(REQUEST).await;
    assert!(tokio::time::timeout(MOMENT, further.readable()).await.is_err(), "all places are taken");
    clients.pop();
    answer(&mut further, "ok\n").await;
}

#[tokio::test]
async fn long_bodies_and_heads_are_refused() {
    let bed = Bed::new().await;
    for length in [BODY_MAX + 1, u64::MAX / 2] {
        let head = format!("POST /ok HTTP/1.1\r\ncontent-length: {length}\r\n\r\n");
        let mut client = bed.client(head.as_bytes()).await;
        let text = answer(&mut client, "at most\n").await;
        assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
        closed(&mut client).await;
    }
    // Of unknown length, and never complete.
    let mut client = bed.client(b"POST /ok HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffff\r\nx").await;
    answer(&mut client, "posted\n").await;
    closed(&mut client).await;
    let head = format!("GET /ok HTTP/1.1\r\nx: {}", "x".repeat(BUFFER_MAX));
    let mut client = bed.client(head.as_bytes()).await;
    let mut start = [0; 13];
    client.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 431 ");
}

#[tokio::test]
async fn half_a_request_delays_the_stop_no_longer_than_the_deadline() {
    let bed = Bed::new().await;
    let mut half = bed.client(HALF).await;
    let mut slow = bed.client(SLOW).await;
    let mut idle = bed.served().await;
    let address = bed.address;
    tokio::time::pause();
    let took = bed.stop().await;
    assert!(took >= STOP_WAIT && took < STOP_WAIT + MOMENT, "{took:?}");
    for client in [&mut half, &mut slow, &mut idle] {
        closed(client).await;
    }
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_request_in_flight_is_answered_at_the_stop() {
    let bed = Bed::new().await;
    let mut slow = bed.client(SLOW).await;
    let _idle = bed.served().await;
    let finish = Arc::clone(&bed.finish);
    let stopping = tokio::spawn(bed.stop());
    tokio::task::yield_now().await;
    finish.notify_one();
    let text = answer(&mut slow, "done\n").await;
    assert!(text.contains("connection: close\r\n"), "{text}");
    assert!(stopping.await.unwrap() < STOP_WAIT);
}
