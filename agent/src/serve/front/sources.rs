//! How many connections each source has.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections by source. There are no more sources than connections.
#[derive(Default)]
pub(super) struct Sources(Arc<Counts<IpAddr>>);

impl Sources {
    /// A place for a connection of this client, until it is dropped; `None` when its source has `limit` already.
    pub(super) fn enter(&self, client: IpAddr, limit: u32) -> Option<SourcePlace> {
        Counts::enter(&self.0, source(client), limit)
    }

    /// Connections of all sources.
    pub(super) fn total(&self) -> usize {
        let sources = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        sources.values().map(|count| usize::try_from(*count).unwrap_or(0)).sum()
    }
}

/// How many there are of each.
struct Counts<K: Eq + Hash>(Mutex<HashMap<K, u32>>);

impl<K: Eq + Hash> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> Counts<K> {
    /// One more, until it is dropped; `None` when there are `limit` already.
    fn enter(counts: &Arc<Self>, of: K, limit: u32) -> Option<Count<K>> {
        let mut all = counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(of.clone()).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Count { counts: Arc::clone(counts), of })
    }
}

/// One that is counted.
pub(super) struct Count<K: Eq + Hash> {
    counts: Arc<Counts<K>>,
    of: K,
}

impl<K: Eq + Hash> Drop for Count<K> {
    fn drop(&mut self) {
        let mut all = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.of);
            }
        }
    }
}

/// The place of a connection or a request among those of its source.
pub(super) type SourcePlace = Count<IpAddr>;

/// Bounds the requests of a front that are at functions: a client of HTTP/2 has many at a time. One source has as many as it
/// may have connections; all clients have as many as there may be clients; and one function, which may answer nothing, half
/// of these.
pub(super) struct RequestPlaces {
    all: Arc<Semaphore>,
    each: u32,
    functions: Arc<Counts<String>>,
    sources: Sources,
}

impl RequestPlaces {
    /// For this many requests.
    pub(super) fn new(most: usize) -> Self {
        let each = u32::try_from(most.div_ceil(2)).unwrap_or(u32::MAX);
        Self {
            all: Arc::new(Semaphore::new(most)),
            each,
            functions: Arc::default(),
            sources: Sources::default(),
        }
    }

    /// A place for a request of this client; `None` when its source has `limit` already.
    pub(super) fn enter(&self, client: IpAddr, limit: u32) -> Option<SourcePlace> {
        self.sources.enter(client, limit)
    }

    /// A place at this function, as soon as there is one; `None` when it has half of all.
    pub(super) async fn at_function(&self, name: &str) -> Option<(Count<String>, OwnedSemaphorePermit)> {
        let of_function = Counts::enter(&self.functions, name.to_owned(), self.each)?;
        Some((of_function, Arc::clone(&self.all).acquire_owned().await.ok()?))
    }
}

/// An IPv4 address, or the /64 of an IPv6 address: who has one address of that has all.
fn source(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_leave_places_for_other_sources_and_functions() {
        let places = RequestPlaces::new(4);
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let _held = [places.enter(one, 2), places.enter(one, 2)].map(Option::unwrap);
        assert!(places.enter(one, 2).is_none() && places.enter(other, 2).is_some());
        let hangs = [places.at_function("hangs").await, places.at_function("hangs").await];
        assert!(hangs.iter().all(Option::is_some) && places.at_function("hangs").await.is_none());
        assert!(places.at_function("answers").await.is_some());
        drop(hangs);
        assert!(places.at_function("hangs").await.is_some());
        assert!(places.functions.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_source_has_its_limit_and_leaves_nothing_behind() {
        let sources = Arc::new(Sources::default());
        let enter = |client: &str| sources.enter(client.parse().unwrap(), 2);
        let places = [enter("2001:db8::1"), enter("2001:db8::2")];
        assert!(enter("2001:db8::3").is_none(), "the same /64");
        let others = [enter("2001:db8:0:1::1"), enter("192.0.2.1"), enter("::ffff:192.0.2.1")];
        assert!(others.iter().all(Option::is_some) && enter("192.0.2.1").is_none());
        assert_eq!(sources.total(), 5);
        drop(places);
        assert!(enter("2001:db8::3").is_some());
        drop(others);
        assert!(sources.0.0.lock().unwrap().is_empty());
    }
}
