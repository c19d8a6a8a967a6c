//! One pool per backend: a few idle connections, leased once, replaced in the background.
//!
//! ```text
//!              keeper                     lease                    LeaseSlot dropped
//!  (nothing) ─────────> connecting ─┬──> idle ──────────> leased ──────────────────> (nothing)
//!      ^                    │       └────────────────────>    (for a lease that waits)
//!      │   failed: back-off │            │ expired, closed by the server, unread message
//!      └────────────────────┴────────────┘
//! ```
//!
//! With `recycle` a leased connection may also be cleaned by its holder, and is then idle for the same function only, until
//! it gets too old or another lease needs its place.
//!
//! `idle + kept + connecting + leased <= max` at any moment, where `kept` are the recycled ones: room is taken under one
//! lock before a connect begins. The state behind the lock is in `state`, with its parts `idle`, `waiters`, `demand` and
//! `backoff`; the keeper task connects and notices idle connections that die; leases only take.
//!
//! # When the backend is down
//! After a failed connect one attempt at a time is made, at random pauses between `backoff_min` and a
//! ceiling that doubles up to `backoff_max`. A lease does not wait for the pause to end: it starts (or
//! joins) that one attempt, and gets its result. So an error is never older than the lease's own wait,
//! recovery is noticed by the first lease, and a storm on a dead backend is one attempt at a time.

mod backoff;
mod demand;
mod idle;
mod keeper;
mod lease;
mod server_quota;
mod shares;
mod state;
mod status;
#[cfg(test)]
mod tests;
mod variants;
mod waiters;

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, timeout};

use crate::backend::{LoginVariant, NoHandOver, Protocol};
use crate::{BackendSpec, DiscardReason};
use idle::IdleConnection;
pub use lease::{HandOver, Lease, LeaseError, LeaseSlot, TakenPlace, TlsMode};
pub use server_quota::ServerQuotas;
use shares::{Share, Shares};
use state::PoolState;
pub use status::{PoolStatus, Tally};
use waiters::LeaseWaiter;

/// Leases that may wait at the same time. Further ones fail at once.
pub const MAX_WAITING: usize = 4096;

/// The handle of a pool; clones are cheap. When the last one is dropped the pool closes.
#[derive(Clone, Debug)]
pub struct Pool(Arc<PoolOwner>);

/// What all handles share; its end is the end of the pool.
#[derive(Debug)]
struct PoolOwner(Arc<PoolShared>);

impl Drop for PoolOwner {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What handles, leases and the keeper share.
#[derive(Debug)]
struct PoolShared {
    spec: BackendSpec,
    state: Mutex<PoolState>,
    shares: Shares,
    /// Notified when the keeper has something to do.
    wake: Arc<Notify>,
    /// Whether the log has said why TLS is not handed over: it says so once.
    told_relayed: AtomicBool,
    /// The same for a login that a network has seen.
    told_exposed: AtomicBool,
    /// The runtime that connects and carries bytes, once the pool is started.
    data: OnceLock<Handle>,
}

impl Pool {
    /// A pool that does not connect yet: leases wait until [`Pool::start`]. Its `server_max` counts the connections of all
    /// pools with the same address and the same `quotas`.
    pub fn new(spec: BackendSpec, quotas: &ServerQuotas) -> Self {
        let wake = Arc::new(Notify::new());
        let share = quotas.register(&spec.address.to_string(), spec.pool.server_max, Arc::clone(&wake));
        let state = Mutex::new(PoolState::new(&spec.pool, share));
        let shares = Shares::new(spec.pool.max_per_function);
        let (told_relayed, told_exposed, data) =
            (AtomicBool::new(false), AtomicBool::new(false), OnceLock::new());
        let shared = PoolShared { spec, state, shares, wake, told_relayed, told_exposed, data };
        Self(Arc::new(PoolOwner(Arc::new(shared))))
    }

    /// Begins to connect. All that this pool does by itself runs on `data`, a runtime with I/O and time: name
    /// resolution, logins, TLS, and the bytes of connections that are relayed. Leases may be taken on any other runtime.
    /// A second call changes nothing.
    pub fn start(&self, data: &Handle) {
        let shared = &self.0.0;
        if shared.data.set(data.clone()).is_ok() {
            data.spawn(keeper::keep(Arc::clone(shared)));
        }
    }

    /// A pool that shares no quota and is started on the runtime of the caller: for tests and benches.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn spawn(spec: BackendSpec) -> Self {
        let pool = Self::new(spec, &ServerQuotas::default());
        pool.start(&Handle::current());
        pool
    }

    /// The runtime that carries bytes.
    pub(crate) fn data(&self) -> io::Result<&Handle> {
        self.0.0.data()
    }

