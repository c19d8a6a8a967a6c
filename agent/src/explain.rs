//! `headstart explain`: why a function is in its state, what the next SYN would do, how its last start went.
//! Only what the API knows is told.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::event::Trigger;
use crate::measure::{Stages, StartOutcome};
use crate::status::{self, Function, Instance, State};

/// Prints it as sentences, or the same facts as JSON.
///
/// # Errors
/// When no agent answers at `admin`, or it does not know the function.
pub fn print(admin: &str, name: &str, json: bool) -> anyhow::Result<()> {
    let function = status::find(admin, name)?;
    let starts: Vec<Start> = status::get_json(admin, "/api/v1/starts")?;
    let last_start = starts.into_iter().rfind(|start| start.function == name);
    let explanation = Explanation::of(function, last_start);
    let text = if json { serde_json::to_string(&explanation)? + "\n" } else { explanation.text() };
    status::show(&text)?;
    Ok(())
}

/// A cold start, as far as it is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Start {
    function: String,
    instance: String,
    trigger: Trigger,
    outcome: StartOutcome,
    /// In seconds.
    stages: Stages,
}

/// What the next SYN would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Next {
    /// A parked container is let go.
    LetGo,
    /// A container is made first.
    Make,
    /// The start under way is for it too.
    Join,
    /// An instance has room for it.
    Nothing,
    /// A frozen instance is thawed.
    Thaw,
    /// It waits for room in an instance: there may be no more of them.
    WaitForRoom,
    /// It waits for an instance to go.
    WaitForEnd,
    /// It waits for the pause after a failure to be over.
    WaitForRetry,
    /// It is told at once that nobody serves it.
    TurnedAway,
    /// Nobody will serve it.
    NotServed,
}

/// Everything that is told.
#[derive(Debug, Serialize)]
struct Explanation {
    #[serde(flatten)]
    function: Function,
    why: String,
    stays: String,
    /// What keeps its instances from being frozen or stopped.
    awake: Option<String>,
    next_syn: Next,
    next_syn_text: String,
    /// Which clients that holds for.
    clients: Option<&'static str>,
    last_start: Option<Start>,
}

impl Explanation {
    fn of(function: Function, last_start: Option<Start>) -> Self {
        let next_syn = next(&function);
        Self {
            why: why(&function),
            stays: stays(&function),
            awake: awake(&function),
            next_syn,
            next_syn_text: next_text(next_syn, &function),
            clients: clients(&function, next_syn),
            last_start,
            function,
        }
    }

    fn text(&self) -> String {
        let Function { name, state, last_error, .. } = &self.function;
        let mut text = format!("{name}{} is {}: {}.\n", place(&self.function), state.as_str(), self.why);
        let tell = |text: &mut String, what: &str, said: &str| text.push_str(&format!("{what}: {said}.\n"));
        tell(&mut text, "It stays so", &self.stays);
        if let Some(awake) = &self.awake {
            tell(&mut text, "What keeps it awake", awake);
        }
        tell(&mut text, "The next SYN", &self.next_syn_text);
        if let Some(clients) = self.clients {
            tell(&mut text, "Which clients", clients);
        }
        if let Some(error) = last_error {
            tell(&mut text, "The last error", error.trim_end().trim_end_matches('.'));
        }
        for instance in &self.function.running {
            text.push_str(&instance.text());
        }
        match &self.last_start {
            Some(start) => text.push_str(&start.text()),
            None => tell(
                &mut text,
                "The last start",
                "none is remembered (the agent keeps the last 256 of all functions)",
            ),
        }
        text
    }
}

/// Address, runtime and ID, where they are known.
fn place(function: &Function) -> String {
    let id = function.id.map(|id| format!("ID {id}"));
    let known: Vec<_> =
        [function.listen.clone(), function.runtime.clone(), id].into_iter().flatten().collect();
    if known.is_empty() { String::new() } else { format!(" ({})", known.join(", ")) }
}

