//! What a new agent must know of a running instance to take it over: a small file in the instance's directory.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::event::Trigger;

const FILE: &str = "note.json";

/// Becomes [`FILE`] when it is written to the end.
const NEW_FILE: &str = "note.json.new";

/// What an agent notes of an instance that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The function's name.
    pub function: String,
    /// Stands for all in the configuration that its instances depend on.
    pub fingerprint: String,
    /// What it was started for.
    pub trigger: Trigger,
    /// When it was ready, in nanoseconds of `CLOCK_MONOTONIC`.
    pub ready_ns: u64,
    /// The backends of the connections that it holds: one entry for each connection.
    pub backends: Vec<String>,
}

impl Note {
    /// Writes it into an instance's directory. A reader, and an agent that dies
    /// meanwhile, see the old note or the new one.
    ///
    /// # Errors
    /// When the directory is gone, with its instance, or the disk is full.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let new = directory.join(NEW_FILE);
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        fs::rename(&new, directory.join(FILE))
    }

    /// Reads the note in an instance's directory. `None` when there is none, or
    /// none that can be understood, which is logged.
    #[must_use]
    pub fn read(directory: &Path) -> Option<Self> {
        let path = directory.join(FILE);
        let note = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error),
        };
        note.inspect_err(|error| tracing::warn!(path = %path.display(), "a note cannot be read: {error}"))
            .ok()
    }
}
