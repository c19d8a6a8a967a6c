//! How many connections of a pool each function may have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The part of one lease in what its function may have; none where there is no limit.
pub(super) type Share = Option<OwnedSemaphorePermit>;

/// What the functions of a pool may have. A function that has left the configuration stays: names are few.
#[derive(Debug)]
pub(super) struct Shares {
    limit: Option<usize>,
    functions: Mutex<BTreeMap<Arc<str>, Arc<Semaphore>>>,
}

impl Shares {
    /// Each function may have `limit` connections.
    pub(super) fn new(limit: Option<usize>) -> Self {
        Self { limit, functions: Mutex::default() }
    }

    /// A share for a connection of this function.
    ///
    /// # Errors
    /// Where to wait for one, when the function has all that it may have.
    pub(super) fn take(&self, function: &Arc<str>) -> Result<Share, Arc<Semaphore>> {
        let Some(limit) = self.limit else { return Ok(None) };
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let own = functions.entry(Arc::clone(function)).or_insert_with(|| Arc::new(Semaphore::new(limit)));
        Arc::clone(own).try_acquire_owned().map(Some).map_err(|_| Arc::clone(own))
    }
}
