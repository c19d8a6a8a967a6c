//! `headstart explain`: why a function is in its state, what the next SYN would do, how its last start went.
//! Only what the API knows is told.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::event::Trigger;
use crate::measure::{Outcome, Stages};
use crate::status::{self, Function, State};

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
    outcome: Outcome,
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
    /// An instance accepts already.
    Nothing,
    /// It waits for the instance to go.
    WaitForEnd,
    /// It waits for the pause after a failure to be over.
    WaitForRetry,
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
        let mut tell = |what: &str, said: &str| text.push_str(&format!("{what}: {said}.\n"));
        tell("It stays so", &self.stays);
        tell("The next SYN", &self.next_syn_text);
        if let Some(clients) = self.clients {
            tell("Which clients", clients);
        }
        if let Some(error) = last_error {
            tell("The last error", error.trim_end().trim_end_matches('.'));
        }
        match &self.last_start {
            Some(start) => text.push_str(&start.text()),
            None => {
                tell("The last start", "none is remembered (the agent keeps the last 256 of all functions)")
            }
        }
        text
    }
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Closed => "closed",
            Self::Unavailable => "unavailable",
        }
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
        State::Starting => "its container was let go and has not said yet that it is ready".into(),
        State::Ready => format!("an instance accepts connections, and {parked} for the next start"),
        State::Stopping => "its instance was asked to go".into(),
        State::Failed => "it could not be started, or ended within a second".into(),
        State::Closed => "the agent is stopping".into(),
        State::Unavailable => function.reason.clone().unwrap_or_else(|| "the agent's log says why".into()),
    }
}

fn stays(function: &Function) -> String {
    match function.state {
        State::Cold => "until a client connects or an operator wakes it (headstart wake)".into(),
        State::Starting if function.instances == 0 => "until the container is made, or cannot be".into(),
        State::Starting => "until it is ready or ends; it is killed after its `init_timeout`".into(),
        State::Ready => {
            "until the instance ends by itself or is stopped (headstart stop): idle ones are kept".into()
        }
        State::Stopping => "until the instance is gone; it is killed after its `stop_grace`".into(),
        State::Failed => {
            format!("until the pause after the failure is over, {}", left(function.retry_in_seconds))
        }
        State::Closed => "until another agent runs".into(),
        State::Unavailable => "until the cause is gone and the agent has been restarted".into(),
    }
}

fn next(function: &Function) -> Next {
    match function.state {
        State::Cold if function.prepared > 0 => Next::LetGo,
        State::Cold => Next::Make,
        State::Starting => Next::Join,
        State::Ready => Next::Nothing,
        State::Stopping => Next::WaitForEnd,
        State::Failed => Next::WaitForRetry,
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
        Next::Join => "nothing more: the start under way is for its connection too".into(),
        Next::Nothing => "nothing: an instance accepts already".into(),
        Next::WaitForEnd => {
            "nothing yet: its connection waits until the instance is gone, and starts the next".into()
        }
        Next::WaitForRetry => format!(
            "nothing yet: its connection waits, and the function is tried again {}",
            again(function.retry_in_seconds)
        ),
        Next::NotServed => "nothing: the agent does not serve this function".into(),
    }
}

/// Who may do that, and when.
fn clients(function: &Function, next: Next) -> Option<&'static str> {
    match (function.require_auth.as_deref()?, next) {
        (_, Next::NotServed) => None,
        ("connect", _) => Some("those with a key; SYNs of others are dropped"),
        ("wake", Next::LetGo | Next::Make) => {
            Some("those with a key; others do it a round trip later, when their connection is complete")
        }
        (_, Next::LetGo | Next::Make) => Some(
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

impl Start {
    fn text(&self) -> String {
        let Stages { total, exposed, .. } = self.stages;
        let ms =
            |seconds: Option<f64>| seconds.map_or("-".to_owned(), |seconds| format!("{:.3}", seconds * 1e3));
        let outcome = match (self.outcome, total, exposed) {
            (Outcome::Ready, Some(_), Some(_)) => {
                format!(
                    "ready after {} ms; a connected client waited for {} ms of them",
                    ms(total),
                    ms(exposed)
                )
            }
            (Outcome::Ready, ..) => "ready".into(),
            (Outcome::Starting, ..) => "not over yet".into(),
            (Outcome::Failed, ..) => "failed; a stage without a time was not reached".into(),
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