fn why(function: &Function) -> String {
    let parked = match function.prepared {
        0 => "no container is parked".to_owned(),
        1 => "one container is parked".to_owned(),
        count => format!("{count} containers are parked"),
    };
    match function.state {
        State::Cold => format!("no instance runs, and {parked}"),
        State::Starting if function.instances == 0 => {
            "a client or an operator has asked for it, and its container is still being made".into()
        }
        State::Starting => "an instance was let go or thawed and has not said yet that it is ready".into(),
        State::Ready => {
            let ready = function.running.iter().filter(|one| one.state == "ready").count().max(1);
            let accept = if ready == 1 { "an instance accepts" } else { "instances accept" };
            let queued = match function.queued {
                0 => String::new(),
                count => format!(", {count} of them wait"),
            };
            format!("{accept} connections{queued}, and {parked} for the next start")
        }
        State::Frozen => "nobody was connected for long enough, or an operator asked for it".into(),
        State::Stopping => "its instances were asked to go".into(),
        State::Failed if function.failed_starts == 0 => {
            "as many starts have failed in a row as `start_attempts` allows, or ended within a second".into()
        }
        State::Failed => "it could not be started, or ended within a second".into(),
        State::Off => "its `max_instances` is 0".into(),
        State::Closed => "the agent is stopping, or the function is not configured any more".into(),
        State::Unavailable => function.reason.clone().unwrap_or_else(|| "the agent's log says why".into()),
    }
}

fn stays(function: &Function) -> String {
    match function.state {
        State::Cold => "until a client connects or an operator wakes it (headstart wake)".into(),
        State::Starting if function.instances == 0 => "until the container is made, or cannot be".into(),
        State::Starting => "until it is ready or ends; it is killed after its `init_timeout`".into(),
        State::Ready => match (function.freeze_after_seconds, function.stop_after_seconds) {
            (Some(freeze), _) => format!("until nobody was connected for {freeze} s, or it is stopped"),
            (None, Some(stop)) => format!("until nobody was connected for {stop} s, or it is stopped"),
            (None, None) => {
                "until the instance ends by itself or is stopped (headstart stop): idle ones are kept".into()
            }
        },
        State::Frozen => match function.stop_after_seconds {
            Some(stop) => {
                format!("until a client connects; or until it was idle for {stop} s, then it is stopped")
            }
            None => "until a client connects".into(),
        },
        State::Stopping => "until the instances are gone; they are killed after `stop_grace`".into(),
        State::Failed => {
            format!("until the pause after the failure is over, {}", left(function.retry_in_seconds))
        }
        State::Off => "until the configuration allows instances".into(),
        State::Closed => "until its instances are gone, or another agent runs".into(),
        State::Unavailable => {
            "until the cause is gone and the configuration is read again (headstart reload)".into()
        }
    }
}

/// What keeps instances that accept from being frozen or stopped.
fn awake(function: &Function) -> Option<String> {
    let ready: Vec<_> = function.running.iter().filter(|one| one.state == "ready").collect();
    if ready.is_empty() {
        return None;
    }
    let open: u32 = ready.iter().filter_map(|one| one.open).sum();
    let silent = ready.iter().filter(|one| one.open.is_none()).count();
    let kept = ready.iter().any(|one| matches!(one.reason.as_str(), "freeze_failed"));
    let mut reasons = Vec::new();
    match open {
        0 => {}
        1 => reasons.push("one open connection".to_owned()),
        count => reasons.push(format!("{count} open connections")),
    }
    if function.queued > 0 {
        reasons.push(format!("{} connections that wait", function.queued));
    }
    if silent > 0 {
        reasons.push("it does not count its connections, so that nobody knows when it is idle".into());
    }
    if function.min_ready > 0 {
        reasons.push(format!("min_ready = {}", function.min_ready));
    }
    if kept {
        reasons.push("the last attempt to freeze it failed".into());
    }
    if function.freeze_after_seconds.is_none() && function.stop_after_seconds.is_none() {
        reasons.push("neither freeze_after nor stop_after is set".into());
    }
    if reasons.is_empty() {
        let idle = ready.iter().filter_map(|one| one.idle_seconds).fold(0.0, f64::max);
        return Some(format!("nothing: it has been idle for {idle:.1} s"));
    }
    Some(reasons.join(", "))
}

