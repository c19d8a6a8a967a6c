//! The agent's own directory.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::{Context, bail};
use headstart_config::check_place;
use nix::fcntl::{Flock, FlockArg};

/// Only one agent may own a state directory: it removes what it does not know. Makes the directory if it is not there.
///
/// # Errors
/// When another agent runs there, it cannot be made, or other users can change what is in it.
pub(crate) fn lock(state_dir: &Path) -> anyhow::Result<Flock<std::fs::File>> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("cannot make {}", state_dir.display()))?;
    check_place(state_dir).map_err(|error| anyhow::anyhow!("the state directory is not safe: {error}"))?;
    let path = state_dir.join("agent.lock");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::Error::EWOULDBLOCK)) => bail!(
            "another agent runs with the state directory {}: stop it, or set another `state_dir` in [agent]",
            state_dir.display()
        ),
        Err((_, error)) => bail!("cannot lock {}: {error}", path.display()),
    }
}