    /// The backend's name.
    pub fn name(&self) -> &str {
        &self.0.0.spec.name
    }

    /// Whether what a client leaves behind is cleaned and kept.
    pub(crate) fn recycles(&self) -> bool {
        self.0.0.spec.pool.recycle
    }

    pub(crate) fn protocol(&self) -> &dyn Protocol {
        self.0.0.spec.kind.protocol()
    }

    /// An idle connection that is alive, if there is one. Never blocks, and does not ask the server.
    pub fn try_lease(&self) -> Option<Lease> {
        self.try_lease_with(None)
    }

    /// As [`Pool::try_lease`], for a function that may have this share of the pool (`max_per_function`).
    pub fn try_lease_of(&self, function: &Arc<str>) -> Option<Lease> {
        self.try_lease_with(self.0.0.shares.take(function).ok()?)
    }

    fn try_lease_with(&self, share: Share) -> Option<Lease> {
        let shared = &self.0.0;
        let lookup = shared.with_state(|state| state.take_idle(None, &LoginVariant::Plain, Instant::now()));
        shared.discard(lookup.dead);
        shared.wake.notify_one();
        lookup.alive.map(|idle| Lease::new(shared, idle, None).with_share(share))
    }

    /// A connection: an idle one, else the next that gets ready, for which room is taken and a connect
    /// begun **now**, not when the future is first polled.
    ///
    /// With all `max` in use it waits up to `wait` for room. All in all it resolves within `wait` plus
    /// two connect timeouts (a foreign attempt that it joined, and its own). Dropping the future
    /// withdraws the request; a connection that was begun for it is kept if fewer than `min_idle` are
    /// idle, unless it was ready by then: that one ends like any lease.
    pub fn lease(&self) -> impl Future<Output = Result<Lease, LeaseError>> + Send + use<> {
        self.lease_with(Ok(None), None, LoginVariant::Plain)
    }

    /// What the function's next client will probably ask for.
    pub(crate) fn expected(&self, function: &str) -> LoginVariant {
        self.0.0.with_state(|state| state.expected(function))
    }

    /// As [`Pool::lease`], for this function. If it has all that one function may have (`max_per_function`), the lease begins
    /// when one of these is free, for which it waits up to `wait` too.
    pub fn lease_of(
        &self,
        function: &Arc<str>,
    ) -> impl Future<Output = Result<Lease, LeaseError>> + Send + use<> {
        self.lease_with(self.0.0.shares.take(function), None, LoginVariant::Plain)
    }

    /// As [`Pool::lease_of`], of this kind; it may be a connection that this function has used.
    pub(crate) fn lease_again(
        &self,
        function: &Arc<str>,
        variant: LoginVariant,
    ) -> impl Future<Output = Result<Lease, LeaseError>> + Send + use<> {
        self.lease_with(self.0.0.shares.take(function), Some(Arc::clone(function)), variant)
    }

    /// With a share, or when there is one.
    fn lease_with(
        &self,
        share: Result<Share, Arc<Semaphore>>,
        function: Option<Arc<str>>,
        variant: LoginVariant,
    ) -> impl Future<Output = Result<Lease, LeaseError>> + Send + use<> {
        let shared = Arc::clone(&self.0.0);
        let begin = move |shared: &Arc<PoolShared>| shared.begin_lease(function.as_ref(), variant);
        let begun = match share {
            Ok(share) => Ok((share, begin(&shared))),
            Err(shares) => Err((shares, begin)),
        };
        async move {
            let (share, start) = match begun {
                Ok(begun) => begun,
                Err((shares, begin)) => match timeout(shared.spec.pool.wait, shares.acquire_owned()).await {
                    Ok(Ok(share)) => (Some(share), begin(&shared)),
                    _ => (None, Err(shared.share_exhausted())),
                },
            };
            let outcome = match start {
                Ok(LeaseStart::Ready(lease)) => Ok(*lease),
                Ok(LeaseStart::Waiting { id, answer }) => shared.await_lease(id, answer).await,
                Err(error) => Err(error),
            };
            let outcome = outcome.map(|lease| lease.with_share(share));
            outcome.inspect_err(|error| {
                shared.with_state(|state| state.tally.fallback(error.reason()));
            })
        }
    }

    /// Counts a connection as leased that an instance has from an earlier agent. It exists, so it counts also beyond
    /// `max`.
    pub fn inherit(&self, function: &Arc<str>) -> LeaseSlot {
        let shared = &self.0.0;
        shared.with_state(PoolState::inherit);
        LeaseSlot::inherited(shared, shared.shares.take(function).unwrap_or_default())
    }

    /// Whether the last attempt to connect has failed.
    pub fn is_down(&self) -> bool {
        self.0.0.with_state(|state| state.is_down())
    }

