//! Before a freeze and after a thaw: the agent's two questions, hooks, and connections that must be looked after.
//!
//! ```text
//! Freeze ──> stop accepting ──> hooks ──> (connections go back) ──> Quiet
//!               │ somebody is connected, or a hook fails: go on ──> Busy
//! Thaw ────> look after the connections ──> hooks ──> accept ─────> Thawed
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

/// How long the hooks of a freeze, or of a thaw, may take all together. The agent waits for 5 s.
pub(crate) const HOOKS_WAIT: Duration = Duration::from_secs(2);

/// Orders that wait: the agent sends the next when it has the answer to the last.
pub(crate) const ORDERS_MAX: usize = 8;

/// What the agent says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Freeze { return_backends: bool },
    Thaw,
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a hook that fails says.
pub type HookError = Box<dyn Error + Send + Sync>;

type Hook = Arc<dyn Fn() -> BoxFuture<'static, Result<(), HookError>> + Send + Sync>;

/// A backend session that lives through a freeze.
pub(crate) trait Session: Send + Sync {
    /// Replaces its connection if that is dead or too old.
    fn refresh(&self) -> BoxFuture<'_, ()>;
    /// Closes its connection.
    fn give_back(&self) -> BoxFuture<'_, ()>;
}

/// What is to be done, by whom, in the order in which they came.
#[derive(Default)]
pub(crate) struct Rest {
    before: Mutex<Vec<Hook>>,
    after: Mutex<Vec<Hook>>,
    sessions: Mutex<Vec<Weak<dyn Session>>>,
}

impl Rest {
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
    pub(crate) fn add(&self, session: Weak<dyn Session>) {
        let mut sessions = lock(&self.sessions);
        sessions.retain(|known| known.strong_count() > 0);
        sessions.push(session);
    }

    fn sessions(&self) -> Vec<Arc<dyn Session>> {
        lock(&self.sessions).iter().filter_map(Weak::upgrade).collect()
    }
}

/// Answers the agent for as long as it is there.
pub(crate) async fn answer(function: Function, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Freeze { return_backends } => {
                let quiet = freeze(&function, return_backends).await;
                function.tell(&if quiet { ToAgent::Quiet {} } else { ToAgent::Busy {} });
            }
            Order::Thaw => {
                if function.places().is_paused() {
                    thaw(&function).await;
                }
                function.tell(&ToAgent::Thawed { thawed_ns: now_ns() });
            }
        }
    }
    // Nobody is left who would freeze or thaw it.
    function.places().resume();
}

async fn freeze(function: &Function, return_backends: bool) -> bool {
    if !function.places().pause() {
        return false;
    }
    let hooks = lock(&function.rest().before).clone();
    if let Err(error) = run(&hooks).await {
        report::line(&format!("not frozen: {error}"));
        // What earlier hooks did is undone.
        thaw(function).await;
        return false;
    }
    if return_backends {
        for session in function.rest().sessions() {
            session.give_back().await;
        }
    }
    true
}

async fn thaw(function: &Function) {
    for session in function.rest().sessions() {
        session.refresh().await;
    }
    let hooks = lock(&function.rest().after).clone();
    if let Err(error) = run(&hooks).await {
        report::line(&format!("thawed, but: {error}"));
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

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
