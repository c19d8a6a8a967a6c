//! What the next SYN would do.

use serde::Serialize;

use crate::api::{FunctionStatus, FunctionSummary};

/// What happens at a SYN for a function that the agent does not serve.
pub(super) const NOT_SERVED: &str = "nothing: the agent does not serve this function";

/// What the next SYN would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Next {
    /// A parked container is released.
    #[serde(rename = "let_go")]
    Release,
    /// A container is made first.
    Make,
    /// The start under way is for it too.
    Join,
    /// An instance has room for it.
    Nothing,
    /// A frozen instance is thawed.
    Thaw,
    /// It waits for room in an instance: `max_instances` run.
    WaitForRoom,
    /// It waits for an instance to end.
    WaitForEnd,
    /// It waits for the pause after a failure to be over.
    WaitForRetry,
    /// The agent answers it at once.
    TurnedAway,
    /// No instance will serve it.
    NotServed,
}

/// Whether the ready instances take one more connection.
fn has_room(function: &FunctionStatus) -> bool {
    let Some(places) = function.concurrency else { return true };
    let ready = function.running.iter().filter(|one| one.state == "ready");
    let free: u32 = ready.map(|one| places.saturating_sub(one.open.unwrap_or(0))).sum();
    free > function.queued
}

pub(super) fn next(function: &FunctionStatus) -> Next {
    let start = if function.prepared > 0 { Next::Release } else { Next::Make };
    let room = function.instances < function.max_instances as usize;
    match function.state {
        FunctionSummary::Cold => start,
        FunctionSummary::Starting => Next::Join,
        FunctionSummary::Ready if has_room(function) => Next::Nothing,
        FunctionSummary::Ready
            if function.running.iter().any(|one| one.state == "frozen" || one.state == "hibernated") =>
        {
            Next::Thaw
        }
        FunctionSummary::Ready if room => start,
        FunctionSummary::Ready => Next::WaitForRoom,
        FunctionSummary::Frozen | FunctionSummary::Hibernated => Next::Thaw,
        FunctionSummary::Stopping if room => start,
        FunctionSummary::Stopping => Next::WaitForEnd,
        // In a cool-down the count has begun again.
        FunctionSummary::Failed if function.failed_starts == 0 => Next::TurnedAway,
        FunctionSummary::Failed => Next::WaitForRetry,
        FunctionSummary::Off => Next::TurnedAway,
        FunctionSummary::Closed => Next::NotServed,
    }
}

pub(super) fn text(next: Next, function: &FunctionStatus) -> String {
    match next {
        Next::Release => "a parked container is released at once".into(),
        Next::Make if function.preparing > 0 => {
            "a container has to be finished first: none is parked, and one is being made".into()
        }
        // A cold function has such a pause only after a container, not after a start, has failed.
        Next::Make if function.retry_in_seconds.is_some() => {
            "a container has to be made first: none is parked, and making the last one has failed".into()
        }
        Next::Make => "a container has to be made first: none is parked".into(),
        Next::Join => {
            "nothing more: the start under way is for its connection too, as far as it has room".into()
        }
        Next::Nothing => "nothing: an instance accepts already".into(),
        Next::Thaw => "a frozen instance is thawed at once".into(),
        Next::WaitForRoom => format!(
            "nothing: its connection waits for room in one of the {} instances, all that `max_instances` allows",
            function.max_instances
        ),
        Next::WaitForEnd => {
            "nothing yet: its connection waits until an instance is gone, and starts the next".into()
        }
        Next::WaitForRetry => format!(
            "nothing yet: its connection waits, and the function is tried again {}",
            again(function.retry_in_seconds)
        ),
        Next::TurnedAway => {
            format!("nothing: its connection is answered by the agent ({})", function.overload)
        }
        Next::NotServed => NOT_SERVED.into(),
    }
}

/// Who may do that, and when.
pub(super) fn clients(function: &FunctionStatus, next: Next) -> Option<&'static str> {
    match (&*function.require_auth, next) {
        (_, Next::NotServed | Next::TurnedAway) => None,
        ("connect", _) => Some("those with a key; SYNs of others are dropped"),
        ("wake", Next::Release | Next::Make | Next::Thaw) => {
            Some("those with a key; others do it a round trip later, when their connection is complete")
        }
        (_, Next::Release | Next::Make | Next::Thaw) => Some(
            "all; a SYN that no sensor sees, or beyond the budget of clients without a key, does it a round trip \
             later, when its connection is complete",
        ),
        _ => None,
    }
}

/// When something is tried again.
pub(in crate::cli) fn again(retry_in_seconds: Option<f64>) -> String {
    retry_in_seconds.map_or("now".to_owned(), |seconds| format!("in {seconds:.1} s"))
}
