//! A function that moves bytes over connections to its backend from its start on, for the bench of relays.
//!
//! - `BACKEND` is the name of the backend. With `SOCKET=yes` the function connects to the socket in its directory, else it
//!   takes the connections that the agent gives it.
//! - `CONNECTIONS` is how many it opens.
//! - `EVERY_MS=0` asks the server for bytes without end and reads them as fast as they come. Another number is the pause,
//!   in milliseconds, between two small questions on each connection.
//!
//! `GET /` answers with the number of bytes that have come so far.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::{Router, routing::get};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// Where an instance finds the sockets of its backends.
const SOCKETS: &str = "/run/headstart/backends";
/// The first byte on a connection asks for bytes without end.
const ENDLESS: u8 = b'e';
/// A question, which the server repeats. Its first byte is not [`ENDLESS`].
const QUESTION: [u8; 64] = [b'q'; 64];
const BUFFER_BYTES: usize = 64 * 1024;

trait LoadStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> LoadStream for T {}

fn main() -> ExitCode {
    headstart::run(async |function| {
        let came = Arc::new(AtomicU64::new(0));
        let pause = Duration::from_millis(number("EVERY_MS")?);
        for _ in 0..number("CONNECTIONS")? {
            let stream = connect(&function).await?;
            let came = Arc::clone(&came);
            tokio::spawn(async move {
                let ended =
                    if pause.is_zero() { read(stream, &came).await } else { ask(stream, pause, &came).await };
                if let Err(error) = ended {
                    eprintln!("stream_reader: {error}");
                }
            });
        }
        let app = Router::new().route("/", get(async move || came.load(Ordering::Relaxed).to_string()));
        Ok::<_, anyhow::Error>(function.serve(app).await?)
    })
}

fn number(variable: &str) -> Result<u64> {
    env::var(variable)?.parse().with_context(|| format!("{variable} is not a number"))
}

async fn connect(function: &headstart::Function) -> Result<Box<dyn LoadStream>> {
    let backend = env::var("BACKEND")?;
    if env::var("SOCKET").as_deref() == Ok("yes") {
        let socket = PathBuf::from(SOCKETS).join(&backend).join("socket");
        let connected = UnixStream::connect(&socket).await;
        return Ok(Box::new(connected.with_context(|| socket.display().to_string())?));
    }
    Ok(Box::new(function.backend(backend).stream().await?.0))
}

async fn read(mut stream: Box<dyn LoadStream>, came: &AtomicU64) -> std::io::Result<()> {
    stream.write_all(&[ENDLESS]).await?;
    stream.flush().await?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => came.fetch_add(count as u64, Ordering::Relaxed),
        };
    }
}

async fn ask(mut stream: Box<dyn LoadStream>, pause: Duration, came: &AtomicU64) -> std::io::Result<()> {
    let mut answer = QUESTION;
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        stream.write_all(&QUESTION).await?;
        stream.flush().await?;
        stream.read_exact(&mut answer).await?;
        came.fetch_add(answer.len() as u64, Ordering::Relaxed);
    }
}
