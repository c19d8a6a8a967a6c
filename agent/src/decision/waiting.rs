//! The clients that wait for one function: connections in the accept queue, and connections that a SYN or a knock has
//! announced and that have not come yet.

use std::collections::VecDeque;

use super::load::FunctionLoad;
use crate::event::{Demand, Standing};

/// Expected connections that are remembered. Only a flood announces more, and then the accept queue counts the
/// connections that really come.
const EXPECTED_MAX: usize = 4096;

/// Unexpected connections that are remembered, in case their SYNs are reported late.
const UNEXPECTED_MAX: usize = 256;

/// An instance counts a connection a moment after it has taken it out of the queue. What is not counted for this long never
/// is: the instance has ended, or the queue was thrown away.
const COUNTED_WITHIN_NS: u64 = 1_000_000_000;

/// A connection that a SYN or a knock has announced and that has not come yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpectedConnection {
    pub(super) demand: Demand,
    /// When it is given up, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) deadline_ns: u64,
    /// It took a start from the budgets of this standing, and its outcome raises or lowers them. Demand with a key never
    /// pays: what clients with a key do says nothing about SYNs without one, and must not raise the budget of a flood.
    pub(super) paid: Option<Standing>,
    pub(super) state: ExpectedState,
}

/// What has been done for an expected connection, and whether its arrival can be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpectedState {
    /// It needs an instance that has not been started.
    NeedsInstance,
    /// An instance had room for it when it was announced.
    JoinsInstance,
    /// An instance was released or thawed for it.
    Started,
    /// As [`Self::NeedsInstance`] or [`Self::JoinsInstance`], but an instance that does not count its connections is
    /// ready: the connection may come without being noticed.
    Untracked,
    /// As [`Self::Started`], and untracked.
    StartedUntracked,
}

impl ExpectedState {
    /// An instance was released or thawed for it.
    pub(super) fn is_started(self) -> bool {
        matches!(self, Self::Started | Self::StartedUntracked)
    }

    /// Its arrival will be noticed.
    fn is_tracked(self) -> bool {
        !matches!(self, Self::Untracked | Self::StartedUntracked)
    }

    fn untracked(self) -> Self {
        if self.is_started() { Self::StartedUntracked } else { Self::Untracked }
    }
}

/// All clients that wait for one function.
#[derive(Debug, Default)]
pub(super) struct WaitingClients {
    expected: VecDeque<ExpectedConnection>,
    /// When connections were seen that no SYN or knock had announced.
    unexpected: VecDeque<u64>,
    /// Demand of connections that are in the queue already and for which no instance was released before they came,
    /// either because none could be or because their SYN was reported after them. The next instances are for them.
    late: VecDeque<Demand>,
    /// When the connections in the queue came, oldest first, and how many at a time.
    queue: VecDeque<(u64, u32)>,
    /// Connections that have come so far.
    arrived: u64,
    /// How many of them have left the queue and are not counted, and since when it is this number.
    uncounted: (u64, u64),
}

impl WaitingClients {
    /// Takes in what is seen now. Returns the expected connections that have come: which of several clients has
    /// connected does not matter, so it is always the first that was announced.
    pub(super) fn observe(&mut self, load: &FunctionLoad, now_ns: u64) -> Vec<ExpectedConnection> {
        let total = load.accepted.saturating_add(u64::from(load.queued));
        let grown = u64::from(load.queued.saturating_sub(self.queued()));
        let new = total.saturating_sub(self.arrived).max(grown);
        // A connection that an instance without an exact count accepts is not seen to have come. Then only the queue is
        // known, and the total may shrink.
        let counted = load.instances.iter().all(|(_, seen)| seen.is_exact());
        self.arrived = if counted { self.arrived.saturating_add(new) } else { total };
        self.await_counts(total, now_ns);
        self.update_queue(load.queued, new, now_ns);
        if load.queued == 0 {
            self.late.clear();
        }
        let new = usize::try_from(new).unwrap_or(usize::MAX);
        let expected = new.min(self.expected.len());
        let unexpected = (new - expected).min(UNEXPECTED_MAX);
        let over = (self.unexpected.len() + unexpected).saturating_sub(UNEXPECTED_MAX);
        self.unexpected.drain(..over);
        self.unexpected.extend(std::iter::repeat_n(now_ns, unexpected));
        self.expected.drain(..expected).collect()
    }

