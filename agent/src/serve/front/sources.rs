//! How many connections each source has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections by source. There are no more sources than connections.
#[derive(Default)]
pub(super) struct Sources(Mutex<HashMap<IpAddr, u32>>);

impl Sources {
    /// A place for a connection of this client, until it is dropped; `None` when its source has `limit` already.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr, limit: u32) -> Option<SourcePlace> {
        let source = source(client);
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = sources.entry(source).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(SourcePlace { sources: Arc::clone(self), source })
    }

    /// Connections of all sources.
    pub(super) fn total(&self) -> usize {
        let sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sources.values().map(|count| usize::try_from(*count).unwrap_or(0)).sum()
    }
}

/// Bounds the requests of a front that are at functions: a client of HTTP/2 has many at a time. All clients have as many as
/// there may be clients, and one source as many as it may have connections.
pub(super) struct RequestPlaces {
    all: Arc<Semaphore>,
    sources: Arc<Sources>,
}

/// The place of one request.
pub(super) type RequestPlace = (SourcePlace, OwnedSemaphorePermit);

impl RequestPlaces {
    /// For this many requests.
    pub(super) fn new(most: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(most)), sources: Arc::default() }
    }

    /// A place for a request of this client, as soon as there is one; `None` when its source has `limit` already.
    pub(super) async fn enter(&self, client: IpAddr, limit: u32) -> Option<RequestPlace> {
        let of_source = self.sources.enter(client, limit)?;
        Some((of_source, Arc::clone(&self.all).acquire_owned().await.ok()?))
    }
}

/// The place of one connection.
pub(super) struct SourcePlace {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Drop for SourcePlace {
    fn drop(&mut self) {
        let mut sources = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = sources.entry(self.source) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
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
    async fn requests_of_one_source_leave_places_for_others() {
        let places = RequestPlaces::new(3);
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let held = [places.enter(one, 2).await, places.enter(one, 2).await];
        assert!(held.iter().all(Option::is_some) && places.enter(one, 2).await.is_none());
        assert!(places.enter(other, 2).await.is_some());
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
        assert!(sources.0.lock().unwrap().is_empty());
    }
}
