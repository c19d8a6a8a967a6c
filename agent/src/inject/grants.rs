//! The backend connections of one instance: those that it holds, those being made, and those not acknowledged yet.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use headstart_injector::{HandOver, Lease, LeaseError, LeaseSlot, Pool, TakenPlace, TlsMode};
use headstart_wire::{Flow, Grant, GrantStatus, Session, TrafficKey};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::measure::{self, now_ns};

/// A connection that is made because the pool had no idle one: the backend, since when it is wanted, the outcome.
type LeaseAttempt = (String, Instant, Result<Lease, LeaseError>);

/// The backend connections of one instance. Dropping this gives every slot back to its pool.
pub(super) struct Grants {
    function: Arc<str>,
    tls: TlsMode,
    /// Each with the name of its backend.
    slots: Vec<(String, LeaseSlot)>,
    /// Those that the instance says it has closed, and that may still exist.
    returned: Vec<TakenPlace>,
    connecting: JoinSet<LeaseAttempt>,
    /// When each unacknowledged grant was sent.
    sent: VecDeque<Instant>,
    /// The backend of the last grant, if that was a refusal.
    refused: Option<String>,
}

impl Grants {
    pub(super) fn new(function: &str, tls: TlsMode) -> Self {
        let (slots, returned, connecting) = (Vec::new(), Vec::new(), JoinSet::new());
        Self {
            function: function.into(),
            tls,
            slots,
            returned,
            connecting,
            sent: VecDeque::new(),
            refused: None,
        }
    }

    /// The connections of an instance that an earlier agent started: `held` has the backend of each. Connections of
    /// pools that no longer exist are not counted.
    pub(super) fn inherited(function: &str, tls: TlsMode, held: &[String], pools: &[Pool]) -> Self {
        let grants = Self::new(function, tls);
        let slot = |name: &String| {
            let pool = pools.iter().find(|pool| pool.name() == name)?;
            Some((name.clone(), pool.inherit(&grants.function)))
        };
        Self { slots: held.iter().filter_map(slot).collect(), ..grants }
    }

    /// Connections held or being made.
    pub(super) fn count(&mut self) -> usize {
        self.returned.retain(TakenPlace::is_taken);
        self.slots.len() + self.returned.len() + self.connecting.len()
    }

    /// The backend of the last grant, if that was a refusal.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// The backend of each connection held.
    pub(super) fn held(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().map(|(backend, _)| backend.as_str())
    }

    /// The instance says that it has closed a connection of this backend, `connection` if that has a name. False when it held none.
    pub(super) fn returned(&mut self, backend: &str, connection: Option<u64>) -> bool {
        let closed = |(held, slot): &(String, LeaseSlot)| {
            held == backend && (connection.is_none() || slot.tls_connection() == connection)
        };
        // This agent does not know the names that an earlier one gave.
        let unnamed = |(held, slot): &(String, LeaseSlot)| held == backend && slot.tls_connection().is_none();
        let slot = self.slots.iter().position(closed).or_else(|| self.slots.iter().position(unnamed));
        let Some(index) = slot else { return false };
        let (_, slot) = self.slots.swap_remove(index);
        self.returned.retain(TakenPlace::is_taken);
        self.returned.push(slot.returned());
        true
    }

    /// Whether the instance holds a connection of this name, whose TLS was handed over.
    pub(super) fn is_held(&self, connection: u64) -> bool {
        self.slots.iter().any(|(_, slot)| slot.tls_connection() == Some(connection))
    }

    /// The next traffic key of a connection whose TLS was handed over; `None` when there is none.
    pub(super) fn next_key(&self, connection: u64, flow: Flow) -> Option<TrafficKey> {
        let slot = self.slots.iter().find(|(_, slot)| slot.tls_connection() == Some(connection));
        slot.and_then(|(_, slot)| slot.next_key(flow))
    }

    /// A connection from the pool at once; otherwise one is made, and [`Grants::next`] returns it.
    pub(super) fn first(&mut self, pool: &Pool) -> (Grant, Option<OwnedFd>) {
        let wanted_at = Instant::now();
        if let Some(lease) = pool.try_lease_of(&self.function) {
            return self.hold(pool.name().to_owned(), wanted_at, lease);
        }
        let (pool, lease) = (pool.clone(), pool.lease_of(&self.function));
        let backend = pool.name().to_owned();
        self.connecting.spawn(async move { (pool.name().to_owned(), wanted_at, lease.await) });
        (Grant { backend, status: GrantStatus::Pending }, None)
    }

    fn hold(&mut self, backend: String, wanted_at: Instant, lease: Lease) -> (Grant, Option<OwnedFd>) {
        measure::record_inject(&backend, wanted_at.elapsed().as_secs_f64());
        let expires_ns = lease.expires_at.map(|at| {
            let left = at.saturating_duration_since(Instant::now()).as_nanos();
            now_ns().saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
        });
        // A server sends its tickets before the answer to a login. Without a login they may still come.
        let tls = match (self.tls, &lease.session) {
            (TlsMode::Kernel, Session::Tcp) => TlsMode::HandOver,
            (mode, _) => mode,
        };
        let HandOver { fd, session, tls, slot } = match lease.hand_over(tls) {
            Ok(handed_over) => handed_over,
            Err(error) => return self.failed(backend, &error),
        };
        self.refused = None;
        self.slots.push((backend.clone(), slot));
        (
            Grant { backend, status: GrantStatus::Ready { session, expires_ns, tls: tls.map(Box::new) } },
            Some(fd),
        )
    }

    /// The next connection that is made, or why there is none. Pends while none is being made.
    pub(super) async fn next(&mut self) -> (Grant, Option<OwnedFd>) {
        match self.connecting.join_next().await {
            Some(Ok((backend, wanted_at, Ok(lease)))) => self.hold(backend, wanted_at, lease),
            Some(Ok((backend, _, Err(error)))) => self.failed(backend, &error),
            // A task ends early only while the runtime shuts down.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }

    /// A grant was sent.
    pub(super) fn sent(&mut self) {
        self.sent.push_back(Instant::now());
    }

    /// The instance has acknowledged the oldest grant. False when there is none.
    pub(super) fn acknowledged(&mut self) -> bool {
        self.sent.pop_front().is_some()
    }

    /// Starts the time of every grant again, because the instance was frozen and could not acknowledge any.
    pub(super) fn renew(&mut self) {
        self.sent.iter_mut().for_each(|sent| *sent = Instant::now());
    }

    /// When the oldest grant will have been unacknowledged for `limit`.
    pub(super) fn overdue(&self, limit: Duration) -> Option<Instant> {
        self.sent.front().map(|sent| *sent + limit)
    }

    fn failed(&mut self, backend: String, error: &LeaseError) -> (Grant, Option<OwnedFd>) {
        tracing::warn!(backend, "no connection for an instance: {error}");
        self.refused = Some(backend.clone());
        (Grant { backend, status: GrantStatus::Failed { reason: error.to_string() } }, None)
    }
}
