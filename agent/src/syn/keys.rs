//! The clients' keys in the kernel.

use std::path::PathBuf;

use aya::maps::{Array, MapData};
use headstart_config::Syn;
use headstart_config::keys::{KeyError, Keys};
use headstart_ebpf::maps::{KEYS_MAX, KeySlot};

use super::SynError;
use crate::audience::key_for;

/// Why keys cannot be reloaded.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The key file cannot be used.
    #[error("{0}; the keys stay as they were")]
    Keys(#[from] KeyError),
    /// The kernel refuses the keys.
    #[error(transparent)]
    Map(#[from] SynError),
}

/// The map of keys, and the key file.
pub struct KeyStore {
    map: Array<MapData, KeySlot>,
    file: Option<PathBuf>,
    audience: Option<String>,
}

impl KeyStore {
    /// Replaces the keys of an earlier agent by those of the file. If the file cannot be used, there is no key, and
    /// closed functions stay closed.
    pub(super) fn new(map: Array<MapData, KeySlot>, config: &Syn) -> Result<Self, SynError> {
        let (file, audience) = (config.key_file.clone(), config.audience.clone());
        let mut store = Self { map, file, audience };
        match store.load() {
            Ok(keys) => store.write(&keys)?,
            Err(error) => {
                tracing::error!(
                    "there are no keys, so authenticated clients are refused: {error}; correct the file and send SIGHUP"
                );
                store.write(&Keys::default())?;
            }
        }
        Ok(store)
    }

    /// Reads the file again; returns the number of its keys, or `None` without a file.
    ///
    /// # Errors
    /// [`ReloadError::Keys`] leaves the keys as they were.
    pub fn reload(&mut self) -> Result<Option<usize>, ReloadError> {
        let keys = self.load()?;
        if self.file.is_none() {
            return Ok(None);
        }
        self.write(&keys)?;
        Ok(Some(keys.iter().count()))
    }

    fn load(&self) -> Result<Keys, KeyError> {
        self.file.as_ref().map_or_else(|| Ok(Keys::default()), Keys::load)
    }

    fn write(&mut self, keys: &Keys) -> Result<(), SynError> {
        for (slot, number) in (0..KEYS_MAX as u32).zip(0_u8..) {
            let words = keys.get(number).map(|key| key_for(key, self.audience.as_deref()));
            let slot_value =
                KeySlot { words: words.unwrap_or_default(), present: u64::from(words.is_some()) };
            self.map.set(slot, slot_value, 0)?;
        }
        Ok(())
    }
}