    /// A snapshot for metrics and the admin API.
    pub fn status(&self) -> PoolStatus {
        let shared = &self.0.0;
        shared.with_state(|state| state.status(&shared.spec, Instant::now()))
    }

    /// Closes idle connections, stops connecting, fails waiting leases. Leased connections stay with
    /// their holders. Closing twice is harmless.
    pub fn close(&self) {
        self.0.0.close();
    }
}

/// How a lease began.
enum LeaseStart {
    Ready(Box<Lease>),
    Waiting { id: u64, answer: oneshot::Receiver<Result<Lease, LeaseError>> },
}

impl PoolShared {
    /// Reads or changes the state, and tells the other pools of the server about the change. `access` leaves the state
    /// consistent, so a panic elsewhere does not spoil it.
    fn with_state<T>(&self, access: impl FnOnce(&mut PoolState) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = access(&mut state);
        state.report_usage();
        result
    }

    fn data(&self) -> io::Result<&Handle> {
        self.data
            .get()
            .ok_or_else(|| io::Error::other(format!("the pool of {} is not started", self.spec.name)))
    }

    fn begin_lease(
        self: &Arc<Self>,
        function: Option<&Arc<str>>,
        variant: LoginVariant,
    ) -> Result<LeaseStart, LeaseError> {
        let now = Instant::now();
        let (lookup, queued) = self.with_state(|state| {
            if state.is_closed() {
                return Err(self.closed());
            }
            let lookup = state.take_idle(function, &variant, now);
            let queued = (lookup.alive.is_none() && state.waiting() < MAX_WAITING).then(|| {
                let (sender, answer) = oneshot::channel();
                LeaseStart::Waiting { id: state.enqueue(function.cloned(), variant, sender, now), answer }
            });
            Ok((lookup, queued))
        })?;
        self.discard(lookup.dead);
        self.wake.notify_one();
        match lookup.alive {
            Some(idle) => Ok(LeaseStart::Ready(Box::new(Lease::new(self, idle, None)))),
            None => queued.ok_or_else(|| self.exhausted()),
        }
    }

    async fn await_lease(
        &self,
        id: u64,
        mut answer: oneshot::Receiver<Result<Lease, LeaseError>>,
    ) -> Result<Lease, LeaseError> {
        let settings = &self.spec.pool;
        let closed = |_| Err(self.closed());
        if let Ok(answer) = timeout(settings.wait, &mut answer).await {
            return answer.unwrap_or_else(closed);
        }
        // Waited long enough for room. But when a connect is under way for this lease, see it through.
        if self.with_state(|state| state.give_up_without_room(id)) {
            return Err(self.exhausted());
        }
        if let Ok(answer) = timeout(2 * settings.connect_timeout, &mut answer).await {
            return answer.unwrap_or_else(closed);
        }
        if self.with_state(|state| state.give_up(id)) {
            return Err(self.exhausted());
        }
        answer.await.unwrap_or_else(closed) // it is being answered at this moment
    }

    /// Closes what is no longer good; never under the lock.
    fn discard(&self, connections: Vec<(IdleConnection, DiscardReason)>) {
        for (idle, reason) in connections {
            tracing::debug!(backend = self.spec.name, reason = reason.as_str(), "idle connection discarded");
            idle.connection.stream.terminate(self.spec.kind.protocol().termination_message());
        }
    }

    fn tell_exposed(&self, what: &str) {
        if !self.told_exposed.swap(true, Ordering::Relaxed) {
            tracing::warn!(backend = self.spec.name, "{what}");
        }
    }

    fn tell_relayed(&self, reason: NoHandOver) {
        if !self.told_relayed.swap(true, Ordering::Relaxed) {
            let backend = &self.spec.name;
            tracing::warn!(backend, "TLS is relayed by the agent instead of handed over: {reason}");
        }
    }

    fn close(&self) {
        let (idle, waiters) = self.with_state(PoolState::close);
        self.discard(idle);
        for LeaseWaiter { answer, .. } in waiters {
            drop(answer.send(Err(self.closed())));
        }
        self.wake.notify_one();
    }

    fn closed(&self) -> LeaseError {
        LeaseError::Closed { backend: self.spec.name.clone() }
    }

    fn share_exhausted(&self) -> LeaseError {
        let (backend, settings) = (self.spec.name.clone(), &self.spec.pool);
        let max_per_function = settings.max_per_function.unwrap_or_default();
        LeaseError::ShareExhausted { backend, max_per_function, wait: settings.wait }
    }

    fn exhausted(&self) -> LeaseError {
        let (backend, settings) = (self.spec.name.clone(), &self.spec.pool);
        let (max, server_max, wait) = (settings.max, settings.server_max, settings.wait);
        LeaseError::Exhausted { backend, max, server_max, wait }
    }
}
