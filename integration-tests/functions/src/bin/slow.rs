//! A function that needs time, for the benches: `INIT_MS` milliseconds until it is ready, as the function of the papers
//! that needed 250, and further ones elsewhere for the test of the bench itself. It answers every HTTP request alike, over
//! TLS of its own where `TLS_CERTIFICATE` and `TLS_KEY` are set (PEM).

use std::env;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use headstart::Connection;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
const HEAD_MAX: usize = 16 * 1024;

fn main() -> ExitCode {
    work(time("HELLO_MS"));
    headstart::run(async |function| {
        if let Ok(backend) = env::var("BACKEND") {
            std::mem::drop(function.backend(backend).socket().await?);
        }
        sleep(time("INIT_MS")).await;
        let acceptor = acceptor();
        function
            .serve_connections(move |connection| {
                let acceptor = acceptor.clone();
                async move {
                    if let Err(error) = serve(connection, acceptor).await {
                        eprintln!("slow: {error}");
                    }
                }
            })
            .await
    })
}

/// Before the shim is entered.
#[expect(clippy::disallowed_methods, reason = "it stands for work, and waits for nothing")]
fn work(time: Duration) {
    std::thread::sleep(time);
}

fn time(variable: &str) -> Duration {
    Duration::from_millis(env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or_default())
}

fn acceptor() -> Option<TlsAcceptor> {
    let (certificate, key) = (env::var("TLS_CERTIFICATE").ok()?, env::var("TLS_KEY").ok()?);
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).ok()?;
    let config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).ok()?;
    Some(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(connection: Connection, acceptor: Option<TlsAcceptor>) -> std::io::Result<()> {
    match acceptor {
        None => answer(connection).await,
        Some(acceptor) => answer(acceptor.accept(connection).await?).await,
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 || request.len() > HEAD_MAX {
            return Ok(());
        }
    }
    sleep(time("ANSWER_MS")).await;
    stream.write_all(ANSWER).await?;
    stream.shutdown().await
}
