//! Whom a client of a front means before it says so: the function that its address went to last, or else its prefix.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::event::FunctionId;
use crate::serve::Doorbell;

/// Sources that are remembered, over all fronts; as many SYNs are remembered as guesses. Each is a slot of a
/// set-associative cache, in which a new one replaces the oldest of its set.
const SLOTS: usize = 8192;

/// Slots in a set.
const WAYS: usize = 8;

/// What was guessed at the SYN of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guess {
    /// The function's number.
    pub function: FunctionId,
    /// The sequence number in the SYN, as it was reported.
    pub isn: u32,
}

/// What is known of a client that comes.
enum Seen {
    /// Its SYN, and whom it probably means.
    Guessed(Guess),
    /// It has named a function before its SYN was reported, as happens where the way is short.
    Named,
}

/// A memory of fixed size.
struct Slots<K, V> {
    slots: Box<[Option<(K, V, u64)>]>,
    /// Grows with each entry: who is oldest.
    clock: u64,
}

impl<K: Hash + Eq, V> Slots<K, V> {
    fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| None).collect(), clock: 0 }
    }

    fn ways(key: &K) -> Range<usize> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let set = usize::try_from(hasher.finish() % (SLOTS / WAYS) as u64).unwrap_or_default();
        set * WAYS..(set + 1) * WAYS
    }

    fn find(&mut self, key: &K) -> Option<&mut Option<(K, V, u64)>> {
        let ways = self.slots.get_mut(Self::ways(key))?;
        ways.iter_mut().find(|slot| slot.as_ref().is_some_and(|(known, ..)| known == key))
    }

    fn get(&mut self, key: &K) -> Option<&V> {
        self.find(key)?.as_ref().map(|(_, value, _)| value)
    }

    fn put(&mut self, key: K, value: V) {
        self.clock += 1;
        let entry = Some((key, value, self.clock));
        let Some((key, ..)) = &entry else { return };
        if let Some(slot) = self.find(key) {
            *slot = entry;
            return;
        }
        let ways = self.slots.get_mut(Self::ways(key)).unwrap_or_default();
        let oldest = ways.iter_mut().min_by_key(|slot| slot.as_ref().map(|(.., at)| *at));
        if let Some(slot) = oldest {
            *slot = entry;
        }
    }

    fn take(&mut self, key: &K) -> Option<V> {
        self.find(key)?.take().map(|(_, value, _)| value)
    }
}

/// Where clients went, and what was guessed of those that are about to come. It is shared by the thread that decides and
/// the data threads; the lock is held for a look-up.
pub struct Guesses(Mutex<Memory>);

struct Memory {
    /// By the front and the address, or the network.
    went: Slots<(FunctionId, IpAddr), Arc<Doorbell>>,
    seen: Slots<SocketAddr, Seen>,
}

impl Default for Guesses {
    fn default() -> Self {
        Self(Mutex::new(Memory { went: Slots::new(), seen: Slots::new() }))
    }
}

impl Guesses {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A SYN came to a front. The function that its client will name, if that is cold.
    pub fn at_syn(&self, front: FunctionId, client: SocketAddr, isn: u32) -> Option<FunctionId> {
        let mut memory = self.memory();
        if matches!(memory.seen.take(&client), Some(Seen::Named)) {
            return None;
        }
        let places = [client.ip(), network(client.ip())];
        let doorbell = places.iter().find_map(|place| memory.went.get(&(front, *place)).cloned())?;
        let function = doorbell.cold()?;
        memory.seen.put(client, Seen::Guessed(Guess { function, isn }));
        Some(function)
    }

    /// A client names a function. What was guessed of it.
    pub fn named(&self, client: SocketAddr) -> Option<Guess> {
        let mut memory = self.memory();
        match memory.seen.take(&client) {
            Some(Seen::Guessed(guess)) => Some(guess),
            Some(Seen::Named) | None => {
                memory.seen.put(client, Seen::Named);
                None
            }
        }
    }

    /// The next clients from there will probably mean this function.
    pub fn learn(&self, front: FunctionId, client: IpAddr, doorbell: &Arc<Doorbell>) {
        let mut memory = self.memory();
        for place in [client, network(client)] {
            if memory.went.get(&(front, place)).is_none_or(|known| !Arc::ptr_eq(known, doorbell)) {
                memory.went.put((front, place), Arc::clone(doorbell));
            }
        }
    }
}

/// The /24 of an IPv4 address, the /56 of an IPv6 address. Its last address stands for it: that is no client's.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() | 0xff).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() | (u128::MAX >> 56)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 4000)
    }

    fn bell(number: FunctionId) -> Arc<Doorbell> {
        let bell = Arc::new(Doorbell::default());
        bell.serve(number);
        bell
    }

    #[test]
    fn the_address_goes_before_its_network_and_fronts_are_apart() {
        let guesses = Guesses::default();
        let (one, two) = (bell(1), bell(2));
        guesses.learn(100, client("192.0.2.1").ip(), &one);
        guesses.learn(100, client("192.0.2.2").ip(), &two);
        guesses.learn(100, client("2001:db8::1").ip(), &one);
        for (front, address, guess) in [
            (100, "192.0.2.1", Some(1)),
            (100, "192.0.2.2", Some(2)),
            (100, "192.0.2.3", Some(2)),
            (100, "198.51.100.1", None),
            (100, "2001:db8::ffff:1", Some(1)),
            (100, "2001:db8:1::1", None),
            (101, "192.0.2.1", None),
        ] {
            assert_eq!(guesses.at_syn(front, client(address), 7), guess, "{address}");
            let told = guess.map(|function| Guess { function, isn: 7 });
            assert_eq!(guesses.named(client(address)), told, "{address}");
        }
        let late = client("192.0.2.1");
        assert_eq!(guesses.named(late), None, "its SYN is reported later");
        assert_eq!(guesses.at_syn(100, late, 7), None);
        assert_eq!(guesses.at_syn(100, late, 8), Some(1), "another connection");
        one.set_warm(true);
        assert_eq!(guesses.at_syn(100, client("192.0.2.1"), 7), None, "it is warm");
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_the_newest() {
        let guesses = Guesses::default();
        let one = bell(1);
        for bits in 0..100_000_u32 {
            guesses.learn(100, Ipv4Addr::from_bits(bits << 8).into(), &one);
        }
        let last = SocketAddr::new(Ipv4Addr::from_bits(99_999 << 8).into(), 1);
        assert_eq!(guesses.at_syn(100, last, 0), Some(1));
        assert_eq!(guesses.memory().went.slots.len(), SLOTS);
    }
}
