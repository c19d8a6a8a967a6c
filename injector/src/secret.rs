//! A password that does not show itself.

use std::fmt;

use zeroize::Zeroizing;

/// A password. `Debug` prints `***`, there is no `Display`, and the memory is zeroed on drop.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes over `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The password itself. Call it only where the bytes go to the backend.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `text` with every occurrence of the secret replaced: for words that a server chose. Before it is shortened, or a part
    /// of the secret may stay.
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
