//! What a new configuration has changed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a new configuration has changed, by the names of functions.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadOutcome {
    /// Served from now on.
    pub added: Vec<String>,
    /// Served in another way, by the same instances.
    pub changed: Vec<String>,
    /// Served by new instances; the old ones drain.
    pub replaced: Vec<String>,
    /// No longer served.
    pub removed: Vec<String>,
    /// Configured and not served, as before.
    pub unavailable: Vec<String>,
    /// The number of client keys, where there is a key file.
    pub keys: Option<usize>,
}

impl fmt::Display for ReloadOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, changed, replaced, removed, unavailable, keys } = self;
        let mut parts = Vec::new();
        for (what, names) in [
            ("added", added),
            ("changed", changed),
            ("replaced", replaced),
            ("removed", removed),
            ("still not served", unavailable),
        ] {
            if !names.is_empty() {
                parts.push(format!("{what}: {}", list(names)));
            }
        }
        if parts.is_empty() {
            parts.push("no function has changed".to_owned());
        }
        if let Some(keys) = keys {
            parts.push(format!("the key file is read again, keys: {keys}"));
        }
        f.write_str(&parts.join("; "))
    }
}

/// Names, as many as fit into a line of a log.
fn list(names: &[String]) -> String {
    const SHOWN_MAX: usize = 20;
    match names.len().checked_sub(SHOWN_MAX) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..SHOWN_MAX].join(", ")),
    }
}
