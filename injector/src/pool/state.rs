//! The books of a pool: what exists, who waits, what may be begun. No I/O beyond a look at a socket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use rand::RngExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::ledger::Seat;
use super::size::Size;
use super::status::{PoolStatus, Tally};
use super::{Lease, LeaseError};
use crate::backend::Connection;
use crate::{BackendSpec, ConnectError, DiscardReason, FallbackReason, PoolSettings};

/// A connection that waits to be leased.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) connection: Connection,
    pub(super) since: Instant,
}

/// An idle connection that was used, and cleaned: only for the same function again.
#[derive(Debug)]
struct Kept {
    function: Arc<str>,
    idle: Idle,
    end: Option<Instant>,
}

/// A lease that waits for a connection.
#[derive(Debug)]
pub(super) struct Waiter {
    id: u64,
    function: Option<Arc<str>>,
    pub(super) answer: oneshot::Sender<Result<Lease, LeaseError>>,
}

/// What `take_idle` found.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) alive: Option<Idle>,
    pub(super) dead: Vec<(Idle, DiscardReason)>,
}

/// What the keeper has to do next.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) closed: bool,
    /// Connects to begin now; their room is taken.
    pub(super) start: usize,
    /// When to look again.
    pub(super) next: Option<Instant>,
    pub(super) expired: Vec<(Idle, DiscardReason)>,
}

/// The books.
#[derive(Debug)]
pub(super) struct State {
    settings: PoolSettings,
    /// Oldest first, each with its end.
    idle: VecDeque<(Idle, Option<Instant>)>,
    /// Those that were used, oldest first.
    kept: VecDeque<Kept>,
    /// Given up for a connection that somebody waits for; closed before that one is begun.
    evicted: Vec<Idle>,
    waiters: VecDeque<Waiter>,
    connecting: usize,
    /// The part of `connecting` that the keeper has not begun yet.
    unbegun: usize,
    leased: usize,
    /// Of a pool that follows demand.
    size: Option<Size>,
    backoff: Backoff,
    last_error: Option<Arc<ConnectError>>,
    closed: bool,
    /// Among the pools of the same server.
    seat: Option<Seat>,
    next_id: u64,
    pub(super) tally: Tally,
}

impl State {
    pub(super) fn new(settings: &PoolSettings) -> Self {
        let max = settings.max.max(1);
        let settings = PoolSettings { max, min_idle: settings.min_idle.min(max), ..settings.clone() };
        Self {
            backoff: Backoff::new(settings.backoff_min, settings.backoff_max),
            size: settings.follow_demand.then(Size::default),
            settings,
            idle: VecDeque::new(),
            kept: VecDeque::new(),
            evicted: Vec::new(),
            waiters: VecDeque::new(),
            connecting: 0,
            unbegun: 0,
            leased: 0,
            last_error: None,
            closed: false,
            seat: None,
            next_id: 0,
            tally: Tally::default(),
        }
    }

    pub(super) fn with_seat(self, seat: Seat) -> Self {
        Self { seat: Some(seat), ..self }
    }

    /// Connections that the server may know of.
    fn total(&self) -> usize {
        self.idle.len() + self.kept.len() + self.evicted.len() + self.connecting + self.leased
    }

