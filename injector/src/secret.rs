//! A password that does not show itself.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

/// A password. `Debug` prints `***`, there is no `Display`, and the memory is zeroed on drop.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

/// The password file cannot be read: it is missing, not ours to read, or not UTF-8.
#[derive(Debug, Error)]
#[error("the password file {} cannot be read: {error}", path.display())]
pub struct PasswordFileError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

impl Secret {
    /// Takes over `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The content of a password file without its last line end; `None` where no file is configured.
    pub(crate) fn read(path: Option<&Path>) -> Result<Option<Self>, PasswordFileError> {
        let Some(path) = path else { return Ok(None) };
        let mut text =
            fs::read_to_string(path).map_err(|error| PasswordFileError { path: path.to_owned(), error })?;
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(Some(Self::new(text)))
    }

    /// The password itself. Call it only where the bytes go to the backend.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `text` with every occurrence of the secret replaced, for text that a server chose. Call it before the text is
    /// shortened, or a part of the secret may stay.
    pub(crate) fn hide(secret: Option<&Self>, text: &str) -> String {
        match secret.filter(|secret| !secret.0.is_empty()) {
            Some(secret) => text.replace(secret.expose(), "***"),
            None => text.to_owned(),
        }
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
