//! One pool per backend: a few idle connections, leased once, replaced in the background.
//!
//! ```text
//!              keeper                     lease                    LeaseSlot dropped
//!  (nothing) ─────────> connecting ─┬──> idle ──────────> leased ──────────────────> (nothing)
//!      ^                    │       └────────────────────>    (somebody waits for it)
//!      │   failed: back-off │            │ expired, closed by the server, unread message
//!      └────────────────────┴────────────┘
//! ```
//!
//! With `recycle` there is another way on from leased: cleaned by the one who had it, and then idle for the same function
//! only, until it gets too old or somebody else needs its place.
//!
//! `idle + kept + connecting + leased <= max` at any moment: room is taken under one lock before a connect
//! begins. The state behind the lock is in `state`; the keeper task does the connecting and notices
//! idle connections that die; leases only take.
//!
//! # When the backend is down
//! After a failed connect one attempt at a time is made, at random pauses between `backoff_min` and a
//! ceiling that doubles up to `backoff_max`. A lease does not wait for the pause to end: it starts (or
//! joins) that one attempt, and gets its result. So an error is never older than the lease's own wait,
//! recovery is noticed by the first lease, and a storm on a dead backend is one attempt at a time.

mod backoff;
mod keeper;
mod lease;
mod ledger;
mod size;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};

use crate::backend::{NoHandOver, Protocol};
use crate::{BackendSpec, DiscardReason};
pub use lease::{HandedOver, Lease, LeaseError, LeaseSlot, TlsMode};
use ledger::Seat;
use state::{Idle, State, Waiter};
pub use status::{PoolStatus, Tally};

/// Leases that may wait at the same time. Further ones fail at once.
pub const MAX_WAITING: usize = 4096;

/// The handle of a pool; clones are cheap. When the last one is dropped the pool closes.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Owner>);

/// What all handles share; its end is the end of the pool.
#[derive(Debug)]
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What handles, leases and the keeper share.
#[derive(Debug)]
struct Shared {
    spec: BackendSpec,
    state: Mutex<State>,
    /// Rung when the keeper has something to do.
    bell: Arc<Notify>,
    /// The log says once why TLS is not handed over.
    told_relayed: AtomicBool,
    /// The runtime that connects and carries bytes, once the pool is started.
    data: OnceLock<Handle>,
}

impl Pool {
    /// A pool that does not connect yet: leases wait until [`Pool::start`].
    pub fn new(spec: BackendSpec) -> Self {
        let bell = Arc::new(Notify::new());
        let seat = Seat::take(&spec.address.to_string(), spec.pool.server_max, Arc::clone(&bell));
        let state = Mutex::new(State::new(&spec.pool).with_seat(seat));
        let (told_relayed, data) = (AtomicBool::new(false), OnceLock::new());
        Self(Arc::new(Owner(Arc::new(Shared { spec, state, bell, told_relayed, data }))))
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

    /// A pool that is started on the runtime of the caller.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn spawn(spec: BackendSpec) -> Self {
        let pool = Self::new(spec);
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

    /// An idle connection that is alive, if there is one. Never blocks, and asks nobody.
    pub fn try_lease(&self) -> Option<Lease> {
        let shared = &self.0.0;
        let taken = shared.lock().take_idle(None, Instant::now());
        shared.discard(taken.dead);
        shared.bell.notify_one();
        taken.alive.map(|idle| Lease::new(shared, idle, None))
    }

    /// A connection: an idle one, else the next that gets ready, for which room is taken and a connect
    /// begun **now**, not when the future is first polled.
    ///
    /// With all `max` in use it waits up to `wait` for room. All in all it resolves within `wait` plus
    /// two connect timeouts (a foreign attempt that it joined, and its own). Dropping the future
    /// withdraws the request; a connection that was begun for it is kept if fewer than `min_idle` are
    /// idle, unless it was ready by then: that one ends like any lease.
    pub fn lease(&self) -> impl Future<Output = Result<Lease, LeaseError>> + Send + use<> {
        self.lease_for(None)
    }

    /// As [`Pool::lease`]; it may be a connection that this function has used.
    pub(crate) fn lease_for(
        &self,
        function: Option<&Arc<str>>,
    ) -> impl Future<Output = Result<Lease, LeaseError>> + Send + use<> {
        let shared = Arc::clone(&self.0.0);
        let begun = shared.begin_lease(function);
        async move {
            let outcome = match begun {
                Ok(Begun::Ready(lease)) => Ok(*lease),
                Ok(Begun::Waiting { id, answer }) => shared.await_lease(id, answer).await,
                Err(error) => Err(error),
            };
            outcome.inspect_err(|error| shared.lock().tally.fallback(error.reason()))
        }
    }

    /// Counts a connection as leased that somebody holds from an earlier life of this pool, also beyond `max`: it is
    /// there.
    pub fn inherit(&self) -> LeaseSlot {
        let shared = &self.0.0;
        shared.lock().inherit();
        LeaseSlot::inherited(shared)
    }

    /// A snapshot for metrics and the admin API.
    pub fn status(&self) -> PoolStatus {
        let shared = &self.0.0;
        shared.lock().status(&shared.spec, Instant::now())
    }

    /// Closes idle connections, stops connecting, fails waiting leases. Leased connections stay with
    /// their holders. Closing twice is harmless.
    pub fn close(&self) {
        self.0.0.close();
    }
}

/// The books, open. When they are closed, the other pools of the same server are told what this one has.
struct Locked<'a>(MutexGuard<'a, State>);

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.0
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.tell_others();
    }
}

