//! A registry, asked by the protocol of the OCI distribution specification.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use headstart_config::image::ImageName;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use oci_spec::image::Descriptor;
use tokio::runtime::Runtime;

use crate::credentials::{Login, login};
use crate::digest::{self, Hashing};
use crate::error::ImageError;
use crate::manifest::{self, DOCUMENT_MAX, Found, Source, Top};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest pause in an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// For a manifest or a configuration.
const DOCUMENT_TIMEOUT: Duration = Duration::from_mins(1);

/// For one layer.
const LAYER_TIMEOUT: Duration = Duration::from_mins(30);

const ACCEPTED: [&str; 4] = [
    IMAGE_MANIFEST_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE,
];

pub(crate) struct Registry {
    host: String,
    name: String,
    reference: Reference,
    expected: Option<String>,
    auth: RegistryAuth,
    /// What is said of the login that was tried.
    tried: String,
    client: Client,
    runtime: Runtime,
    layers: Vec<Descriptor>,
}

/// A registry on this machine speaks plain HTTP, as other tools have it.
fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Registry {
    pub(crate) fn new(host: &str, name: &ImageName) -> Result<Self, ImageError> {
        let failed = |detail: String| ImageError::Registry { registry: host.to_owned(), detail };
        let text = name.to_string();
        let reference = text.parse().map_err(|error| failed(format!("{error}")))?;
        let (auth, tried) = match login(host)? {
            Login::None => (RegistryAuth::Anonymous, String::new()),
            Login::Basic(user, password) => {
                (RegistryAuth::Basic(user, password), ", and refuses the login that is kept".to_owned())
            }
            Login::Elsewhere(helper) => {
                let tried = format!(" (the credential helper {helper:?} has one, which is not supported)");
                (RegistryAuth::Anonymous, tried)
            }
        };
        // Another one may be there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let protocol = if is_local(host) { ClientProtocol::Http } else { ClientProtocol::Https };
        let config = ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("headstart/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| failed(causes(&error)))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(error.to_string()))?;
        let expected = name.digest().map(str::to_owned);
        let host = host.to_owned();
        Ok(Self { host, name: text, reference, expected, auth, tried, client, runtime, layers: Vec::new() })
    }

    fn manifest(&self, reference: &Reference) -> Result<Vec<u8>, ImageError> {
        let asked = self.client.pull_manifest_raw(reference, &self.auth, &ACCEPTED);
        let answer = self.runtime.block_on(async { tokio::time::timeout(DOCUMENT_TIMEOUT, asked).await });
        let (bytes, _) =
            answer.map_err(|_| self.late(DOCUMENT_TIMEOUT))?.map_err(|error| self.error(error))?;
        Ok(bytes.to_vec())
    }

    /// The manifest with this digest.
    fn manifest_of(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let bytes = self.manifest(&self.reference.clone_with_digest(digest.to_owned()))?;
        digest::check("the manifest", digest, &digest::of(&bytes))?;
        Ok(bytes)
    }

    fn blob(
        &self,
        what: &str,
        descriptor: &Descriptor,
        within: Duration,
        into: &mut impl Write,
    ) -> Result<(), ImageError> {
        let expected = descriptor.digest().to_string();
        let mut hashing = Hashing::new(into, descriptor.size());
        let read = async {
            let mut blob = self.client.pull_blob_stream(&self.reference, &*expected).await?;
            while let Some(bytes) = blob.next().await {
                hashing.write_all(&bytes?)?;
            }
            Ok::<_, OciDistributionError>(())
        };
        let read = self.runtime.block_on(async { tokio::time::timeout(within, read).await });
        read.map_err(|_| self.late(within))?.map_err(|error| self.error(error))?;
        digest::check(what, &expected, &hashing.finish().0)
    }

    fn late(&self, after: Duration) -> ImageError {
        ImageError::Late { registry: self.host.clone(), minutes: after.as_secs() / 60 }
    }

    fn error(&self, error: OciDistributionError) -> ImageError {
        let (registry, name) = (self.host.clone(), self.name.clone());
        let refused = [OciErrorCode::Unauthorized, OciErrorCode::Denied];
        let absent = [OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::NotFound];
        let has = |codes: &[OciErrorCode]| match &error {
            OciDistributionError::RegistryError { envelope, .. } => {
                envelope.errors.iter().any(|error| codes.contains(&error.code))
            }
            _ => false,
        };
        match &error {
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::ServerError { code: 401 | 403, .. } => {
                ImageError::Login { registry, name, tried: self.tried.clone() }
            }
            _ if has(&refused) => ImageError::Login { registry, name, tried: self.tried.clone() },
            OciDistributionError::ImageManifestNotFoundError(_)
            | OciDistributionError::ServerError { code: 404, .. } => ImageError::NotFound { registry, name },
            _ if has(&absent) => ImageError::NotFound { registry, name },
            OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }) => {
                ImageError::Digest { what: name, expected: expected.clone(), found: actual.clone() }
            }
            OciDistributionError::IoError(inner) => match inner.get_ref().and_then(|e| e.downcast_ref()) {
                Some(DigestError::VerificationError { expected, actual }) => {
                    ImageError::Digest { what: name, expected: expected.clone(), found: actual.clone() }
                }
                _ if inner.kind() == std::io::ErrorKind::StorageFull => {
                    ImageError::NoSpace { path: "the store".into() }
                }
                _ => ImageError::Registry { registry, detail: causes(&error) },
            },
            _ => ImageError::Registry { registry, detail: causes(&error) },
        }
    }
}

/// The error with what has led to it, which says more than the error itself.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

impl Source for Registry {
    fn find(&mut self) -> Result<Found, ImageError> {
        let mut bytes = self.manifest(&self.reference)?;
        if let Some(expected) = &self.expected {
            digest::check("the manifest", expected, &digest::of(&bytes))?;
        }
        if let Top::Index(index) = manifest::top(&bytes)? {
            let chosen = manifest::choose(&index, None, &self.host)?.digest().to_string();
            bytes = self.manifest_of(&chosen)?;
        }
        let found = manifest::manifest(&bytes)?;
        let descriptor = found.config();
        if descriptor.size() > DOCUMENT_MAX {
            return Err(ImageError::TooLarge { what: "bytes of configuration", limit: DOCUMENT_MAX });
        }
        let mut config = Vec::new();
        self.blob("the configuration", descriptor, DOCUMENT_TIMEOUT, &mut config)?;
        self.layers = found.layers().clone();
        Ok(Found { digest: digest::of(&bytes), config })
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn layer(&mut self, number: usize, into: &mut File) -> Result<(), ImageError> {
        self.blob(&format!("layer {}", number + 1), &self.layers[number], LAYER_TIMEOUT, into)
    }
}
