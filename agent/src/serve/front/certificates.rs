//! The certificates of a front: found in files and directories, and chosen by the name in the ClientHello.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headstart_config::{MAX_SECRET_BYTES, PrivateFileError, host_matches, read_private};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use zeroize::Zeroizing;

/// A certificate that expires sooner is warned of.
pub const EXPIRES_SOON: Duration = Duration::from_hours(14 * 24);

/// The largest file with certificates, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The most certificates of a front.
const CERTIFICATES_MAX: usize = 4096;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file or directory that cannot be read.
    #[error("{}: {error}: put the certificate there", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file without a certificate, or with something else in its place.
    #[error("{} holds no certificate in PEM: {error}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What is there.
        error: String,
    },
    /// A directory without certificates.
    #[error("no file in {} holds a certificate: put NAME.pem there, with its key in it or in NAME.key", .0.display())]
    Empty(PathBuf),
    /// A certificate without a key.
    #[error(
        "the certificate in {} has no private key: add it to the file, or write it to {}, with `chmod 600`",
        path.display(),
        key.display()
    )]
    NoKey {
        /// The file with the certificate.
        path: PathBuf,
        /// Where its key may be.
        key: PathBuf,
    },
    /// The file with the key is open to others.
    #[error(transparent)]
    Private(#[from] PrivateFileError),
    /// The key is another one's, or of a kind that is not known.
    #[error("the certificate in {} and the key in {} cannot be used together: {error}", path.display(), key.display())]
    Pair {
        /// The file with the certificate.
        path: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// Why.
        error: String,
    },
    /// There are too many.
    #[error("{} and what is before it hold more than {CERTIFICATES_MAX} certificates", .0.display())]
    TooMany(PathBuf),
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    /// Where it was found.
    pub file: PathBuf,
    /// The DNS names that it is for, in lower case.
    pub names: Vec<String>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads the certificate in `file`, its chain, and its key, which may be beside it.
    fn read(file: &Path) -> Result<Self, CertificateError> {
        let text = Zeroizing::new(read(file)?);
        let none = |error: String| CertificateError::NoCertificate { path: file.to_owned(), error };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|error| none(error.to_string()))?;
        let first = chain.first().ok_or_else(|| none("nothing of that kind is in it".to_owned()))?;
        let (_, parsed) = X509Certificate::from_der(first).map_err(|error| none(error.to_string()))?;
        let (names, validity) = (names(&parsed), parsed.validity());
        let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let (not_before, not_after) =
            (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()));
        let key_file = key_file(file, &text);
        let no_key = || CertificateError::NoKey { path: file.to_owned(), key: key_file.clone() };
        if !key_file.exists() {
            return Err(no_key());
        }
        let text =
            Zeroizing::new(read_private(&key_file, "the private key", MAX_SECRET_BYTES.max(FILE_MAX))?);
        let pair =
            |error: String| CertificateError::Pair { path: file.to_owned(), key: key_file.clone(), error };
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
            pem::Error::NoItemsFound => no_key(),
            error => pair(error.to_string()),
        })?;
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|error| pair(error.to_string()))?;
        Ok(Self { file: file.to_owned(), names, not_before, not_after, key: Arc::new(key) })
    }

    /// Whether it is for this host.
    fn is_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| host_matches(name, host) || name == host)
    }

    /// Why clients do not accept it, or soon will not.
    #[must_use]
    pub fn complaint(&self, now: SystemTime) -> Option<String> {
        let file = self.file.display();
        let days = |time: Duration| time.as_secs() / (24 * 60 * 60);
        match self.not_after.duration_since(now) {
            Err(past) => Some(format!("{file} expired {} days ago: renew it", days(past.duration()))),
            Ok(left) if left < EXPIRES_SOON => {
                Some(format!("{file} expires in {} days: renew it", days(left)))
            }
            Ok(_) if self.not_before > now => {
                Some(format!("{file} is not valid yet: look at the clock of this host"))
            }
            Ok(_) => None,
        }
    }

    /// Whether no client accepts it.
    #[must_use]
    pub fn is_invalid(&self, now: SystemTime) -> bool {
        now > self.not_after || now < self.not_before
    }
}

/// All certificates of a front, in the order of its configuration.
#[derive(Debug, Default)]
pub struct Certificates {
    list: Vec<Certificate>,
    /// Clients that name no host are served.
    has_default: bool,
}

impl Certificates {
    /// Reads files, and directories of files. `has_default`: the first one is also for clients that name no known host.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn read(paths: &[PathBuf], has_default: bool) -> Result<Self, CertificateError> {
        let mut list = Vec::new();
        for path in paths {
            for file in files(path)? {
                if list.len() == CERTIFICATES_MAX {
                    return Err(CertificateError::TooMany(file));
                }
                list.push(Certificate::read(&file)?);
            }
        }
        Ok(Self { list, has_default })
    }

    /// Every one.
    #[must_use]
    pub fn list(&self) -> &[Certificate] {
        &self.list
    }

    /// Whether one of them is for all hosts of this pattern.
    #[must_use]
    pub fn cover(&self, pattern: &str) -> bool {
        self.list.iter().any(|one| one.is_for(pattern))
    }

    /// The certificate for a client that names this host: one that is valid before one that is not, the newest first.
    fn choose(&self, host: Option<&str>) -> Option<&Certificate> {
        let now = SystemTime::now();
        let fitting = self.list.iter().filter(|one| host.is_some_and(|host| one.is_for(host)));
        let best = fitting.max_by_key(|one| (!one.is_invalid(now), one.not_before));
        best.or_else(|| self.list.first().filter(|_| self.has_default))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = hello.server_name().map(str::to_ascii_lowercase);
        // A host without a certificate of its own gets one that the client will refuse, and say so.
        let chosen = self.choose(host.as_deref()).or_else(|| self.list.first())?;
        Some(Arc::clone(&chosen.key))
    }
}

fn read(file: &Path) -> Result<Vec<u8>, CertificateError> {
    let unreadable = |error| CertificateError::Unreadable { path: file.to_owned(), error };
    let size = fs::metadata(file).map_err(unreadable)?;
    if !size.is_file() || size.len() > FILE_MAX {
        return Err(unreadable(io::Error::other("it is no file of at most 1 MiB")));
    }
    fs::read(file).map_err(unreadable)
}

/// The files with certificates at a path. What certbot makes of a certificate is a directory of four files.
fn files(path: &Path) -> Result<Vec<PathBuf>, CertificateError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let chain = path.join("fullchain.pem");
    if chain.exists() {
        return Ok(vec![chain]);
    }
    let unreadable = |error| CertificateError::Unreadable { path: path.to_owned(), error };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let named = file.extension().is_some_and(|extension| extension == "pem" || extension == "crt");
        if named && file.is_file() && contains(&read(&file)?, b"-----BEGIN CERTIFICATE-----") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(CertificateError::Empty(path.to_owned()));
    }
    files.sort_unstable();
    Ok(files)
}

/// Where the key of a certificate is.
fn key_file(file: &Path, text: &[u8]) -> PathBuf {
    if contains(text, b"PRIVATE KEY-----") {
        return file.to_owned();
    }
    let of_certbot = file.file_name().is_some_and(|name| name == "fullchain.pem");
    if of_certbot { file.with_file_name("privkey.pem") } else { file.with_extension("key") }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// The DNS names and addresses of a certificate (RFC 5280, 4.2.1.6). Clients no longer look at the subject.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => {
            <[u8; 4]>::try_from(*bytes).ok().map(|v4| std::net::Ipv4Addr::from(v4).to_string())
        }
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests;
