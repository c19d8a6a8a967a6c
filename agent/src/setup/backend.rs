//! From a `[[backend]]` section to its pool.

use std::fs;

use headstart_config as config;
use headstart_injector::{BackendSpec, Pool, ServerQuotas, SpecError};
use sha2::{Digest, Sha256};

/// A pool that does not connect yet. `quotas` is the same object for all pools of the agent.
pub(crate) fn pool(backend: &config::Backend, quotas: &ServerQuotas) -> Result<Pool, SpecError> {
    Ok(Pool::new(BackendSpec::from_config(backend)?, quotas))
}

/// Tells the content of a backend's files, passwords and certificates, from another.
pub(crate) type Credentials = [u8; 32];

/// What is in the files that a backend names. One that cannot be read counts as empty.
pub(crate) fn credentials(backend: &config::Backend) -> Credentials {
    let mut hash = Sha256::new();
    for file in backend.files() {
        let content = fs::read(file).unwrap_or_default();
        hash.update(content.len().to_le_bytes());
        hash.update(content);
    }
    hash.finalize().into()
}