    /// Connections that have left the queue come into the count later. Until then they are no new ones.
    fn await_counts(&mut self, total: u64, now_ns: u64) {
        let uncounted = self.arrived.saturating_sub(total);
        if self.uncounted.0 != uncounted {
            self.uncounted = (uncounted, now_ns);
        } else if now_ns.saturating_sub(self.uncounted.1) >= COUNTED_WITHIN_NS {
            self.arrived = self.arrived.min(total);
        }
    }

    /// Whether the connection that a SYN or a knock of time `at_ns` announces may have come before the report of it.
    /// Each unexpected connection is the answer to one report only.
    pub(super) fn claim_unexpected(&mut self, at_ns: u64) -> bool {
        let index = self.unexpected.iter().position(|seen_ns| *seen_ns >= at_ns);
        index.and_then(|index| self.unexpected.remove(index)).is_some()
    }

    /// Remembers that the next instance is for this demand, whose connection is in the queue already.
    pub(super) fn push_late(&mut self, demand: Demand) {
        if self.late.len() < UNEXPECTED_MAX {
            self.late.push_back(demand);
        }
    }

    /// The first demand of [`Self::push_late`].
    pub(super) fn pop_late(&mut self) -> Option<Demand> {
        self.late.pop_front()
    }

    /// Brings `queue` up to date. The kernel's queue is first in, first out: a connection that is gone was at its head.
    fn update_queue(&mut self, queued: u32, new: u64, now_ns: u64) {
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

    /// Connections in the queue when it was last seen.
    pub(super) fn queued(&self) -> u32 {
        self.queue.iter().map(|(_, count)| count).sum()
    }

    /// Connections in the queue, and expected ones that will be noticed.
    pub(super) fn demand(&self) -> u64 {
        let expected = self.expected.iter().filter(|expected| expected.state.is_tracked()).count();
        u64::from(self.queued()) + expected as u64
    }

    /// From now on the expected connections may come without being noticed, so they no longer count as demand.
    pub(super) fn stop_tracking(&mut self) {
        self.expected.iter_mut().for_each(|expected| expected.state = expected.state.untracked());
    }

    /// How many of the queue came at that time or before.
    pub(super) fn queued_until(&self, at_ns: u64) -> u32 {
        self.queue.iter().take_while(|(came_ns, _)| *came_ns <= at_ns).map(|(_, count)| count).sum()
    }

    /// When the connection at the head of the queue came.
    pub(super) fn head_ns(&self) -> Option<u64> {
        self.queue.front().map(|(at_ns, _)| *at_ns)
    }

    /// The agent takes this many connections out of the queue.
    pub(super) fn remove_answered(&mut self, count: u32) {
        let queued = self.queued();
        self.update_queue(queued.saturating_sub(count), 0, 0);
    }

    /// Expects a connection. False when too many are expected already; then it is forgotten.
    pub(super) fn expect(&mut self, connection: ExpectedConnection) -> bool {
        let room = self.expected.len() < EXPECTED_MAX;
        if room {
            self.expected.push_back(connection);
        }
        room
    }

    /// Marks the first expected connection without an instance of its own as started, and returns its demand.
    /// Connections that join an instance come last.
    pub(super) fn start_for_next(&mut self) -> Option<Demand> {
        let first = |state| self.expected.iter().position(|expected| expected.state == state);
        let index = first(ExpectedState::NeedsInstance).or_else(|| first(ExpectedState::JoinsInstance))?;
        let expected = self.expected.get_mut(index)?;
        expected.state = ExpectedState::Started;
        Some(expected.demand)
    }

    /// Takes the first expected connection, because an instance that does not count reports that one came.
    pub(super) fn take_first(&mut self) -> Option<ExpectedConnection> {
        self.expected.pop_front()
    }

    /// When the first expected connection is given up.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        self.expected.front().map(|expected| expected.deadline_ns)
    }

    /// Takes the expected connections whose deadline is over. They are in the order of their deadlines, unless the
    /// configuration has changed in between.
    pub(super) fn take_expired(&mut self, now_ns: u64) -> Vec<ExpectedConnection> {
        let over = self.expected.iter().take_while(|expected| expected.deadline_ns <= now_ns).count();
        self.expected.drain(..over).collect()
    }

