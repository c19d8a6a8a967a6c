//! Who waits: connections in the accept queue, and clients whose SYN was seen and whose connection was not.

use std::collections::VecDeque;

use super::load::Load;
use crate::event::Demand;

/// Promises that are remembered. More come only under a flood, and then the accept queue tells the truth.
const PROMISES_MAX: usize = 4096;

/// Connections that came without a promise and are remembered, in case that their SYNs are told of late.
const STRANGERS_MAX: usize = 256;

/// A SYN or a knock whose connection has not come yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promise {
    pub(super) demand: Demand,
    /// Until when it may come, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) deadline_ns: u64,
    /// It was paid from the budgets, which learn from it. What owners of a key do says nothing about SYNs
    /// without one: their connections must not pay for a flood.
    pub(super) paid: bool,
    /// There was room for it when it was made.
    pub(super) joins: bool,
    /// An instance was let go or thawed for it.
    pub(super) started: bool,
    /// An instance that does not count its connections is ready for it: nobody will know that it has come.
    pub(super) unseen: bool,
}

/// Everybody who waits for one function.
#[derive(Debug, Default)]
pub(super) struct WaitingClients {
    promises: VecDeque<Promise>,
    /// When connections were seen that nobody had promised.
    strangers: VecDeque<u64>,
    /// The SYNs of those in the queue that were told of after they had come, or that nothing was let go for before, until
    /// an instance is let go for them.
    late: VecDeque<Demand>,
    /// When the connections in the queue came, oldest first, and how many at a time.
    queue: VecDeque<(u64, u32)>,
    /// Connections that have come so far.
    arrived: u64,
}

impl WaitingClients {
    /// Takes in what is seen now. Returns the promises that were kept: which of several clients has connected
    /// does not matter, so it is always the first.
    pub(super) fn see(&mut self, load: &Load, now_ns: u64) -> Vec<Promise> {
        let total = load.accepted.saturating_add(u64::from(load.queued));
        let new = total.saturating_sub(self.arrived);
        // Whoever is accepted by an instance that does not count is not seen to have come: then the queue
        // alone must do, which may shrink.
        let counted = load.instances.iter().all(|(_, seen)| seen.open.is_some());
        self.arrived = if counted { self.arrived.max(total) } else { total };
        self.age(load.queued, new, now_ns);
        if load.queued == 0 {
            self.late.clear();
        }
        let new = usize::try_from(new).unwrap_or(usize::MAX);
        let kept = new.min(self.promises.len());
        let strangers = (new - kept).min(STRANGERS_MAX);
        let over = (self.strangers.len() + strangers).saturating_sub(STRANGERS_MAX);
        self.strangers.drain(..over);
        self.strangers.extend(std::iter::repeat_n(now_ns, strangers));
        self.promises.drain(..kept).collect()
    }

    /// Whether the connection of a SYN, or of a knock, that left at `at_ns` may have been seen before it. Each accounts
    /// for one.
    pub(super) fn is_late(&mut self, at_ns: u64) -> bool {
        let known = self.strangers.iter().position(|seen_ns| *seen_ns >= at_ns);
        known.and_then(|index| self.strangers.remove(index)).is_some()
    }

    /// Remembers for whom the next instance is: somebody who is in the queue already.
    pub(super) fn tell_late(&mut self, demand: Demand) {
        if self.late.len() < STRANGERS_MAX {
            self.late.push_back(demand);
        }
    }

    /// The first of those.
    pub(super) fn start_late(&mut self) -> Option<Demand> {
        self.late.pop_front()
    }

    /// The queue is first in, first out: whoever is missing now was at its head.
    fn age(&mut self, queued: u32, new: u64, now_ns: u64) {
        let known: u32 = self.queued();
        let new = u32::try_from(new).unwrap_or(u32::MAX).max(queued.saturating_sub(known)).min(queued);
        let mut left = known.saturating_sub(queued - new);
        while let Some((_, count)) = self.queue.front_mut() {
            let gone = left.min(*count);
            *count -= gone;
            left -= gone;
            if *count > 0 {
                break;
            }
            self.queue.pop_front();
        }
        match self.queue.back_mut() {
            _ if new == 0 => {}
            Some((at_ns, count)) if *at_ns == now_ns => *count += new,
            _ => self.queue.push_back((now_ns, new)),
        }
    }

    /// Connections in the queue, as they were last seen.
    pub(super) fn queued(&self) -> u32 {
        self.queue.iter().map(|(_, count)| count).sum()
    }

    /// Connections that wait or were promised.
    pub(super) fn demand(&self) -> u64 {
        let promised = self.promises.iter().filter(|promise| !promise.unseen).count();
        u64::from(self.queued()) + promised as u64
    }

    /// From now on those who were promised may come without being seen: they are no demand any more.
    pub(super) fn lose_sight(&mut self) {
        self.promises.iter_mut().for_each(|promise| promise.unseen = true);
    }

    /// How many of the queue came at that time or before.
    pub(super) fn came_until(&self, at_ns: u64) -> u32 {
        self.queue.iter().take_while(|(came_ns, _)| *came_ns <= at_ns).map(|(_, count)| count).sum()
    }

