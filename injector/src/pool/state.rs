//! The state of a pool: which connections exist, which leases wait, what may be begun. No I/O beyond a look at a socket.

mod reserve;

use std::sync::Arc;
use std::task::{Context, Poll};

use rand::RngExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::demand::DemandEstimate;
use super::idle::{IdleConnection, IdleConnections};
use super::server_quota::QuotaShare;
use super::status::{PoolStatus, Tally};
use super::variants::Variants;
use super::waiters::{LeaseWaiter, LeaseWaiters};
use super::{Lease, LeaseError};
use crate::backend::LoginVariant;
use crate::{BackendSpec, ConnectError, DiscardReason, FallbackReason, PoolSettings};

/// What the search for an idle connection found.
#[derive(Debug, Default)]
pub(super) struct IdleLookup {
    pub(super) alive: Option<IdleConnection>,
    /// Those that were found dead or too old.
    pub(super) dead: Vec<(IdleConnection, DiscardReason)>,
}

/// What the keeper has to do next.
#[derive(Debug)]
pub(super) struct KeeperRound {
    pub(super) closed: bool,
    /// Connects to begin now; their room is taken.
    pub(super) start: Vec<LoginVariant>,
    /// When to look again.
    pub(super) next: Option<Instant>,
    pub(super) expired: Vec<(IdleConnection, DiscardReason)>,
}

/// The state of a pool.
#[derive(Debug)]
pub(super) struct PoolState {
    settings: PoolSettings,
    idle: IdleConnections,
    waiters: LeaseWaiters,
    connecting: Vec<LoginVariant>,
    /// The part of `connecting` that the keeper has not begun yet.
    reserved: Vec<LoginVariant>,
    variants: Variants,
    leased: usize,
    /// Only if the pool follows demand.
    demand: Option<DemandEstimate>,
    backoff: Backoff,
    last_error: Option<Arc<ConnectError>>,
    /// Connections that were logged in up to this moment may lead to a server that takes no writes.
    outdated: Option<Instant>,
    closed: bool,
    share: QuotaShare,
    pub(super) tally: Tally,
}

impl PoolState {
    pub(super) fn new(settings: &PoolSettings, share: QuotaShare) -> Self {
        let max = settings.max.max(1);
        let settings = PoolSettings { max, min_idle: settings.min_idle.min(max), ..settings.clone() };
        Self {
            backoff: Backoff::new(settings.backoff_min, settings.backoff_max),
            demand: settings.follow_demand.then(DemandEstimate::default),
            settings,
            idle: IdleConnections::default(),
            waiters: LeaseWaiters::default(),
            connecting: Vec::new(),
            reserved: Vec::new(),
            variants: Variants::default(),
            leased: 0,
            last_error: None,
            outdated: None,
            closed: false,
            share,
            tally: Tally::default(),
        }
    }

    /// Connections that the server may know of.
    fn total(&self) -> usize {
        self.idle.total() + self.connecting.len() + self.leased
    }

