//! How many connections all pools of this process have to one server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// By the address as it is configured. Addresses are few and stay.
static LEDGERS: Mutex<BTreeMap<String, Arc<Mutex<Ledger>>>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Ledger {
    next: u64,
    pools: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    has: usize,
    /// Leases for which nothing could be begun yet.
    waits: usize,
    /// Rung when another pool has fewer.
    bell: Arc<Notify>,
}

/// The place of one pool.
#[derive(Debug)]
pub(super) struct Seat {
    ledger: Arc<Mutex<Ledger>>,
    id: u64,
    limit: Option<usize>,
}

impl Seat {
    /// `limit` is that of all pools together when this one begins another connection.
    pub(super) fn take(address: &str, limit: Option<usize>, bell: Arc<Notify>) -> Self {
        let mut ledgers = lock(&LEDGERS);
        let ledger = Arc::clone(ledgers.entry(address.to_owned()).or_default());
        let id = {
            let mut ledger = lock(&ledger);
            let id = ledger.next;
            ledger.next += 1;
            ledger.pools.insert(id, Entry { has: 0, waits: 0, bell });
            id
        };
        Self { ledger, id, limit }
    }

    /// How many of these the pool may begin; they are counted from now on. `waits` of them are for leases that wait: the
    /// others are granted only when the leases of other pools have room.
    pub(super) fn grant(&self, has: usize, wants: usize, waits: usize) -> usize {
        let mut ledger = lock(&self.ledger);
        let others = ledger.pools.iter().filter(|(id, _)| **id != self.id).map(|(_, pool)| pool);
        let (theirs, waiting) =
            others.fold((0, 0), |(has, waits), pool| (has + pool.has, waits + pool.waits));
        let free = self.limit.map_or(usize::MAX, |limit| limit.saturating_sub(theirs + has));
        let urgent = wants.min(waits).min(free);
        let granted = urgent + (wants - urgent).min((free - urgent).saturating_sub(waiting));
        if let Some(own) = ledger.pools.get_mut(&self.id) {
            own.has = has + granted;
        }
        granted
    }

    /// The pool has so many, and so many leases that nothing could be begun for.
    pub(super) fn has(&self, has: usize, waits: usize) {
        let mut ledger = lock(&self.ledger);
        let Some(own) = ledger.pools.get_mut(&self.id) else { return };
        let less = has < own.has || waits < own.waits;
        (own.has, own.waits) = (has, waits);
        if less {
            ledger.ring_others(self.id);
        }
    }
}

impl Ledger {
    fn ring_others(&self, of: u64) {
        self.pools.iter().filter(|(id, _)| **id != of).for_each(|(_, pool)| pool.bell.notify_one());
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut ledger = lock(&self.ledger);
        ledger.pools.remove(&self.id);
        ledger.ring_others(self.id);
    }
}

/// The books are in order at every unlock, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_is_not_granted() {
        let seat = |limit| Seat::take("what others have", limit, Arc::default());
        let (one, two, unlimited) = (seat(Some(5)), seat(Some(6)), seat(None));
        assert_eq!(one.grant(0, 9, 0), 5);
        assert_eq!(two.grant(0, 9, 0), 1, "its own limit is another");
        assert_eq!(unlimited.grant(0, 9, 0), 9);
        assert_eq!((one.grant(5, 1, 1), two.grant(1, 1, 1)), (0, 0));
        one.has(2, 0);
        assert_eq!(two.grant(1, 9, 9), 0, "the one without a limit counts too");
        drop(unlimited);
        assert_eq!(two.grant(1, 2, 0), 2);
        // Who waits goes before who wants to be ready.
        two.has(3, 1);
        one.has(1, 0);
        assert_eq!(one.grant(1, 1, 0), 0);
        assert_eq!((one.grant(1, 1, 1), two.grant(3, 1, 1)), (1, 1));
        let elsewhere = Seat::take("another server", Some(5), Arc::default());
        assert_eq!(elsewhere.grant(0, 9, 0), 5);
    }
}
