//! What happens before a freeze and after a thaw: the agent's orders, the hooks, and the check of connections.
//!
//! ```text
//! Freeze ──> stop accepting ──> hooks ──> (connections go back) ──> Quiet
//!               │ a client is connected, or a hook fails: go on ──> Busy
//! Thaw ────> check the connections ──> hooks ──> accept ──────────> Thawed
//! ```

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use headstart_wire::ToAgent;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::{Function, now_ns, report};

/// Longest time for all hooks of a freeze, or of a thaw, together. The agent waits 5 s.
pub(crate) const HOOKS_WAIT: Duration = Duration::from_secs(2);

/// Most queued orders. The agent sends the next order after the answer to the last.
pub(crate) const ORDERS_MAX: usize = 8;

/// An order of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FreezeOrder {
    Freeze { return_backends: bool },
    Thaw,
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The error of a hook.
pub type HookError = Box<dyn Error + Send + Sync>;

type Hook = Arc<dyn Fn() -> BoxFuture<'static, Result<(), HookError>> + Send + Sync>;

/// A backend session that survives a freeze.
pub(crate) trait RenewableSession: Send + Sync {
    /// Replaces its connection if that is dead or too old.
    fn refresh(&self) -> BoxFuture<'_, ()>;
    /// Closes its connection.
    fn give_back(&self) -> BoxFuture<'_, ()>;
}

/// The hooks and sessions, in the order of their registration.
#[derive(Default)]
pub(crate) struct FreezeHooks {
    before: Mutex<Vec<Hook>>,
    after: Mutex<Vec<Hook>>,
    sessions: Mutex<Vec<Weak<dyn RenewableSession>>>,
}

impl FreezeHooks {
    pub(crate) fn before(
        &self,
        hook: impl Fn() -> BoxFuture<'static, Result<(), HookError>> + Send + Sync + 'static,
    ) {
        lock(&self.before).push(Arc::new(hook));
    }

    pub(crate) fn after(
        &self,
        hook: impl Fn() -> BoxFuture<'static, Result<(), HookError>> + Send + Sync + 'static,
    ) {
        lock(&self.after).push(Arc::new(hook));
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn add(&self, session: Weak<dyn RenewableSession>) {
        let mut sessions = lock(&self.sessions);
        sessions.retain(|known| known.strong_count() > 0);
        sessions.push(session);
    }

    fn sessions(&self) -> Vec<Arc<dyn RenewableSession>> {
        lock(&self.sessions).iter().filter_map(Weak::upgrade).collect()
    }
}

/// Answers the agent's orders until the agent is gone.
pub(crate) async fn answer(function: Function, mut orders: mpsc::Receiver<FreezeOrder>) {
    while let Some(order) = orders.recv().await {
        match order {
            FreezeOrder::Freeze { return_backends } => {
                let quiet = freeze(&function, return_backends).await;
                function.tell(&if quiet { ToAgent::Quiet {} } else { ToAgent::Busy {} });
            }
            FreezeOrder::Thaw => {
                if function.places().is_paused() {
                    thaw(&function).await;
                }
                function.tell(&ToAgent::Thawed { thawed_ns: now_ns() });
            }
        }
    }
    // Without an agent there is no thaw, so the function accepts again.
    function.places().resume();
}

async fn freeze(function: &Function, return_backends: bool) -> bool {
    if !function.places().pause() {
        return false;
    }
    let hooks = lock(&function.freeze_hooks().before).clone();
    if let Err(error) = run(&hooks).await {
        report::line(&format!("the instance refuses to freeze: {error}"));
        // Undo the effects of the earlier hooks.
        thaw(function).await;
        return false;
    }
    if return_backends {
        for session in function.freeze_hooks().sessions() {
            session.give_back().await;
        }
    }
    true
}

async fn thaw(function: &Function) {
    for session in function.freeze_hooks().sessions() {
        session.refresh().await;
    }
    let hooks = lock(&function.freeze_hooks().after).clone();
    if let Err(error) = run(&hooks).await {
        report::line(&format!("a hook failed after the thaw: {error}"));
    }
    function.places().resume();
}

async fn run(hooks: &[Hook]) -> Result<(), HookError> {
    let all = async {
        for hook in hooks {
            hook().await?;
        }
        Ok(())
    };
    timeout(HOOKS_WAIT, all)
        .await
        .unwrap_or_else(|_| Err(format!("the hooks took longer than {HOOKS_WAIT:?}").into()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for FreezeHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreezeHooks").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
