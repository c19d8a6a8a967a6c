//! SHA-256 of what passes.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use crate::error::ImageError;

/// Hashes what is written, and hands it on, up to a limit.
pub(crate) struct Hashing<W> {
    inner: W,
    hash: Sha256,
    left: u64,
}

impl<W: Write> Hashing<W> {
    /// Hands on at most `max` bytes. More is an error of the kind [`io::ErrorKind::FileTooLarge`].
    pub(crate) fn new(inner: W, max: u64) -> Self {
        Self { inner, hash: Sha256::new(), left: max }
    }

    /// The digest, as in `sha256:...`, and how many bytes may still come.
    pub(crate) fn finish(self) -> (String, u64) {
        (shown(&self.hash.finalize()), self.left)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn shown(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The digest of these bytes.
pub(crate) fn of(bytes: &[u8]) -> String {
    shown(&Sha256::digest(bytes))
}

/// An error if the digests differ.
pub(crate) fn check(what: impl Into<String>, expected: &str, found: &str) -> Result<(), ImageError> {
    if expected == found {
        return Ok(());
    }
    Err(ImageError::Digest { what: what.into(), expected: expected.to_owned(), found: found.to_owned() })
}
