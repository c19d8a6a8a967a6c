//! How long it takes from the entry of a process to its first query's result, by several ways. For the benches.
//!
//! `WAY=injected`: the connection that Headstart injects. `WAY=connect`: TCP to `HOST`, and no login. Else it connects and
//! logs in by itself, to `HOST` (an address, or the directory of a socket) as `DBUSER` to `DATABASE`, with what is in
//! `PASSWORD_FILE` and TLS for `CA_FILE`, if they are set.
//!
//! Started by an agent, with `HEADSTART_LISTEN`, or with a socket from systemd, it serves `GET /` with two times; else it prints them: the nanoseconds that it took to get the
//! connection, once there was a runtime, and those from the entry to the result. With `QUERY=later` it makes no query
//! before it is ready, and the second time is that to the connection; `GET /query` makes one each time, and answers with
//! when the process was entered (`CLOCK_MONOTONIC`, nanoseconds).

use std::env;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::http::StatusCode;
use axum::{Router, routing::get};
use headstart_injector::{
    Address, BackendKind, BackendSpec, Pool, PoolSettings, PostgresLogin, Secret, Tls, TlsMode, TlsSettings,
};
use listenfd::ListenFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// A simple query, and how its result ends.
const QUERY: &[u8] = b"Q\0\0\0\x0dselect 1\0";
const READY: &[u8] = b"Z\0\0\0\x05I";

trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for T {}

fn main() -> Result<()> {
    let (entered, born) = (Instant::now(), headstart::now_ns().to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let began = Instant::now();
        let function = headstart::attach().await?;
        let mut stream = connect(&function).await?;
        let got = began.elapsed();
        if env::var("QUERY").as_deref() != Ok("later") {
            ask(&mut *stream).await?;
        }
        let times = format!("{} {}", got.as_nanos(), entered.elapsed().as_nanos());
        let serves = ["HEADSTART_LISTEN", "LISTEN_FDS"].iter().any(|name| env::var_os(name).is_some());
        if function.instance().is_none() && !serves {
            println!("{times}");
            return Ok(());
        }
        let stream = Arc::new(Mutex::new(stream));
        let query = async move || match ask(&mut **stream.lock().await).await {
            Ok(()) => (StatusCode::OK, born.clone()),
            Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")),
        };
        let app = Router::new().route("/", get(async move || times)).route("/query", get(query));
        match ListenFd::from_env().take_tcp_listener(0)? {
            // systemd's socket activation.
            Some(listener) => {
                listener.set_nonblocking(true)?;
                axum::serve(tokio::net::TcpListener::from_std(listener)?, app).await?;
            }
            None => function.serve(app).await?,
        }
        Ok(())
    })
}

async fn connect(function: &headstart::Function) -> Result<Box<dyn ByteStream>> {
    Ok(match &*env::var("WAY")? {
        "injected" => Box::new(function.backend("orders-db").stream().await?.0),
        "connect" => {
            let stream = TcpStream::connect(env::var("HOST")?).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        _ => {
            // A pool of one is as good a client as any. It leaves a TCP socket, or one end of a socket pair.
            let lease = Pool::spawn(spec()?).lease().await?.hand_over(TlsMode::Relay)?;
            Box::new(TcpStream::from_std(lease.fd.into())?)
        }
    })
}

async fn ask(stream: &mut dyn ByteStream) -> Result<()> {
    stream.write_all(QUERY).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    while !answer.ends_with(READY) {
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("the server has closed the connection");
        }
    }
    Ok(())
}

fn spec() -> Result<BackendSpec> {
    let host = env::var("HOST")?;
    let address =
        if host.starts_with('/') { Address::Unix(host.clone().into()) } else { Address::Tcp(host.clone()) };
    let tls = env::var("CA_FILE").ok().map(|file| {
        let server_name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name).to_owned();
        Tls::new(&TlsSettings { ca_file: Some(PathBuf::from(file)), server_name, ..TlsSettings::default() })
    });
    let password = env::var("PASSWORD_FILE").ok().map(std::fs::read_to_string).transpose()?;
    let login = PostgresLogin {
        user: env::var("DBUSER").context("DBUSER")?,
        database: env::var("DATABASE").context("DATABASE")?,
        password: password.map(|text| Secret::new(text.trim_end())),
        ..PostgresLogin::default()
    };
    Ok(BackendSpec {
        name: "orders-db".into(),
        kind: BackendKind::Postgres(login),
        address,
        tls: tls.transpose()?,
        pool: PoolSettings { min_idle: 0, max: 1, ttl: Duration::ZERO, ..PoolSettings::default() },
    })
}