    /// Forgets the expected connections without any consequence for the budgets: the function failed, not its clients.
    pub(super) fn forget_expected(&mut self) {
        self.expected.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Trigger;

    fn load(queued: u32, accepted: u64) -> FunctionLoad {
        FunctionLoad { queued, accepted, instances: Vec::new() }
    }

    #[test]
    fn the_age_of_the_head_is_that_of_the_connection_that_is_there_and_not_of_one_before() {
        let mut waiting = WaitingClients::default();
        waiting.observe(&load(2, 0), 10);
        assert_eq!((waiting.head_ns(), waiting.queued()), (Some(10), 2));
        // One was accepted and one has come in between: the number is the same, the ages are not.
        waiting.observe(&load(2, 1), 20);
        assert_eq!((waiting.head_ns(), waiting.queued_until(10), waiting.queued_until(20)), (Some(10), 1, 2));
        waiting.observe(&load(2, 3), 30);
        assert_eq!((waiting.head_ns(), waiting.queued_until(29)), (Some(30), 0), "both are new");
        waiting.observe(&load(1, 4), 40);
        assert_eq!(waiting.head_ns(), Some(30));
        waiting.remove_answered(1);
        assert_eq!((waiting.head_ns(), waiting.queued()), (None, 0));
        waiting.observe(&load(0, 5), 50);
        assert_eq!(waiting.queued(), 0, "it was the agent that took it");
    }

    #[test]
    fn a_connection_that_comes_before_another_is_counted_is_not_taken_for_two() {
        let mut waiting = WaitingClients::default();
        waiting.observe(&load(2, 0), 10);
        waiting.observe(&load(1, 0), 20);
        waiting.observe(&load(2, 0), 30);
        waiting.observe(&load(2, 1), 40);
        assert_eq!((waiting.queued_until(10), waiting.queued_until(30)), (1, 2), "the count is of the first");
        waiting.observe(&load(2, 2), 50);
        assert_eq!((waiting.queued_until(30), waiting.queued_until(50)), (1, 2));
    }

    #[test]
    fn what_an_instance_took_that_ended_is_forgotten() {
        let mut waiting = WaitingClients::default();
        waiting.observe(&load(1, 0), 10);
        waiting.observe(&load(0, 0), 20);
        waiting.observe(&load(0, 0), 20 + COUNTED_WITHIN_NS);
        waiting.observe(&load(0, 1), 21 + COUNTED_WITHIN_NS);
        assert!(waiting.claim_unexpected(21 + COUNTED_WITHIN_NS), "another one came");
    }

    #[test]
    fn a_connection_fulfils_one_expectation_and_an_expired_one_is_given_back() {
        let demand = Demand::local(Trigger::Syn, 0);
        let connection = |deadline_ns| ExpectedConnection {
            demand,
            deadline_ns,
            paid: Some(Standing::Open),
            state: ExpectedState::NeedsInstance,
        };
        let mut waiting = WaitingClients::default();
        for deadline_ns in [100, 110, 120] {
            assert!(waiting.expect(connection(deadline_ns)));
        }
        assert_eq!(waiting.demand(), 3);
        assert_eq!(waiting.observe(&load(1, 0), 50).len(), 1);
        assert_eq!(waiting.demand(), 3, "two expected and one in the queue");
        assert_eq!(waiting.observe(&load(0, 1), 60).len(), 0, "its acceptance is not another one");
        assert_eq!(waiting.take_expired(110).len(), 1);
        assert_eq!((waiting.demand(), waiting.next_deadline_ns()), (1, Some(120)));
    }

    #[test]
    fn a_syn_that_is_reported_after_its_connection_is_late_once() {
        let mut waiting = WaitingClients::default();
        waiting.observe(&load(2, 0), 50);
        assert!(!waiting.claim_unexpected(51), "another client, who has come since");
        assert!(
            waiting.claim_unexpected(40) && waiting.claim_unexpected(49) && !waiting.claim_unexpected(49)
        );
        waiting.observe(&load(0, 10_000), 60);
        assert_eq!((0..10_000).filter(|_| waiting.claim_unexpected(55)).count(), UNEXPECTED_MAX);
    }

    #[test]
    fn expected_connections_are_bounded() {
        let demand = Demand::local(Trigger::Syn, 0);
        let state = ExpectedState::NeedsInstance;
        let connection = ExpectedConnection { demand, deadline_ns: 1, paid: None, state };
        let mut waiting = WaitingClients::default();
        let taken = (0..10_000).filter(|_| waiting.expect(connection)).count();
        assert_eq!(taken, EXPECTED_MAX);
    }
}