    /// When the connection at the head of the queue came.
    pub(super) fn head_ns(&self) -> Option<u64> {
        self.queue.front().map(|(at_ns, _)| *at_ns)
    }

    /// The agent takes so many out of the queue.
    pub(super) fn answered(&mut self, count: u32) {
        let queued = self.queued();
        self.age(queued.saturating_sub(count), 0, 0);
    }

    /// Remembers a promise. False when there is no room.
    pub(super) fn promise(&mut self, promise: Promise) -> bool {
        let room = self.promises.len() < PROMISES_MAX;
        if room {
            self.promises.push_back(promise);
        }
        room
    }

    /// The first promise for which nothing was started: from now on something was. Those for which there was room
    /// come last.
    pub(super) fn start_one(&mut self) -> Option<Demand> {
        let first =
            |joins| self.promises.iter().position(|one| !one.started && !one.unseen && (joins || !one.joins));
        let promise = self.promises.get_mut(first(false).or_else(|| first(true))?)?;
        promise.started = true;
        Some(promise.demand)
    }

    /// A client whose connection nobody counts has come.
    pub(super) fn keep_one(&mut self) -> Option<Promise> {
        self.promises.pop_front()
    }

    /// When the first promise expires.
    pub(super) fn expiry_ns(&self) -> Option<u64> {
        self.promises.front().map(|promise| promise.deadline_ns)
    }

    /// The promises that nobody has kept in time: they were made in the order of their deadlines, unless the
    /// configuration changed in between.
    pub(super) fn expired(&mut self, now_ns: u64) -> Vec<Promise> {
        let over = self.promises.iter().take_while(|promise| promise.deadline_ns <= now_ns).count();
        self.promises.drain(..over).collect()
    }

    /// What failed was not the clients: nobody is to be blamed for not coming.
    pub(super) fn forget_promises(&mut self) {
        self.promises.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Trigger;

    fn load(queued: u32, accepted: u64) -> Load {
        Load { queued, accepted, instances: Vec::new() }
    }

    #[test]
    fn the_age_of_the_head_is_that_of_the_connection_that_is_there_and_not_of_one_before() {
        let mut waiting = WaitingClients::default();
        waiting.see(&load(2, 0), 10);
        assert_eq!((waiting.head_ns(), waiting.queued()), (Some(10), 2));
        // One was accepted and one has come in between: the number is the same, the ages are not.
        waiting.see(&load(2, 1), 20);
        assert_eq!((waiting.head_ns(), waiting.came_until(10), waiting.came_until(20)), (Some(10), 1, 2));
        waiting.see(&load(2, 3), 30);
        assert_eq!((waiting.head_ns(), waiting.came_until(29)), (Some(30), 0), "both are new");
        waiting.see(&load(1, 4), 40);
        assert_eq!(waiting.head_ns(), Some(30));
        waiting.answered(1);
        assert_eq!((waiting.head_ns(), waiting.queued()), (None, 0));
        waiting.see(&load(0, 5), 50);
        assert_eq!(waiting.queued(), 0, "it was the agent that took it");
    }

    #[test]
    fn a_connection_keeps_one_promise_and_an_expired_one_is_given_back() {
        let demand = Demand::local(Trigger::Syn, 0);
        let promise = |deadline_ns| Promise {
            demand,
            deadline_ns,
            paid: true,
            joins: false,
            started: false,
            unseen: false,
        };
        let mut waiting = WaitingClients::default();
        for deadline_ns in [100, 110, 120] {
            assert!(waiting.promise(promise(deadline_ns)));
        }
        assert_eq!(waiting.demand(), 3);
        assert_eq!(waiting.see(&load(1, 0), 50).len(), 1);
        assert_eq!(waiting.demand(), 3, "two promises and a connection");
        assert_eq!(waiting.see(&load(0, 1), 60).len(), 0, "its acceptance is not another one");
        assert_eq!(waiting.expired(110).len(), 1);
        assert_eq!((waiting.demand(), waiting.expiry_ns()), (1, Some(120)));
    }

    #[test]
    fn a_syn_that_is_told_of_after_its_connection_is_late_once() {
        let mut waiting = WaitingClients::default();
        waiting.see(&load(2, 0), 50);
        assert!(!waiting.is_late(51), "another client, who has come since");
        assert!(waiting.is_late(40) && waiting.is_late(49) && !waiting.is_late(49));
        waiting.see(&load(0, 10_000), 60);
        assert_eq!((0..10_000).filter(|_| waiting.is_late(55)).count(), STRANGERS_MAX);
    }

    #[test]
    fn promises_are_bounded() {
        let demand = Demand::local(Trigger::Syn, 0);
        let promise =
            Promise { demand, deadline_ns: 1, paid: false, joins: false, started: false, unseen: false };
        let mut waiting = WaitingClients::default();
        let taken = (0..10_000).filter(|_| waiting.promise(promise)).count();
        assert_eq!(taken, PROMISES_MAX);
    }
}
