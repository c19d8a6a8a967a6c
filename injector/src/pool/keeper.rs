//! The background task of a pool: connects, and notices what dies or expires while idle.

use std::future::poll_fn;
use std::sync::Arc;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::idle::IdleConnection;
use super::{Lease, LeaseError, PoolShared};
use crate::backend::{self, Connection, LoginVariant};
use crate::{ConnectCause, ConnectError, FallbackReason};

/// Runs until the pool is closed. Its connects end with it.
pub(super) async fn keep(shared: Arc<PoolShared>) {
    let mut connects = JoinSet::new();
    loop {
        let round = shared.with_state(|state| state.round(Instant::now()));
        shared.discard(round.expired);
        if round.closed {
            return;
        }
        for variant in round.start {
            let shared = Arc::clone(&shared);
            connects.spawn(async move {
                let outcome = backend::connect(&shared.spec, variant.clone()).await;
                let outcome = outcome.map(|(connection, exposed)| {
                    exposed.into_iter().for_each(|what| shared.tell_exposed(what));
                    connection
                });
                (variant, outcome)
            });
        }
        let next = round.next;
        tokio::select! {
            () = shared.wake.notified() => {}
            Some(outcome) = connects.join_next() => shared.settle(outcome),
            () = async { sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {}
            dead = poll_fn(|cx| shared.with_state(|state| state.poll_idle(cx, Instant::now()))) => shared.discard(dead),
        }
    }
}

impl PoolShared {
    /// The end of an attempt to connect.
    fn settle(
        self: &Arc<Self>,
        outcome: Result<(LoginVariant, Result<Connection, ConnectError>), JoinError>,
    ) {
        let died = |_| (LoginVariant::Plain, Err(ConnectError::new(&self.spec, ConnectCause::TaskDied)));
        let (variant, outcome) = outcome.unwrap_or_else(died);
        match outcome {
            Ok(connection) => {
                let idle = IdleConnection { connection, since: Instant::now() };
                let (recovered, taken) = self.with_state(|state| state.connected(idle, Instant::now()));
                if recovered {
                    tracing::info!(backend = self.spec.name, "connects again");
                }
                let Some((waiter, idle)) = taken else { return };
                let lease = Lease::new(self, idle, Some(FallbackReason::PoolEmpty));
                drop(waiter.answer.send(Ok(lease))); // withdrawn just now: the lease ends here
            }
            Err(error) => {
                let error = Arc::new(error);
                let (first, waiters) =
                    self.with_state(|state| state.failed(&error, &variant, Instant::now()));
                let (backend, reason) = (&self.spec.name, error.cause.reason().as_str());
                if first {
                    tracing::warn!(backend, reason, "{error}");
                } else {
                    tracing::debug!(backend, reason, "still: {error}"); // one line per outage, not per attempt
                }
                for waiter in waiters {
                    drop(waiter.answer.send(Err(LeaseError::Connect(Arc::clone(&error)))));
                }
            }
        }
    }
}
