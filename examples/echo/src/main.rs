//! Answers every line with the answer of the backend `upstream`.
//!
//! A function with a protocol of its own over TCP: one line in, one line out. It has
//! one connection to a line-based upstream server, which the agent opened before the
//! client connected.
//!
//! Without an agent:
//! `HEADSTART_LISTEN=127.0.0.1:7000 HEADSTART_BACKEND_UPSTREAM_URL=tcp://127.0.0.1:7001 echo`

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use headstart::{Connection, Function};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// Longest line in bytes. A longer one ends its connection, so that the buffer has a limit.
const LINE_MAX_BYTES: u64 = 8 * 1024;

type Upstream = Arc<Mutex<BufReader<TcpStream>>>;

fn main() -> ExitCode {
    headstart::run(async |function| {
        // The agent has connected: this costs no round trip.
        let upstream = function.backend("upstream").tcp().await?;
        let upstream: Upstream = Arc::new(Mutex::new(BufReader::new(upstream)));

        // Reports ready, serves each client in a task of its own, and stops gracefully.
        let handler = |client| serve(client, Arc::clone(&upstream), function.clone());
        function.serve_connections(handler).await
    })
}

async fn serve(client: Connection, upstream: Upstream, function: Function) {
    let mut client = BufReader::new(client);
    loop {
        let mut line = Vec::new();
        // An idle client must not delay the stop; an answer in progress may.
        let read = tokio::select! {
            read = read_line(&mut client, &mut line) => read,
            () = function.stopping() => return,
        };
        let Ok(true) = read else { return };
        let Ok(answer) = ask(&upstream, &line).await else { return };
        if client.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// One line to the upstream, one line back; clients take turns.
async fn ask(upstream: &Upstream, line: &[u8]) -> io::Result<Vec<u8>> {
    let mut upstream = upstream.lock().await;
    upstream.write_all(line).await?;
    let mut answer = Vec::new();
    match read_line(&mut *upstream, &mut answer).await? {
        true => Ok(answer),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// False at the end of the stream, or when a line is too long.
async fn read_line<S>(stream: &mut S, line: &mut Vec<u8>) -> io::Result<bool>
where
    S: AsyncBufReadExt + Unpin,
{
    stream.take(LINE_MAX_BYTES).read_until(b'\n', line).await?;
    Ok(line.ends_with(b"\n"))
}
