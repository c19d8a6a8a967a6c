//! The TLS handshake with a client.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::certificates::Certificates;
use super::client::ClientStream;
use crate::http;
use crate::measure::HandshakeOutcome;

/// The content type of a record with a ClientHello (RFC 8446, 5.1). No request of HTTP begins so.
const HANDSHAKE: u8 = 22;

/// A record with the fatal alert `unrecognized_name` (RFC 6066, 3; RFC 8446, 6).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

const PLAIN: &str = "this address speaks HTTPS: begin with https://\n";

/// TLS 1.3 and 1.2 with these certificates, and these application protocols. No early data: a start for a flight that is
/// replayed would amplify it.
///
/// # Errors
/// When the provider of cryptography lacks something.
pub fn server_config(
    certificates: Arc<Certificates>,
    alpn: &[String],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// A client that has said for whom it comes.
pub(super) struct Hello(StartHandshake<ClientStream>);

impl Hello {
    /// Reads the ClientHello, also in several segments. rustls takes at most 64 KiB of it. What is no TLS is answered.
    pub(super) async fn read(mut client: ClientStream) -> Result<Self, HandshakeOutcome> {
        let mut first = [0];
        match client.socket().peek(&mut first).await {
            Ok(1..) if first[0] == HANDSHAKE => {}
            Ok(1..) => {
                let head = "400 Bad Request\r\nContent-Type: text/plain";
                let _ = http::reply(&mut client, head, PLAIN).await;
                return Err(HandshakeOutcome::Plain);
            }
            Ok(0) | Err(_) => return Err(HandshakeOutcome::Closed),
        }
        let hello = LazyConfigAcceptor::new(Acceptor::default(), client).await;
        hello.map(Self).map_err(|error| outcome(&error))
    }

    /// The host that the client names, in lower case.
    pub(super) fn host(&self) -> Option<String> {
        self.0.client_hello().server_name().map(str::to_ascii_lowercase)
    }

    /// Refuses a client, because nothing is known of its host.
    pub(super) async fn refuse(self) {
        let mut client = self.0.io;
        let _ = client.write_all(&UNRECOGNIZED_NAME).await;
        let _ = client.shutdown().await;
    }

    /// The rest of the handshake.
    pub(super) async fn finish(
        self,
        config: Arc<ServerConfig>,
    ) -> Result<TlsStream<ClientStream>, HandshakeOutcome> {
        self.0.into_stream(config).await.map_err(|error| outcome(&error))
    }
}

/// Gives a handshake its time.
pub(super) async fn within<T>(
    limit: Duration,
    handshake: impl Future<Output = Result<T, HandshakeOutcome>>,
) -> Result<T, HandshakeOutcome> {
    tokio::time::timeout(limit, handshake).await.unwrap_or(Err(HandshakeOutcome::Timeout))
}

fn outcome(error: &io::Error) -> HandshakeOutcome {
    match error.kind() {
        io::ErrorKind::InvalidData => HandshakeOutcome::Failed,
        _ => HandshakeOutcome::Closed,
    }
}
