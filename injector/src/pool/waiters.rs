//! Leases that wait for a connection, oldest first.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Lease, LeaseError};

/// A lease that waits for a connection.
#[derive(Debug)]
pub(super) struct LeaseWaiter {
    id: u64,
    function: Option<Arc<str>>,
    pub(super) answer: oneshot::Sender<Result<Lease, LeaseError>>,
}

impl LeaseWaiter {
    fn is_withdrawn(&self) -> bool {
        self.answer.is_closed()
    }
}

/// All leases that wait.
#[derive(Debug, Default)]
pub(super) struct LeaseWaiters {
    queue: VecDeque<LeaseWaiter>,
    next_id: u64,
}

impl LeaseWaiters {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Adds a lease, and returns its ID.
    pub(super) fn add(
        &mut self,
        function: Option<Arc<str>>,
        answer: oneshot::Sender<Result<Lease, LeaseError>>,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.queue.push_back(LeaseWaiter { id, function, answer });
        id
    }

    /// Removes those whose future was dropped.
    pub(super) fn remove_withdrawn(&mut self) {
        self.queue.retain(|waiter| !waiter.is_withdrawn());
    }

    /// Takes the oldest.
    pub(super) fn take_oldest(&mut self) -> Option<LeaseWaiter> {
        self.remove_withdrawn();
        self.queue.pop_front()
    }

    /// Takes the oldest of this function.
    pub(super) fn take_of(&mut self, function: &Arc<str>) -> Option<LeaseWaiter> {
        let own = |waiter: &LeaseWaiter| waiter.function.as_ref() == Some(function) && !waiter.is_withdrawn();
        self.queue.iter().position(own).and_then(|at| self.queue.remove(at))
    }

    /// Takes the first `count`.
    pub(super) fn take_first(&mut self, count: usize) -> Vec<LeaseWaiter> {
        self.queue.drain(..count.min(self.queue.len())).collect()
    }

    /// How many wait before this one, if it still waits.
    pub(super) fn position(&self, id: u64) -> Option<usize> {
        self.queue.iter().position(|waiter| waiter.id == id)
    }

    /// Withdraws one. `false`: it is being answered.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        self.position(id).and_then(|at| self.queue.remove(at)).is_some()
    }
}
