//! The idle connections of a pool: unused ones, and recycled ones that are kept for their function.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::Instant;

use crate::DiscardReason;
use crate::backend::{Connection, LoginVariant};

/// A connection that waits to be leased.
#[derive(Debug)]
pub(super) struct IdleConnection {
    pub(super) connection: Connection,
    /// Since when it is idle.
    pub(super) since: Instant,
}

/// One that no function has used.
#[derive(Debug)]
struct UnusedConnection {
    idle: IdleConnection,
    end: Option<Instant>,
}

/// One that a function has used and that was cleaned: only for the same function again.
#[derive(Debug)]
struct RecycledConnection {
    function: Arc<str>,
    idle: IdleConnection,
    end: Option<Instant>,
}

/// All of them. Each has an `end`, at which it gets too old; none if it never does.
#[derive(Debug, Default)]
pub(super) struct IdleConnections {
    /// Oldest first.
    unused: VecDeque<UnusedConnection>,
    /// Oldest first.
    recycled: VecDeque<RecycledConnection>,
    /// Those that were given up for a connection that a lease needs; closed before that connection is begun.
    evicted: Vec<IdleConnection>,
}

impl IdleConnections {
    pub(super) fn unused(&self) -> usize {
        self.unused.len()
    }

    pub(super) fn recycled(&self) -> usize {
        self.recycled.len()
    }

    /// How many of them the server may know of.
    pub(super) fn total(&self) -> usize {
        self.unused.len() + self.recycled.len() + self.evicted.len()
    }

    pub(super) fn add_unused(&mut self, idle: IdleConnection, end: Option<Instant>) {
        self.unused.push_back(UnusedConnection { idle, end });
    }

    pub(super) fn add_recycled(&mut self, function: Arc<str>, idle: IdleConnection, end: Option<Instant>) {
        self.recycled.push_back(RecycledConnection { function, idle, end });
    }

    /// The kinds of the unused ones.
    pub(super) fn unused_variants(&self) -> impl Iterator<Item = &LoginVariant> {
        self.unused.iter().map(|one| &one.idle.connection.variant)
    }

    /// Takes the last one of this kind that this function has used, or else the oldest unused one; with its end.
    pub(super) fn take(
        &mut self,
        function: Option<&str>,
        variant: &LoginVariant,
    ) -> Option<(IdleConnection, Option<Instant>)> {
        let is_wanted = |idle: &IdleConnection| idle.connection.variant == *variant;
        let own = function.and_then(|name| {
            self.recycled.iter().rposition(|one| &*one.function == name && is_wanted(&one.idle))
        });
        if let Some(RecycledConnection { idle, end, .. }) = own.and_then(|index| self.recycled.remove(index))
        {
            return Some((idle, end));
        }
        let index = self.unused.iter().position(|one| is_wanted(&one.idle))?;
        self.unused.remove(index).map(|one| (one.idle, one.end))
    }

    /// Gives up at most this many unused ones, the oldest first; of one kind, or of any. Returns how many.
    pub(super) fn evict_unused(&mut self, count: usize, variant: Option<&LoginVariant>) -> usize {
        let mut evicted = 0;
        while evicted < count {
            let is_one = |one: &UnusedConnection| variant.is_none_or(|v| one.idle.connection.variant == *v);
            let Some(one) = self.unused.iter().position(is_one).and_then(|at| self.unused.remove(at)) else {
                break;
            };
            self.evicted.push(one.idle);
            evicted += 1;
        }
        evicted
    }

    /// Gives up at most this many recycled ones, the oldest first. Returns how many.
    pub(super) fn evict(&mut self, count: usize) -> usize {
        let count = count.min(self.recycled.len());
        self.evicted.extend(self.recycled.drain(..count).map(|one| one.idle));
        count
    }

    /// Takes those that were given up.
    pub(super) fn take_evicted(&mut self) -> Vec<IdleConnection> {
        std::mem::take(&mut self.evicted)
    }

    /// The next end of one of them.
    pub(super) fn next_end(&self) -> Option<Instant> {
        let recycled = self.recycled.iter().map(|one| one.end);
        self.unused.iter().map(|one| one.end).chain(recycled).flatten().min()
    }

    /// Removes those for which `verdict` gives a reason.
    pub(super) fn remove(
        &mut self,
        mut verdict: impl FnMut(&mut IdleConnection, Option<Instant>) -> Option<DiscardReason>,
    ) -> Vec<(IdleConnection, DiscardReason)> {
        let mut removed = Vec::new();
        for _ in 0..self.unused.len() {
            let Some(mut one) = self.unused.pop_front() else { break };
            match verdict(&mut one.idle, one.end) {
                Some(reason) => removed.push((one.idle, reason)),
                None => self.unused.push_back(one),
            }
        }
        for _ in 0..self.recycled.len() {
            let Some(mut one) = self.recycled.pop_front() else { break };
            match verdict(&mut one.idle, one.end) {
                Some(reason) => removed.push((one.idle, reason)),
                None => self.recycled.push_back(one),
            }
        }
        removed
    }
}