/// Whether the ready instances take one more connection.
fn has_room(function: &Function) -> bool {
    let Some(places) = function.concurrency else { return true };
    let ready = function.running.iter().filter(|one| one.state == "ready");
    let free: u32 = ready.map(|one| places.saturating_sub(one.open.unwrap_or(0))).sum();
    free > function.queued
}

fn next(function: &Function) -> Next {
    let start = if function.prepared > 0 { Next::LetGo } else { Next::Make };
    let room = function.instances < function.max_instances as usize;
    match function.state {
        State::Cold => start,
        State::Starting => Next::Join,
        State::Ready if has_room(function) => Next::Nothing,
        State::Ready if function.running.iter().any(|one| one.state == "frozen") => Next::Thaw,
        State::Ready if room => start,
        State::Ready => Next::WaitForRoom,
        State::Frozen => Next::Thaw,
        State::Stopping if room => start,
        State::Stopping => Next::WaitForEnd,
        // In a cool-down the count has begun again.
        State::Failed if function.failed_starts == 0 => Next::TurnedAway,
        State::Failed => Next::WaitForRetry,
        State::Off => Next::TurnedAway,
        State::Closed | State::Unavailable => Next::NotServed,
    }
}

fn next_text(next: Next, function: &Function) -> String {
    match next {
        Next::LetGo => "a parked container is let go at once".into(),
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
        Next::TurnedAway => format!(
            "nothing: its connection is answered by the agent ({})",
            function.overload.as_deref().unwrap_or("overload")
        ),
        Next::NotServed => "nothing: the agent does not serve this function".into(),
    }
}

/// Who may do that, and when.
fn clients(function: &Function, next: Next) -> Option<&'static str> {
    match (function.require_auth.as_deref()?, next) {
        (_, Next::NotServed | Next::TurnedAway) => None,
        ("connect", _) => Some("those with a key; SYNs of others are dropped"),
        ("wake", Next::LetGo | Next::Make | Next::Thaw) => {
            Some("those with a key; others do it a round trip later, when their connection is complete")
        }
        (_, Next::LetGo | Next::Make | Next::Thaw) => Some(
            "all; a SYN that no sensor sees, or beyond the budget of clients without a key, does it a round trip \
             later, when its connection is complete",
        ),
        _ => None,
    }
}

/// When something is tried again.
pub(crate) fn again(retry_in_seconds: Option<f64>) -> String {
    retry_in_seconds.map_or("now".to_owned(), |seconds| format!("in {seconds:.1} s"))
}

fn left(retry_in_seconds: Option<f64>) -> String {
    retry_in_seconds.map_or("which is now".to_owned(), |seconds| format!("in {seconds:.1} s"))
}

impl Instance {
    fn text(&self) -> String {
        let Self { name, state, reason, since_seconds, accepted, .. } = self;
        let open = match self.open {
            Some(open) => format!("{open} open of {accepted} accepted connections"),
            None => "it does not count connections".into(),
        };
        format!("Instance {name}: {state} for {since_seconds:.1} s ({reason}); {open}.\n")
    }
}

impl Start {
    fn text(&self) -> String {
        let Stages { total, exposed, .. } = self.stages;
        let ms =
            |seconds: Option<f64>| seconds.map_or("-".to_owned(), |seconds| format!("{:.3}", seconds * 1e3));
        let outcome = match (self.outcome, total, exposed) {
            (StartOutcome::Ready, Some(_), Some(_)) => {
                format!(
                    "ready after {} ms; a connected client waited for {} ms of them",
                    ms(total),
                    ms(exposed)
                )
            }
            (StartOutcome::Ready, ..) => "ready".into(),
            (StartOutcome::Starting, ..) => "not over yet".into(),
            (StartOutcome::Failed, ..) => "failed; a stage without a time was not reached".into(),
        };
        let mut text =
            format!("The last start ({}, asked for by {}): {outcome}.\n", self.instance, self.trigger);
        for (stage, seconds) in self.stages.named() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {stage:<18} {:>10} ms", ms(seconds));
        }
        text
    }
}

#[cfg(test)]
mod tests;
