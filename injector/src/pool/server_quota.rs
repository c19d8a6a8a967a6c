//! How many connections the pools of one process have to one server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What pools know of each other, by the address of the server as it is configured. Give the same object to all pools that
/// may share a server; clones are cheap and mean the same object.
#[derive(Clone, Debug, Default)]
pub struct ServerQuotas(Arc<Mutex<BTreeMap<String, Arc<Mutex<ServerQuota>>>>>);

/// The pools of one server. It stays when they are gone: addresses are few.
#[derive(Debug, Default)]
struct ServerQuota {
    next_id: u64,
    pools: BTreeMap<u64, PoolUsage>,
}

#[derive(Debug)]
struct PoolUsage {
    connections: usize,
    /// Leases for which no connect could be begun yet.
    waiting: usize,
    /// Notified when another pool needs less than before.
    wake: Arc<Notify>,
}

/// The part of one pool in the quota of its server, until it is dropped.
#[derive(Debug)]
pub(super) struct QuotaShare {
    quota: Arc<Mutex<ServerQuota>>,
    id: u64,
    limit: Option<usize>,
}

impl ServerQuotas {
    /// Registers a pool. `limit` is the most connections of all pools together when this pool begins another one.
    pub(super) fn register(&self, address: &str, limit: Option<usize>, wake: Arc<Notify>) -> QuotaShare {
        let quota = Arc::clone(lock(&self.0).entry(address.to_owned()).or_default());
        let id = {
            let mut quota = lock(&quota);
            let id = quota.next_id;
            quota.next_id += 1;
            quota.pools.insert(id, PoolUsage { connections: 0, waiting: 0, wake });
            id
        };
        QuotaShare { quota, id, limit }
    }
}

impl QuotaShare {
    /// How many of `wanted` connects the pool, which has so many connections, may begin; they are counted from now on.
    /// `urgent` of them are for leases that wait: the others are granted only when the waiting leases of other pools have
    /// room.
    pub(super) fn grant(&self, connections: usize, wanted: usize, urgent: usize) -> usize {
        let mut quota = lock(&self.quota);
        let others = quota.pools.iter().filter(|(id, _)| **id != self.id).map(|(_, pool)| pool);
        let (theirs, waiting) = others.fold((0, 0), |(connections, waiting), pool| {
            (connections + pool.connections, waiting + pool.waiting)
        });
        let free = self.limit.map_or(usize::MAX, |limit| limit.saturating_sub(theirs + connections));
        let urgent = wanted.min(urgent).min(free);
        let granted = urgent + (wanted - urgent).min((free - urgent).saturating_sub(waiting));
        if let Some(own) = quota.pools.get_mut(&self.id) {
            own.connections = connections + granted;
        }
        granted
    }

    /// The pool has so many connections now, and so many leases for which no connect could be begun. If that is less than
    /// before, the other pools are woken.
    pub(super) fn report(&self, connections: usize, waiting: usize) {
        let mut quota = lock(&self.quota);
        let Some(own) = quota.pools.get_mut(&self.id) else { return };
        let less = connections < own.connections || waiting < own.waiting;
        (own.connections, own.waiting) = (connections, waiting);
        if less {
            quota.wake_others(self.id);
        }
    }
}

impl ServerQuota {
    fn wake_others(&self, of: u64) {
        self.pools.iter().filter(|(id, _)| **id != of).for_each(|(_, pool)| pool.wake.notify_one());
    }
}

impl Drop for QuotaShare {
    fn drop(&mut self) {
        let mut quota = lock(&self.quota);
        quota.pools.remove(&self.id);
        quota.wake_others(self.id);
    }
}

/// The state is consistent at every unlock, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_is_not_granted() {
        let quotas = ServerQuotas::default();
        let share = |limit| quotas.register("one server", limit, Arc::default());
        let (one, two, unlimited) = (share(Some(5)), share(Some(6)), share(None));
        assert_eq!(one.grant(0, 9, 0), 5);
        assert_eq!(two.grant(0, 9, 0), 1, "its own limit is another");
        assert_eq!(unlimited.grant(0, 9, 0), 9);
        assert_eq!((one.grant(5, 1, 1), two.grant(1, 1, 1)), (0, 0));
        one.report(2, 0);
        assert_eq!(two.grant(1, 9, 9), 0, "the one without a limit counts too");
        drop(unlimited);
        assert_eq!(two.grant(1, 2, 0), 2);
        // A lease that waits goes before connections that are only to be ready.
        two.report(3, 1);
        one.report(1, 0);
        assert_eq!(one.grant(1, 1, 0), 0);
        assert_eq!((one.grant(1, 1, 1), two.grant(3, 1, 1)), (1, 1));
        for elsewhere in [
            quotas.register("another server", Some(5), Arc::default()),
            ServerQuotas::default().register("one server", Some(5), Arc::default()),
        ] {
            assert_eq!(elsewhere.grant(0, 9, 0), 5);
        }
    }
}