    /// Tells the other pools of the same server what this one has.
    pub(super) fn report_usage(&self) {
        self.share.report(self.total(), self.waiters.len().saturating_sub(self.connecting.len()));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn is_down(&self) -> bool {
        self.last_error.is_some()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    fn room(&self) -> usize {
        let used = self.idle.unused() + self.idle.recycled() + self.connecting.len() + self.leased;
        self.settings.max.saturating_sub(used)
    }

    /// How many idle connections there should be.
    fn wanted(&self, now: Instant) -> usize {
        let by_demand = self.demand.as_ref().map_or(0, |demand| demand.wanted(now));
        by_demand.clamp(self.settings.min_idle, self.settings.max)
    }

    /// What the function's next client will probably ask for.
    pub(super) fn expected(&self, function: &str) -> LoginVariant {
        self.variants.expected(function)
    }

    /// How many unused connections there are of a kind.
    fn unused_of(&self, variant: &LoginVariant) -> usize {
        self.idle.unused_variants().filter(|one| *one == variant).count()
    }

    fn count_lease(&mut self, function: Option<&Arc<str>>, variant: &LoginVariant, now: Instant) {
        self.variants.leased(function, variant);
        if let Some(demand) = &mut self.demand {
            demand.leased(now);
        }
    }

    /// Takes an idle connection of this kind that is alive, and counts it as leased: the last one that this function has
    /// used, or else the oldest unused one.
    pub(super) fn take_idle(
        &mut self,
        function: Option<&Arc<str>>,
        variant: &LoginVariant,
        now: Instant,
    ) -> IdleLookup {
        let mut lookup = IdleLookup::default();
        while let Some((mut idle, end)) = self.idle.take(function.map(|name| &**name), variant) {
            let expired = end.is_some_and(|end| end <= now);
            match if expired { Err(DiscardReason::Expired) } else { idle.connection.stream.is_quiet() } {
                Ok(()) => {
                    self.leased += 1;
                    self.count_lease(function, variant, now);
                    self.backoff.proved_good();
                    self.tally.leased_idle += 1;
                    lookup.alive = Some(idle);
                    break;
                }
                Err(reason) => {
                    self.tally.discard(reason);
                    lookup.dead.push((idle, reason));
                }
            }
        }
        lookup
    }

    /// Puts a lease in the queue, and takes room for its connection if there is any.
    pub(super) fn enqueue(
        &mut self,
        function: Option<Arc<str>>,
        variant: LoginVariant,
        answer: oneshot::Sender<Result<Lease, LeaseError>>,
        now: Instant,
    ) -> u64 {
        self.count_lease(function.as_ref(), &variant, now);
        let id = self.waiters.add(function, variant, answer);
        self.reserve(now);
        id
    }

    /// What there is to do, and when to look again.
    pub(super) fn round(&mut self, now: Instant) -> KeeperRound {
        if self.closed {
            self.connecting.clear(); // the keeper ends, and its connects with it
            return KeeperRound { closed: true, start: Vec::new(), next: None, expired: Vec::new() };
        }
        let mut expired = self.remove_idle(|_, end| {
            let expired = end.is_some_and(|end| end <= now);
            expired.then_some(DiscardReason::Expired)
        });
        self.reserve(now);
        self.make_room_for_other_kinds(now);
        let evicted = self.idle.take_evicted();
        if !evicted.is_empty() {
            expired.extend(evicted.into_iter().map(|idle| (idle, DiscardReason::Surplus)));
            self.reserve(now);
        }
        let retry = self.backoff.retry_at().filter(|at| *at > now);
        let next = self.idle.next_end().into_iter().chain(retry).min();
        KeeperRound { closed: false, start: std::mem::take(&mut self.reserved), next, expired }
    }

    /// A connect succeeded: the connection is for the oldest waiter; without one it becomes idle, if another idle one is
    /// wanted.
    ///
    /// With a waiter the connection is counted as leased, and returned for the waiter. The flag says whether the connect
    /// before this one had failed.
    pub(super) fn connected(
        &mut self,
        idle: IdleConnection,
        now: Instant,
    ) -> (bool, Option<(LeaseWaiter, IdleConnection)>) {
        let variant = idle.connection.variant.clone();
        self.ended(&variant);
        self.tally.connects += 1;
        if let Some(demand) = &mut self.demand {
            demand.connected(idle.connection.connect_time);
        }
        let recovered = self.last_error.take().is_some();
        self.backoff.succeeded();
        if self.closed {
            self.tally.discard(DiscardReason::PoolClosed);
            return (recovered, None);
        }
        if let Some(waiter) = self.waiters.take_oldest(&variant) {
            self.leased += 1;
            self.tally.leased_connected += 1;
            self.tally.fallback(FallbackReason::PoolEmpty);
            return (recovered, Some((waiter, idle)));
        }
        if self.idle.unused() >= self.wanted(now) {
            // It was begun for a lease that was withdrawn: idle, it would cost the server until its time to live is over.
            self.tally.discard(DiscardReason::Surplus);
            return (recovered, None);
        }
        let end = self.end(now);
        self.idle.add_unused(idle, end);
        (recovered, None)
    }

    /// When a connection that is idle from now on gets too old.
    fn end(&self, now: Instant) -> Option<Instant> {
        let ttl = self.settings.ttl;
        (!ttl.is_zero()).then(|| now + ttl.mul_f64(rand::rng().random_range(0.8..=1.0)))
    }

    /// A lease ended, and its connection was cleaned. It is for the first waiter of the same function; without one it is
    /// kept for that function.
    pub(super) fn recycled(
        &mut self,
        function: Arc<str>,
        idle: IdleConnection,
        now: Instant,
    ) -> Option<(LeaseWaiter, IdleConnection)> {
        if !self.closed
            && let Some(waiter) = self.waiters.take_of(&function, &idle.connection.variant)
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
        self.idle.add_recycled(function, idle, end);
        self.reserve(now);
        None
    }

    /// A connect failed: the waiters that get this error. With other connects under way that is the
    /// oldest one, otherwise all. The flag says whether the connect before had succeeded.
    pub(super) fn failed(
        &mut self,
        error: &Arc<ConnectError>,
        variant: &LoginVariant,
        now: Instant,
    ) -> (bool, Vec<LeaseWaiter>) {
        self.ended(variant);
        self.tally.failure(error.cause.reason());
        if *variant != LoginVariant::Plain && error.cause.is_about_parameters() {
            // The server is well: only this client asks for what cannot be had.
            self.variants.forget(variant);
            return (false, self.waiters.take_oldest(variant).into_iter().collect());
        }
        self.backoff.failed(now, error.cause.retry_helps());
        let first = self.last_error.replace(Arc::clone(error)).is_none();
        self.waiters.remove_withdrawn();
        let count = if self.connecting.is_empty() { self.waiters.len() } else { 1 };
        (first, self.waiters.take_first(count))
    }

    /// A lease of an earlier agent goes on.
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

    /// Withdraws a waiter for which no connect is under way because there is no room.
    pub(super) fn give_up_without_room(&mut self, id: u64) -> bool {
        let Some((variant, before)) = self.waiters.place(id) else { return false };
        let connecting = self.connecting.iter().filter(|one| **one == variant).count();
        self.room() == 0 && before >= connecting && self.give_up(id)
    }

    /// Withdraws a waiter. `false`: it is being answered.
    pub(super) fn give_up(&mut self, id: u64) -> bool {
        self.waiters.remove(id)
    }

    /// Removes idle connections that the reactor says are no longer silent; wakes `cx` for the next.
    pub(super) fn poll_idle(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Poll<Vec<(IdleConnection, DiscardReason)>> {
        let dead = self.remove_idle(|idle, _| match idle.connection.stream.poll_end(cx) {
            Poll::Ready(reason) => Some(reason),
            Poll::Pending => None,
        });
        if dead.is_empty() {
            return Poll::Pending;
        }
        // A server that accepts and closes at once gets pauses too.
        if dead.iter().any(|(idle, _)| now - idle.since < self.settings.backoff_max) {
            self.backoff.failed(now, true);
        }
        Poll::Ready(dead)
    }

    fn remove_idle(
        &mut self,
        verdict: impl FnMut(&mut IdleConnection, Option<Instant>) -> Option<DiscardReason>,
    ) -> Vec<(IdleConnection, DiscardReason)> {
        let removed = self.idle.remove(verdict);
        removed.iter().for_each(|(_, reason)| self.tally.discard(*reason));
        removed
    }

    /// Whether a connection of this time of login is not to be used again.
    pub(super) fn is_outdated(&self, since: Instant) -> bool {
        self.outdated.is_some_and(|until| since <= until)
    }

    /// A connection of this time of login leads to a server that takes no writes: gives up all idle ones, unless that was
    /// done since.
    pub(super) fn server_is_read_only(
        &mut self,
        since: Instant,
        now: Instant,
    ) -> Vec<(IdleConnection, DiscardReason)> {
        if self.is_outdated(since) {
            return Vec::new();
        }
        self.outdated = Some(now);
        self.remove_idle(|_, _| Some(DiscardReason::ReadOnly))
    }

    /// Ends everything that is not leased.
    pub(super) fn close(&mut self) -> (Vec<(IdleConnection, DiscardReason)>, Vec<LeaseWaiter>) {
        self.closed = true;
        self.reserved.clear();
        let waiters = self.waiters.take_first(usize::MAX);
        (self.remove_idle(|_, _| Some(DiscardReason::PoolClosed)), waiters)
    }

    pub(super) fn status(&self, spec: &BackendSpec, now: Instant) -> PoolStatus {
        let next_attempt = self.backoff.retry_at().filter(|_| !self.closed);
        PoolStatus {
            backend: spec.name.clone(),
            min_idle: self.settings.min_idle,
            wanted: self.wanted(now),
            max: self.settings.max,
            idle: self.idle.unused(),
            kept: self.idle.recycled(),
            connecting: self.connecting.len(),
            leased: self.leased,
            waiting: self.waiters.len(),
            last_error: self.last_error.as_ref().map(ToString::to_string),
            next_attempt_in: next_attempt.map(|at| at.saturating_duration_since(now)),
            closed: self.closed,
            tally: self.tally.clone(),
        }
    }
}