    pub(super) fn tell_others(&self) {
        if let Some(seat) = &self.seat {
            seat.has(self.total(), self.waiters.len().saturating_sub(self.connecting));
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    fn room(&self) -> usize {
        self.settings.max.saturating_sub(self.idle.len() + self.kept.len() + self.connecting + self.leased)
    }

    /// How many idle connections there should be.
    fn wanted(&self, now: Instant) -> usize {
        let by_demand = self.size.as_ref().map_or(0, |size| size.wanted(now));
        by_demand.clamp(self.settings.min_idle, self.settings.max)
    }

    fn count(&mut self, now: Instant) {
        if let Some(size) = &mut self.size {
            size.leased(now);
        }
    }

    /// Takes an idle connection that is alive, and counts it as leased: the last one that this function has used, or
    /// else the oldest that nobody has.
    pub(super) fn take_idle(&mut self, function: Option<&str>, now: Instant) -> Taken {
        let mut taken = Taken::default();
        while let Some((mut idle, end)) = self.next_idle(function) {
            let expired = end.is_some_and(|end| end <= now);
            match if expired { Err(DiscardReason::Expired) } else { idle.connection.stream.is_quiet() } {
                Ok(()) => {
                    self.leased += 1;
                    self.count(now);
                    self.backoff.proved_good();
                    self.tally.leased_idle += 1;
                    taken.alive = Some(idle);
                    break;
                }
                Err(reason) => {
                    self.tally.discard(reason);
                    taken.dead.push((idle, reason));
                }
            }
        }
        taken
    }

    fn next_idle(&mut self, function: Option<&str>) -> Option<(Idle, Option<Instant>)> {
        let own = function.and_then(|name| self.kept.iter().rposition(|kept| &*kept.function == name));
        match own.and_then(|index| self.kept.remove(index)) {
            Some(Kept { idle, end, .. }) => Some((idle, end)),
            None => self.idle.pop_front(),
        }
    }

    /// Puts a lease in the queue, and takes room for its connection if there is any.
    pub(super) fn enqueue(
        &mut self,
        function: Option<Arc<str>>,
        answer: oneshot::Sender<Result<Lease, LeaseError>>,
        now: Instant,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.count(now);
        self.waiters.push_back(Waiter { id, function, answer });
        self.reserve(now);
        id
    }

    /// Takes room for the connects that should be under way now.
    fn reserve(&mut self, now: Instant) {
        self.waiters.retain(|waiter| !waiter.answer.is_closed());
        let missing = self.wanted(now).saturating_sub(self.idle.len());
        let wanted = match self.backoff.retry_at() {
            None => self.waiters.len() + missing,
            Some(at) => usize::from(!self.waiters.is_empty() || (missing > 0 && at <= now)),
        };
        let missing = wanted.saturating_sub(self.connecting);
        while self.room() < missing
            && let Some(Kept { idle, .. }) = self.kept.pop_front()
        {
            self.tally.discard(DiscardReason::Surplus);
            self.evicted.push(idle);
        }
        let mut begin = missing.min(self.room());
        if let Some(seat) = &self.seat {
            begin = seat.grant(self.total(), begin, self.waiters.len().saturating_sub(self.connecting));
            // Another pool has taken the room: what is kept gives its own, once it is closed.
            let short = (missing - begin).min(self.kept.len());
            let given_up = self.kept.drain(..short).map(|kept| kept.idle);
            self.evicted.extend(given_up);
            (0..short).for_each(|_| self.tally.discard(DiscardReason::Surplus));
        }
        self.connecting += begin;
        self.unbegun += begin;
    }

    /// What there is to do, and when to look again.
    pub(super) fn round(&mut self, now: Instant) -> Round {
        if self.closed {
            self.connecting = 0; // the keeper ends, and its connects with it
            return Round { closed: true, start: 0, next: None, expired: Vec::new() };
        }
        let mut expired = self.remove_idle(|_, end| {
            let expired = end.is_some_and(|end| end <= now);
            expired.then_some(DiscardReason::Expired)
        });
        self.reserve(now);
        if !self.evicted.is_empty() {
            expired.extend(self.evicted.drain(..).map(|idle| (idle, DiscardReason::Surplus)));
            self.reserve(now);
        }
        let kept = self.kept.iter().map(|kept| kept.end);
        let ends = self.idle.iter().map(|(_, end)| *end).chain(kept).flatten();
        let next = ends.chain(self.backoff.retry_at().filter(|at| *at > now)).min();
        Round { closed: false, start: std::mem::take(&mut self.unbegun), next, expired }
    }

    /// A connect succeeded. The oldest waiter for it; else it becomes idle, if another one is wanted.
    ///
    /// With a waiter the connection is counted as leased, and handed back for the waiter. The flag says
    /// whether the connect before this one had failed.
    pub(super) fn connected(&mut self, idle: Idle, now: Instant) -> (bool, Option<(Waiter, Idle)>) {
        self.connecting -= 1;
        self.tally.connects += 1;
        if let Some(size) = &mut self.size {
            size.connected(idle.connection.connect_time);
        }
        let recovered = self.last_error.take().is_some();
        self.backoff.succeeded();
        if self.closed {
            self.tally.discard(DiscardReason::PoolClosed);
            return (recovered, None);
        }
        while let Some(waiter) = self.waiters.pop_front() {
            if !waiter.answer.is_closed() {
                self.leased += 1;
                self.tally.leased_connected += 1;
                self.tally.fallback(FallbackReason::PoolEmpty);
                return (recovered, Some((waiter, idle)));
            }
        }
        if self.idle.len() >= self.wanted(now) {
            // It was begun for somebody who has left: kept, it would cost the server until its time to live.
            self.tally.discard(DiscardReason::Surplus);
            return (recovered, None);
        }
        let end = self.end(now);
        self.idle.push_back((idle, end));
        (recovered, None)
    }

    /// When a connection that is idle from now on gets too old.
    fn end(&self, now: Instant) -> Option<Instant> {
        let ttl = self.settings.ttl;
        (!ttl.is_zero()).then(|| now + ttl.mul_f64(rand::rng().random_range(0.8..=1.0)))
    }

    /// A lease ended, and its connection was cleaned. The first waiter of the same function for it; else it is kept for
    /// that function.
    pub(super) fn recycled(
        &mut self,
        function: Arc<str>,
        idle: Idle,
        now: Instant,
    ) -> Option<(Waiter, Idle)> {
        self.tally.recycled += 1;
        let own = |waiter: &Waiter| waiter.function.as_ref() == Some(&function) && !waiter.answer.is_closed();
        if !self.closed
            && let Some(waiter) = self.waiters.iter().position(own).and_then(|at| self.waiters.remove(at))
        {
            self.tally.leased_idle += 1;
            return Some((waiter, idle));
        }
        self.leased -= 1;
        if self.closed {
            self.tally.discard(DiscardReason::PoolClosed);
            return None; // the connection ends here
        }
        let end = self.end(now);
        self.kept.push_back(Kept { function, idle, end });
        self.reserve(now);
        None
    }

    /// A connect failed: the waiters that get this error. With other connects under way that is the
    /// oldest one, otherwise everybody. The flag says whether the connect before had succeeded.
    pub(super) fn failed(&mut self, error: &Arc<ConnectError>, now: Instant) -> (bool, Vec<Waiter>) {
        self.connecting -= 1;
        self.tally.failure(error.cause.reason());
        self.backoff.failed(now, error.cause.retry_helps());
        let first = self.last_error.replace(Arc::clone(error)).is_none();
        self.waiters.retain(|waiter| !waiter.answer.is_closed());
        let told = if self.connecting == 0 { self.waiters.len() } else { self.waiters.len().min(1) };
        (first, self.waiters.drain(..told).collect())
    }

    /// A lease of an earlier life goes on.
    pub(super) fn inherit(&mut self) {
        self.leased += 1;
    }

    /// A lease ended.
    pub(super) fn release(&mut self, now: Instant) {
        self.leased -= 1;
        self.tally.discard(DiscardReason::Used);
        if !self.closed {
            self.reserve(now);
        }
    }

    /// Withdraws a waiter for which nothing is under way because there is no room.
    pub(super) fn give_up_without_room(&mut self, id: u64) -> bool {
        let position = self.waiters.iter().position(|waiter| waiter.id == id);
        self.room() == 0 && position.is_some_and(|at| at >= self.connecting) && self.give_up(id)
    }

    /// Withdraws a waiter. `false`: it is being answered.
    pub(super) fn give_up(&mut self, id: u64) -> bool {
        let before = self.waiters.len();
        self.waiters.retain(|waiter| waiter.id != id);
        self.waiters.len() < before
    }

    /// Removes idle connections that the reactor says are no longer silent; wakes `cx` for the next.
    pub(super) fn poll_idle(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Poll<Vec<(Idle, DiscardReason)>> {
        let dead = self.remove_idle(|idle, _| match idle.connection.stream.poll_end(cx) {
            Poll::Ready(reason) => Some(reason),
            Poll::Pending => None,
        });
        if dead.is_empty() {
            return Poll::Pending;
        }
        // A server that accepts and closes at once must not be hammered.
        if dead.iter().any(|(idle, _)| now - idle.since < self.settings.backoff_max) {
            self.backoff.failed(now, true);
        }
        Poll::Ready(dead)
    }

    fn remove_idle(
        &mut self,
        mut verdict: impl FnMut(&mut Idle, Option<Instant>) -> Option<DiscardReason>,
    ) -> Vec<(Idle, DiscardReason)> {
        let mut removed = Vec::new();
        for _ in 0..self.idle.len() {
            let Some((mut idle, end)) = self.idle.pop_front() else { break };
            match verdict(&mut idle, end) {
                Some(reason) => {
                    self.tally.discard(reason);
                    removed.push((idle, reason));
                }
                None => self.idle.push_back((idle, end)),
            }
        }
        for _ in 0..self.kept.len() {
            let Some(mut kept) = self.kept.pop_front() else { break };
            match verdict(&mut kept.idle, kept.end) {
                Some(reason) => {
                    self.tally.discard(reason);
                    removed.push((kept.idle, reason));
                }
                None => self.kept.push_back(kept),
            }
        }
        removed
    }

    /// Ends everything that is not leased.
    pub(super) fn close(&mut self) -> (Vec<(Idle, DiscardReason)>, VecDeque<Waiter>) {
        self.closed = true;
        self.unbegun = 0;
        (self.remove_idle(|_, _| Some(DiscardReason::PoolClosed)), std::mem::take(&mut self.waiters))
    }

    pub(super) fn status(&self, spec: &BackendSpec, now: Instant) -> PoolStatus {
        let next_attempt = self.backoff.retry_at().filter(|_| !self.closed);
        PoolStatus {
            backend: spec.name.clone(),
            min_idle: self.settings.min_idle,
            wanted: self.wanted(now),
            max: self.settings.max,
            idle: self.idle.len(),
            kept: self.kept.len(),
            connecting: self.connecting,
            leased: self.leased,
            waiting: self.waiters.len(),
            last_error: self.last_error.as_ref().map(ToString::to_string),
            next_attempt_in: next_attempt.map(|at| at.saturating_duration_since(now)),
            closed: self.closed,
            tally: self.tally.clone(),
        }
    }
}
