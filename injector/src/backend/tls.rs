//! TLS as transport (RFC 8446, RFC 5246): the server always proves its identity.
//!
//! Two ways lead from a session to a function. The agent keeps it and gives the function one end of a socket pair
//! ([`super::relay`]); or it gives away socket and keys ([`hand_over`]), and keeps the secrets from which later keys are made.

mod hand_over;
mod session;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use headstart_config::{MAX_SECRET_BYTES, PrivateFileError, read_private};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::{ConnectCause, LoginVariant, Protocol, certificate};
pub(crate) use hand_over::{NoHandOver, RetainedSecrets};
pub(crate) use session::TlsStream;

/// TLS to a backend, as configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// Certificates that are trusted, in PEM; those of this system if none.
    pub ca_file: Option<PathBuf>,
    /// The name, or address, that the server's certificate must be for.
    pub server_name: String,
    /// For servers that ask for a client certificate: ours with its chain, and its key, in PEM.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Application protocols to offer (RFC 7301); none if empty.
    pub alpn: Vec<String>,
    /// TLS begins without a request, in a protocol that has one.
    pub direct: bool,
}

/// Why TLS cannot be had as configured.
#[derive(Debug, Error)]
pub enum TlsSettingsError {
    /// A file without the expected content.
    #[error("{what} cannot be read from {}: {error}", path.display())]
    File {
        /// The expected content.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// The key is missing, not in a file of our own, or too large.
    #[error(transparent)]
    Key(#[from] PrivateFileError),
    /// The system's store has nothing in it.
    #[error("this system trusts no certificate authority: install ca-certificates, or set `ca_file`")]
    NoRoots,
    /// Neither a DNS name nor an address.
    #[error("{0:?} is no name that a certificate can be for: set `server_name`")]
    ServerName(String),
    /// The key is not that of the certificate, or of a kind that is not known.
    #[error("the client's certificate and key cannot be used: {0}")]
    Client(rustls::Error),
    /// A trusted certificate that cannot be used to verify others.
    #[error("the trusted certificates cannot be used: {0}")]
    Roots(String),
}

/// TLS to one backend, ready for any number of connections.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    direct: bool,
}

impl Tls {
    /// Reads what the settings name.
    ///
    /// # Errors
    /// See [`TlsSettingsError`].
    pub fn new(settings: &TlsSettings) -> Result<Self, TlsSettingsError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        match &settings.ca_file {
            Some(path) => {
                for certificate in certificates("a certificate", path)? {
                    roots.add(certificate).map_err(|error| TlsSettingsError::Roots(error.to_string()))?;
                }
            }
            // Certificates that cannot be parsed are skipped: the others are still trusted.
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        if roots.is_empty() {
            return Err(TlsSettingsError::NoRoots);
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| TlsSettingsError::Roots(error.to_string()))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsSettingsError::Client)?
            .with_webpki_verifier(verifier);
        let mut config = match &settings.client {
            Some((chain, key)) => {
                let chain = certificates("the client's certificate", chain)?;
                let what = "the client's private key";
                let text = Zeroizing::new(read_private(key, what, MAX_SECRET_BYTES)?);
                let file = |error| TlsSettingsError::File { what, path: key.clone(), error };
                let key = PrivateKeyDer::from_pem_slice(&text).map_err(file)?;
                builder.with_client_auth_cert(chain, key).map_err(TlsSettingsError::Client)?
            }
            None => builder.with_no_client_auth(),
        };
        config.enable_secret_extraction = true; // for the hand-over, which decides what is extracted
        config.alpn_protocols = settings.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let server_name = ServerName::try_from(settings.server_name.clone())
            .map_err(|_| TlsSettingsError::ServerName(settings.server_name.clone()))?;
        Ok(Self { config: Arc::new(config), server_name, direct: settings.direct })
    }

    /// TLS on a fresh connection; with what the server sent before.
    pub(super) async fn begin(
        &self,
        protocol: &dyn Protocol,
        mut socket: TcpStream,
        variant: &LoginVariant,
    ) -> Result<(TlsStream, Vec<u8>), ConnectCause> {
        let direct = protocol.direct_tls().filter(|_| self.direct);
        let (config, greeting) = match direct {
            Some(name) => {
                let mut config = ClientConfig::clone(&self.config);
                config.alpn_protocols = vec![name.to_vec()];
                (Arc::new(config), Vec::new())
            }
            None => (Arc::clone(&self.config), protocol.start_tls(&mut socket, variant).await?),
        };
        let stream = TlsStream::connect(config, self.server_name.clone(), socket).await?;
        Ok((stream, greeting))
    }
}

/// What binds a login to this TLS session (RFC 5929, `tls-server-end-point`).
pub(super) fn end_point(stream: &TlsStream) -> Option<Vec<u8>> {
    certificate::end_point(stream.peer_certificate()?)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSettingsError> {
    let file = |error| TlsSettingsError::File { what, path: path.to_owned(), error };
    let text = fs::read(path).map_err(|error| file(pem::Error::Io(error)))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(file)?;
    if found.is_empty() { Err(file(pem::Error::NoItemsFound)) } else { Ok(found) }
}
