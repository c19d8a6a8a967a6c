//! Leases that wait for a connection, oldest first.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Lease, LeaseError};
use crate::backend::LoginVariant;

/// A lease that waits for a connection.
#[derive(Debug)]
pub(super) struct LeaseWaiter {
    id: u64,
    function: Option<Arc<str>>,
    variant: LoginVariant,
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
        variant: LoginVariant,
        answer: oneshot::Sender<Result<Lease, LeaseError>>,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.queue.push_back(LeaseWaiter { id, function, variant, answer });
        id
    }

    /// Removes those whose future was dropped.
    pub(super) fn remove_withdrawn(&mut self) {
        self.queue.retain(|waiter| !waiter.is_withdrawn());
    }

    /// Takes the oldest that wants this kind.
    pub(super) fn take_oldest(&mut self, variant: &LoginVariant) -> Option<LeaseWaiter> {
        self.remove_withdrawn();
        let at = self.queue.iter().position(|waiter| waiter.variant == *variant);
        at.and_then(|at| self.queue.remove(at))
    }

    /// Takes the oldest of this function that wants this kind.
    pub(super) fn take_of(&mut self, function: &Arc<str>, variant: &LoginVariant) -> Option<LeaseWaiter> {
        let own = |waiter: &LeaseWaiter| {
            waiter.function.as_ref() == Some(function) && waiter.variant == *variant && !waiter.is_withdrawn()
        };
        self.queue.iter().position(own).and_then(|at| self.queue.remove(at))
    }

    /// What those wait for that get none of these connections, of which there are so many of each kind. Takes out those
    /// that will be given away.
    pub(super) fn unserved(&self, connections: &mut [(LoginVariant, usize)]) -> Vec<LoginVariant> {
        let mut unserved = Vec::new();
        for waiter in &self.queue {
            match connections.iter_mut().find(|(variant, left)| *left > 0 && *variant == waiter.variant) {
                Some((_, left)) => *left -= 1,
                None => unserved.push(waiter.variant.clone()),
            }
        }
        unserved
    }

    /// Takes the first `count`.
    pub(super) fn take_first(&mut self, count: usize) -> Vec<LeaseWaiter> {
        self.queue.drain(..count.min(self.queue.len())).collect()
    }

    /// What this one waits for, and how many wait before it for the same, if it still waits.
    pub(super) fn place(&self, id: u64) -> Option<(LoginVariant, usize)> {
        let at = self.position(id)?;
        let variant = self.queue[at].variant.clone();
        let before = self.queue.iter().take(at).filter(|waiter| waiter.variant == variant).count();
        Some((variant, before))
    }

    fn position(&self, id: u64) -> Option<usize> {
        self.queue.iter().position(|waiter| waiter.id == id)
    }

    /// Withdraws one. `false`: it is being answered.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        self.position(id).and_then(|at| self.queue.remove(at)).is_some()
    }
}
