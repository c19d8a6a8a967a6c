//! `headstart explain`: why a function is in its state, what the next SYN would do, how its last start went.
//! Only what the API knows is told.

mod next;
mod reasons;

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use self::next::Next;
pub(super) use self::next::again;
use super::arguments::FunctionArgs;
use super::output;
use crate::api::{Function, FunctionStatus, InstanceStatus, Stages, StartOutcome, Timeline, Trigger};

/// `headstart explain`.
#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    function: FunctionArgs,
    /// Print the same facts as JSON.
    #[arg(long)]
    json: bool,
}

/// Prints sentences, or the same facts as JSON.
///
/// # Errors
/// When no agent answers, or it does not know the function.
pub(super) fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let FunctionArgs { name, agent } = args.function;
    let client = agent.client();
    let function = client.function(&name)?;
    let last_start = client.starts()?.into_iter().rfind(|start| start.function == name);
    let explanation = Explanation::of(function, last_start);
    let text = if args.json { serde_json::to_string(&explanation)? + "\n" } else { explanation.text() };
    output::show(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The part of a cold start that is told.
#[derive(Debug, Serialize)]
struct LastStart {
    function: String,
    instance: String,
    trigger: Trigger,
    outcome: StartOutcome,
    /// In seconds.
    stages: Stages,
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
    /// For which clients that is true.
    clients: Option<&'static str>,
    last_start: Option<LastStart>,
}

impl Explanation {
    fn of(function: Function, last_start: Option<Timeline>) -> Self {
        let last_start = last_start.map(|start| {
            let Timeline { function, instance, trigger, outcome, stages, .. } = start;
            LastStart { function, instance, trigger, outcome, stages }
        });
        match &function {
            Function::Served(served) => {
                let next_syn = next::next(served);
                Self {
                    why: reasons::why(served),
                    stays: reasons::stays(served),
                    awake: reasons::awake(served),
                    next_syn,
                    next_syn_text: next::text(next_syn, served),
                    clients: next::clients(served, next_syn),
                    last_start,
                    function,
                }
            }
            Function::Unavailable(unavailable) => Self {
                why: unavailable.reason.clone(),
                stays: "until the cause is gone: the agent tries again, every 30 s at the latest".into(),
                awake: None,
                next_syn: Next::NotServed,
                next_syn_text: next::NOT_SERVED.into(),
                clients: None,
                last_start,
                function,
            },
        }
    }

    fn text(&self) -> String {
        let mut text = match &self.function {
            Function::Served(served) => {
                format!("{} ({}) is {}: {}.\n", served.name, place(served), served.state.as_str(), self.why)
            }
            Function::Unavailable(unavailable) => {
                format!("{} is unavailable: {}.\n", unavailable.name, self.why)
            }
        };
        let tell = |text: &mut String, what: &str, fact: &str| text.push_str(&format!("{what}: {fact}.\n"));
        tell(&mut text, "It stays so", &self.stays);
        if let Some(awake) = &self.awake {
            tell(&mut text, "What keeps it awake", awake);
        }
        tell(&mut text, "The next SYN", &self.next_syn_text);
        if let Some(clients) = self.clients {
            tell(&mut text, "Which clients", clients);
        }
        if let Function::Served(served) = &self.function {
            if let Some(error) = &served.last_error {
                tell(&mut text, "The last error", error.trim_end().trim_end_matches('.'));
            }
            for instance in &served.running {
                text.push_str(&self::instance(instance));
            }
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

/// Address, runtime and ID.
fn place(function: &FunctionStatus) -> String {
    let id = function.id.map(|id| format!(", ID {id}")).unwrap_or_default();
    format!("{}, {}{id}", function.listen, function.runtime)
}

fn instance(instance: &InstanceStatus) -> String {
    let InstanceStatus { name, state, reason, since_seconds, accepted, open, .. } = instance;
    let open = match open {
        Some(open) => format!("{open} open of {accepted} accepted connections"),
        None => "it does not count connections".into(),
    };
    format!("Instance {name}: {state} for {since_seconds:.1} s ({reason}); {open}.\n")
}

impl LastStart {
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
