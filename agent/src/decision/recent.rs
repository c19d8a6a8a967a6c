//! Which clients have asked a moment ago.
//!
//! Two sensors report one SYN, and a SYN without an answer is sent again after 1, 3 and 7 seconds (initial
//! timeout of 1 s, doubled: RFC 6298, 2.1 and 5.5). Neither is another client.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::event::{Client, Demand, FunctionId, Trigger};

/// Clients that are remembered. Each has one place; who takes it is forgotten no sooner than the window
/// ends or another client takes it. To be forgotten costs at most a start from the budget.
const PLACES: usize = 4096;

/// How long a client is remembered, in nanoseconds: past the third retransmission.
const WINDOW_NS: u64 = 10_000_000_000;

/// Who asked for what. A knock's port says nothing about the port of the connection that follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    function: FunctionId,
    client: Client,
    knock: bool,
    at_ns: u64,
    /// It was over the budget.
    refused: bool,
}

/// The clients that asked in the last seconds, in fixed memory.
#[derive(Debug)]
pub(super) struct Recent(Box<[Option<Place>]>);

impl Recent {
    pub(super) fn new() -> Self {
        Self(vec![None; PLACES].into_boxed_slice())
    }

    /// Whether this is another report of something that was answered. The report of a key's owner is none
    /// when only an open one was seen, and refused: the key is news.
    pub(super) fn is_duplicate(&self, function: FunctionId, demand: &Demand, now_ns: u64) -> bool {
        let Some(new) = place(function, demand, now_ns) else { return false };
        let Some(old) = self.0.get(index(&new)).copied().flatten() else { return false };
        let same_syn = old.client.isn == new.client.isn || old.client.isn == 0 || new.client.isn == 0;
        old.function == new.function
            && old.client.address == new.client.address
            && old.knock == new.knock
            && same_syn
            && now_ns.saturating_sub(old.at_ns) < WINDOW_NS
            && !(old.refused && demand.trusted)
    }

    /// Remembers who asked, and whether the budget was against it.
    pub(super) fn remember(&mut self, function: FunctionId, demand: &Demand, refused: bool, now_ns: u64) {
        let Some(new) = place(function, demand, now_ns) else { return };
        if let Some(old) = self.0.get_mut(index(&new)) {
            *old = Some(Place { refused, ..new });
        }
    }
}

/// Connections that wait and operators are never duplicates.
fn place(function: FunctionId, demand: &Demand, at_ns: u64) -> Option<Place> {
    let client = demand.client.filter(|_| demand.trigger.is_early())?;
    Some(Place { function, client, knock: demand.trigger == Trigger::Knock, at_ns, refused: false })
}

/// The sequence number does not count, as one of the sensors does not know it.
fn index(place: &Place) -> usize {
    let mut hasher = DefaultHasher::new();
    (place.function, place.client.address, place.knock).hash(&mut hasher);
    usize::try_from(hasher.finish() % PLACES as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests;
