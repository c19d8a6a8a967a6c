//! Room for connects: for leases that wait, and for connections that are to be ready.

use tokio::time::Instant;

use super::PoolState;
use crate::DiscardReason;
use crate::backend::LoginVariant;

impl PoolState {
    /// Takes room for the connects that should be under way now.
    pub(super) fn reserve(&mut self, now: Instant) {
        self.waiters.remove_withdrawn();
        let mut coming: Vec<(LoginVariant, usize)> = Vec::new();
        for variant in &self.connecting {
            match coming.iter_mut().find(|(one, _)| one == variant) {
                Some((_, count)) => *count += 1,
                None => coming.push((variant.clone(), 1)),
            }
        }
        let mut begin = self.waiters.unserved(&mut coming);
        let urgent = begin.len();
        let (wanted, spare) = (self.wanted(now), coming.iter().map(|(_, count)| count).sum::<usize>());
        let missing = wanted.saturating_sub(self.idle.unused() + spare);
        if missing > 0 {
            let coming = |variant: &LoginVariant| coming.iter().find(|(one, _)| one == variant);
            let have = |variant: &LoginVariant| {
                self.unused_of(variant) + coming(variant).map_or(0, |(_, count)| *count)
            };
            begin.extend(self.variants.next(missing, wanted, have));
        }
        if let Some(at) = self.backoff.retry_at() {
            // One attempt at a time.
            let now = self.connecting.is_empty() && (urgent > 0 || at <= now);
            begin.truncate(usize::from(now));
        }
        let urgent = urgent.min(begin.len());
        self.evict(begin.len().saturating_sub(self.room()));
        // No lease that waits can use those that are idle.
        let evicted = self.idle.evict_unused(urgent.saturating_sub(self.room()), None);
        self.count_evicted(evicted);
        let wanted = begin.len().min(self.room());
        let granted = self.share.grant(self.total(), wanted, urgent);
        // Another pool has taken the room at the server: recycled connections make room, once they are closed.
        self.evict(begin.len() - granted);
        begin.truncate(granted);
        self.connecting.extend_from_slice(&begin);
        self.reserved.append(&mut begin);
    }

    /// When clients ask for a kind of session of which none, or too few, are ready: gives up one of another kind.
    pub(super) fn make_room_for_other_kinds(&mut self, now: Instant) {
        let wanted = self.wanted(now);
        if self.idle.unused() < wanted || !self.connecting.is_empty() || self.backoff.retry_at().is_some() {
            return;
        }
        let kinds: Vec<_> = self.idle.unused_variants().cloned().collect();
        if let Some(surplus) = self.variants.surplus(wanted, &kinds, |kind| self.unused_of(kind)) {
            let evicted = self.idle.evict_unused(1, Some(&surplus));
            self.count_evicted(evicted);
        }
    }

    /// A connect has ended.
    pub(super) fn ended(&mut self, variant: &LoginVariant) {
        let at = self.connecting.iter().position(|one| one == variant);
        if let Some(at) = at.or(self.connecting.len().checked_sub(1)) {
            self.connecting.swap_remove(at);
        }
    }

    /// Gives up at most this many recycled connections.
    fn evict(&mut self, count: usize) {
        let evicted = self.idle.evict(count);
        self.count_evicted(evicted);
    }

    fn count_evicted(&mut self, evicted: usize) {
        (0..evicted).for_each(|_| self.tally.discard(DiscardReason::Surplus));
    }
}
