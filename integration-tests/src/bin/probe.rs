//! How long it takes from the entry of a process to its first query's result, by several ways. For `inject.rs`.
//!
//! `WAY=injected`: the connection that Headstart injects. Else it connects and logs in by itself, to `HOST` (an address, or
//! the directory of a socket) as `DBUSER` to `DATABASE`, with what is in `PASSWORD_FILE` and TLS for `CA_FILE`, if they
//! are set. Started by an agent it serves `GET /` with two times; else it prints them: the nanoseconds that it took to get the
//! connection, once there was a runtime, and those from the entry to the result.

use std::env;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::{Router, routing::get};
use headstart_injector::{
    Address, BackendKind, BackendSpec, Pool, PoolSettings, PostgresLogin, Secret, Tls, TlsMode, TlsSettings,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// A simple query, and how its result ends.
const QUERY: &[u8] = b"Q\0\0\0\x0dselect 1\0";
const READY: &[u8] = b"Z\0\0\0\x05I";

fn main() -> Result<()> {
    let entered = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let began = Instant::now();
        let function = headstart::attach().await?;
        let times = measure(&function, entered, began).await?;
        if function.instance().is_none() {
            println!("{times}");
            return Ok(());
        }
        function.serve(Router::new().route("/", get(async move || times))).await?;
        Ok(())
    })
}

async fn measure(function: &headstart::Function, entered: Instant, began: Instant) -> Result<String> {
    let got;
    if env::var("WAY")? == "injected" {
        let (stream, _) = function.backend("orders-db").stream().await?;
        got = Instant::now();
        ask(stream).await?;
    } else {
        // A pool of one is as good a client as any.
        let lease = Pool::spawn(spec()?).lease().await?.hand_over(TlsMode::Relay)?;
        got = Instant::now();
        // A TCP socket, or one end of a socket pair.
        ask(TcpStream::from_std(lease.fd.into())?).await?;
    }
    let result = entered.elapsed();
    Ok(format!("{} {}", (got - began).as_nanos(), result.as_nanos()))
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
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
