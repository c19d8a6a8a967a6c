//! A password that does not show itself.

use std::fmt;
use std::path::{Path, PathBuf};

use headstart_config::{MAX_SECRET_BYTES, PrivateFileError, read_private};
use thiserror::Error;
use zeroize::Zeroizing;

/// A password. `Debug` prints `***`, there is no `Display`, and the memory is zeroed on drop.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

/// The password file cannot be used.
#[derive(Debug, Error)]
pub enum PasswordFileError {
    /// It is missing, not a file of our own, or too large.
    #[error("the password file cannot be used: {0}")]
    File(#[from] PrivateFileError),
    /// It is no text.
    #[error("the password file {} is not UTF-8", .0.display())]
    NotText(PathBuf),
}

impl Secret {
    /// Takes over `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The content of a password file without its last line end; `None` where no file is configured.
    pub(crate) fn read(path: Option<&Path>) -> Result<Option<Self>, PasswordFileError> {
        let Some(path) = path else { return Ok(None) };
        let bytes = read_private(path, "the password", MAX_SECRET_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            drop(Zeroizing::new(error.into_bytes()));
            PasswordFileError::NotText(path.to_owned())
        });
        let mut text = text?;
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

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_password_is_read_from_a_private_file_only() {
        let file = std::env::temp_dir().join(format!("headstart-secret-{}", std::process::id()));
        fs::write(&file, "password\n").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Secret::read(Some(&file)).unwrap().unwrap().expose(), "password");
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let refused = Secret::read(Some(&file)).unwrap_err().to_string();
        fs::remove_file(&file).unwrap();
        assert!(refused.contains("chmod 600"), "{refused}");
        let refused = Secret::read(Some(Path::new("/dev/null"))).unwrap_err().to_string();
        assert!(refused.contains("not a regular file"), "{refused}");
    }
}