/// How a lease began.
enum Begun {
    Ready(Box<Lease>),
    Waiting { id: u64, answer: oneshot::Receiver<Result<Lease, LeaseError>> },
}

impl Shared {
    /// The state stays consistent at every unlock, so a panic elsewhere does not spoil it.
    fn lock(&self) -> Locked<'_> {
        Locked(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn data(&self) -> io::Result<&Handle> {
        self.data
            .get()
            .ok_or_else(|| io::Error::other(format!("the pool of {} is not started", self.spec.name)))
    }

    fn begin_lease(self: &Arc<Self>, function: Option<&Arc<str>>) -> Result<Begun, LeaseError> {
        let (taken, queued) = {
            let (now, mut state) = (Instant::now(), self.lock());
            if state.is_closed() {
                return Err(self.closed());
            }
            let taken = state.take_idle(function.map(|name| &**name), now);
            let queued = (taken.alive.is_none() && state.waiting() < MAX_WAITING).then(|| {
                let (sender, answer) = oneshot::channel();
                Begun::Waiting { id: state.enqueue(function.cloned(), sender, now), answer }
            });
            (taken, queued)
        };
        self.discard(taken.dead);
        self.bell.notify_one();
        match taken.alive {
            Some(idle) => Ok(Begun::Ready(Box::new(Lease::new(self, idle, None)))),
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
        if self.lock().give_up_without_room(id) {
            return Err(self.exhausted());
        }
        if let Ok(answer) = timeout(2 * settings.connect_timeout, &mut answer).await {
            return answer.unwrap_or_else(closed);
        }
        if self.lock().give_up(id) {
            return Err(self.exhausted());
        }
        answer.await.unwrap_or_else(closed) // it is being answered at this moment
    }

    /// Closes what is no longer good; never under the lock.
    fn discard(&self, connections: Vec<(Idle, DiscardReason)>) {
        for (idle, reason) in connections {
            tracing::debug!(backend = self.spec.name, reason = reason.as_str(), "idle connection discarded");
            idle.connection.stream.farewell(self.spec.kind.protocol().farewell());
        }
    }

    fn tell_relayed(&self, reason: NoHandOver) {
        if !self.told_relayed.swap(true, Ordering::Relaxed) {
            let backend = &self.spec.name;
            tracing::warn!(backend, "TLS is relayed by the agent instead of handed over: {reason}");
        }
    }

    fn close(&self) {
        let (idle, waiters) = self.lock().close();
        self.discard(idle);
        for Waiter { answer, .. } in waiters {
            drop(answer.send(Err(self.closed())));
        }
        self.bell.notify_one();
    }

    fn closed(&self) -> LeaseError {
        LeaseError::Closed { backend: self.spec.name.clone() }
    }

    fn exhausted(&self) -> LeaseError {
        let (backend, settings) = (self.spec.name.clone(), &self.spec.pool);
        let (max, server_max, wait) = (settings.max, settings.server_max, settings.wait);
        LeaseError::Exhausted { backend, max, server_max, wait }
    }
}
