//! `headstart wake`, `headstart freeze` and `headstart stop`: what operators ask for, by the API.

use std::process::ExitCode;

use super::arguments::FunctionArgs;
use super::output;
use crate::api::{FunctionStatus, FunctionSummary, Operation};

/// Asks the agent for an operation and prints what comes of it.
///
/// # Errors
/// When no agent answers, it does not serve the function, or it refuses.
pub(super) fn run(args: FunctionArgs, operation: Operation) -> anyhow::Result<ExitCode> {
    let FunctionArgs { name, agent } = args;
    let client = agent.client();
    let function = client.function(&name)?.into_served()?;
    client.operate(&name, operation)?;
    output::show(&format!("{name}: {}\n", outcome(operation, &function)))?;
    Ok(ExitCode::SUCCESS)
}

/// What an accepted request does to a function that was in this state before.
fn outcome(operation: Operation, function: &FunctionStatus) -> String {
    match (operation, function.state) {
        (_, FunctionSummary::Closed) => "its instances are being stopped: the agent is stopping, or the function is no longer configured".into(),
        (Operation::Wake, FunctionSummary::Cold) => "it is being started".into(),
        (Operation::Wake, FunctionSummary::Starting) => "a start is under way already".into(),
        (Operation::Wake, FunctionSummary::Ready) => "an instance runs already".into(),
        (Operation::Wake, FunctionSummary::Frozen | FunctionSummary::Hibernated) => "an instance is being thawed".into(),
        (Operation::Wake, FunctionSummary::Stopping) if function.instances < function.max_instances as usize => {
            "it is being started".into()
        }
        (Operation::Wake, FunctionSummary::Stopping) => "it is started when one of its instances is gone: all that `max_instances` allows are \
             being stopped"
            .into(),
        (Operation::Wake, FunctionSummary::Failed) => {
            let again = super::explain::again(function.retry_in_seconds);
            format!("its starts fail, and none is allowed before a pause is over: wake it again {again}")
        }
        (Operation::Wake, FunctionSummary::Off) => "nothing is started: its max_instances is 0".into(),
        (Operation::Freeze, FunctionSummary::Ready) => {
            "its instances are being frozen, unless a client is connected to them (headstart explain says more)"
                .into()
        }
        (Operation::Freeze, FunctionSummary::Frozen | FunctionSummary::Hibernated) => "it is frozen already".into(),
        (Operation::Freeze, FunctionSummary::Starting) => "nothing is frozen: it is not ready yet".into(),
        (Operation::Freeze, _) => "nothing is frozen: no instance accepts connections".into(),
        (Operation::Stop, FunctionSummary::Starting | FunctionSummary::Ready | FunctionSummary::Frozen | FunctionSummary::Hibernated) if function.instances > 0 => {
            "its instances are being stopped".into()
        }
        (Operation::Stop, FunctionSummary::Starting) => "nothing is stopped: its container is still being made".into(),
        (Operation::Stop, FunctionSummary::Stopping) => "its instances are being stopped already".into(),
        (Operation::Stop, _) => "nothing is stopped: no instance runs".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::example;

    #[test]
    fn an_accepted_request_says_what_it_does_in_each_state() {
        for (operation, state, instances, said) in [
            (Operation::Wake, "cold", 0, "is being started"),
            (Operation::Wake, "starting", 1, "under way already"),
            (Operation::Wake, "ready", 1, "runs already"),
            (Operation::Wake, "stopping", 1, "is being started"),
            (Operation::Wake, "stopping", 2, "when one of its instances is gone"),
            (Operation::Wake, "frozen", 1, "being thawed"),
            (Operation::Wake, "hibernated", 1, "being thawed"),
            (Operation::Wake, "off", 0, "max_instances is 0"),
            (Operation::Freeze, "ready", 1, "being frozen, unless"),
            (Operation::Freeze, "frozen", 1, "frozen already"),
            (Operation::Freeze, "starting", 1, "not ready yet"),
            (Operation::Freeze, "cold", 0, "no instance accepts"),
            (Operation::Freeze, "closed", 0, "no longer configured"),
            (Operation::Wake, "failed", 0, "wake it again in 1.5 s"),
            (Operation::Wake, "closed", 0, "no longer configured"),
            (Operation::Stop, "cold", 0, "no instance runs"),
            (Operation::Stop, "starting", 0, "still being made"),
            (Operation::Stop, "starting", 1, "instances are being stopped"),
            (Operation::Stop, "ready", 1, "instances are being stopped"),
            (Operation::Stop, "stopping", 1, "stopped already"),
            (Operation::Stop, "failed", 0, "no instance runs"),
        ] {
            let retry = (state == "failed").then_some(1.5);
            let function = example(&serde_json::json!({
                "state": state, "instances": instances, "max_instances": 2, "retry_in_seconds": retry,
            }));
            let text = outcome(operation, &function.into_served().unwrap());
            assert!(text.contains(said), "{operation:?} {state}: {text}");
        }
    }
}
