//! The clients that asked a moment ago.
//!
//! Two sensors report one SYN, and a SYN without an answer is sent again after 1, 3 and 7 seconds (initial
//! timeout of 1 s, doubled: RFC 6298, 2.1 and 5.5). Neither is new demand.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use crate::event::{ClientIdentity, Demand, FunctionId, Standing, Trigger};

/// Clients that are remembered: slots of a set-associative cache. A new client replaces the oldest in its set. A client
/// that is forgotten too early costs at most one start from the budget.
const SLOTS: usize = 4096;

/// Slots in a set. With this many, the clients of a burst hardly replace each other.
const WAYS: usize = 8;

/// How long a client is remembered, in nanoseconds: past the third retransmission.
const WINDOW_NS: u64 = 10_000_000_000;

/// One client, and what it asked for. The port of a knock is not that of the connection that follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RecentClient {
    function: FunctionId,
    client: ClientIdentity,
    knock: bool,
    at_ns: u64,
    /// The budgets refused it.
    refused: bool,
}

/// The clients that asked in the last seconds, in fixed memory.
#[derive(Debug)]
pub(super) struct RecentClients(Box<[Option<RecentClient>]>);

impl RecentClients {
    pub(super) fn new() -> Self {
        Self(vec![None; SLOTS].into_boxed_slice())
    }

    /// Whether this is another report of a known demand. A report with a key is not, if the earlier report had none and
    /// was refused: the key makes the difference.
    pub(super) fn is_duplicate(&self, function: FunctionId, demand: &Demand, now_ns: u64) -> bool {
        let Some(new) = recent_client(function, demand, now_ns) else { return false };
        let mut known = self.0.get(ways(&new)).unwrap_or_default().iter().flatten();
        known.any(|old| {
            old.is_same(&new)
                && now_ns.saturating_sub(old.at_ns) < WINDOW_NS
                && !(old.refused && demand.standing > Standing::Open)
        })
    }

    /// Remembers the client, and whether the budgets refused its demand.
    pub(super) fn remember(&mut self, function: FunctionId, demand: &Demand, refused: bool, now_ns: u64) {
        let Some(new) = recent_client(function, demand, now_ns) else { return };
        let ways = self.0.get_mut(ways(&new)).unwrap_or_default();
        let same = ways.iter().position(|old| old.as_ref().is_some_and(|old| old.is_same(&new)));
        let oldest =
            || (0..ways.len()).min_by_key(|way| ways.get(*way).copied().flatten().map(|old| old.at_ns));
        if let Some(slot) = same.or_else(oldest).and_then(|way| ways.get_mut(way)) {
            *slot = Some(RecentClient { refused, ..new });
        }
    }
}

impl RecentClient {
    /// Whether the same client asks for the same, as far as the sensors can tell.
    fn is_same(&self, new: &Self) -> bool {
        let same_syn = self.client.isn == new.client.isn || self.client.isn == 0 || new.client.isn == 0;
        self.function == new.function
            && self.client.address == new.client.address
            && self.knock == new.knock
            && same_syn
    }
}

/// The client of an early demand. Connections that wait and requests of operators are never duplicates.
fn recent_client(function: FunctionId, demand: &Demand, at_ns: u64) -> Option<RecentClient> {
    let client = demand.client.filter(|_| demand.trigger.is_early())?;
    Some(RecentClient { function, client, knock: demand.trigger == Trigger::Knock, at_ns, refused: false })
}

/// The slots of the client's set. The sequence number is not hashed, because one of the sensors does not know it.
fn ways(client: &RecentClient) -> Range<usize> {
    let mut hasher = DefaultHasher::new();
    (client.function, client.client.address, client.knock).hash(&mut hasher);
    let set = usize::try_from(hasher.finish() % (SLOTS / WAYS) as u64).unwrap_or_default();
    set * WAYS..(set + 1) * WAYS
}

#[cfg(test)]
mod tests;
