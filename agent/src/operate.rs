//! `headstart wake`, `headstart freeze` and `headstart stop`: what operators ask for, by the API.

use anyhow::bail;

use crate::node::Operation;
use crate::status::{self, Function, Reply, State};

/// Asks the agent for an operation and says what comes of it.
///
/// # Errors
/// When no agent answers at `admin`, it does not serve the function, or it refuses.
pub fn ask(admin: &str, name: &str, operation: Operation) -> anyhow::Result<()> {
    let function = status::find(admin, name)?;
    if function.state == State::Unavailable {
        let reason = function.reason.as_deref().unwrap_or("the agent's log says why");
        bail!("{name} is configured and not served: {reason}");
    }
    let word = match operation {
        Operation::Wake => "wake",
        Operation::Freeze => "freeze",
        Operation::Stop => "stop",
    };
    match status::request(admin, "POST", &format!("/api/v1/functions/{name}/{word}"))? {
        Reply { status: 202, .. } => {}
        Reply { status, body } => bail!("the agent does not {word} {name} ({status}): {}", body.trim()),
    }
    status::show(&format!("{name}: {}\n", outcome(operation, &function)))?;
    Ok(())
}

/// What an accepted request does to a function that was in this state before.
fn outcome(operation: Operation, function: &Function) -> String {
    match (operation, function.state) {
        (_, State::Closed) => "its instances are being stopped: so is the agent, or the function is not configured any more".into(),
        (Operation::Wake, State::Cold | State::Unavailable) => "it is being started".into(),
        (Operation::Wake, State::Starting) => "a start is under way already".into(),
        (Operation::Wake, State::Ready) => "an instance runs already".into(),
        (Operation::Wake, State::Frozen) => "an instance is being thawed".into(),
        (Operation::Wake, State::Stopping) if function.instances < function.max_instances as usize => {
            "it is being started".into()
        }
        (Operation::Wake, State::Stopping) => "it is started when an instance of it is gone: all there may be are \
             being stopped"
            .into(),
        (Operation::Wake, State::Failed) => {
            let again = crate::explain::again(function.retry_in_seconds);
            format!("its starts fail, and none is allowed before a pause is over: wake it again {again}")
        }
        (Operation::Wake, State::Off) => "nothing is started: its max_instances is 0".into(),
        (Operation::Freeze, State::Ready) => {
            "its instances are being frozen, unless somebody is connected to them (headstart explain says more)"
                .into()
        }
        (Operation::Freeze, State::Frozen) => "it is frozen already".into(),
        (Operation::Freeze, State::Starting) => "nothing is frozen: it is not ready yet".into(),
        (Operation::Freeze, _) => "nothing is frozen: no instance accepts connections".into(),
        (Operation::Stop, State::Starting | State::Ready | State::Frozen) if function.instances > 0 => {
            "its instances are being stopped".into()
        }
        (Operation::Stop, State::Starting) => "nothing is stopped: its container is still being made".into(),
        (Operation::Stop, State::Stopping) => "its instances are being stopped already".into(),
        (Operation::Stop, _) => "nothing is stopped: no instance runs".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_request_says_what_it_does_in_each_state() {
        for (operation, state, instances, said) in [
            (Operation::Wake, "cold", 0, "is being started"),
            (Operation::Wake, "starting", 1, "under way already"),
            (Operation::Wake, "ready", 1, "runs already"),
            (Operation::Wake, "stopping", 1, "is being started"),
            (Operation::Wake, "stopping", 2, "when an instance of it is gone"),
            (Operation::Wake, "frozen", 1, "being thawed"),
            (Operation::Wake, "off", 0, "max_instances is 0"),
            (Operation::Freeze, "ready", 1, "being frozen, unless"),
            (Operation::Freeze, "frozen", 1, "frozen already"),
            (Operation::Freeze, "starting", 1, "not ready yet"),
            (Operation::Freeze, "cold", 0, "no instance accepts"),
            (Operation::Freeze, "closed", 0, "not configured any more"),
            (Operation::Wake, "failed", 0, "wake it again in 1.5 s"),
            (Operation::Wake, "closed", 0, "not configured any more"),
            (Operation::Stop, "cold", 0, "no instance runs"),
            (Operation::Stop, "starting", 0, "still being made"),
            (Operation::Stop, "starting", 1, "instances are being stopped"),
            (Operation::Stop, "ready", 1, "instances are being stopped"),
            (Operation::Stop, "stopping", 1, "stopped already"),
            (Operation::Stop, "failed", 0, "no instance runs"),
        ] {
            let retry = (state == "failed").then_some(1.5);
            let function = serde_json::json!({
                "name": "orders", "state": state, "instances": instances, "max_instances": 2,
                "retry_in_seconds": retry,
            });
            let text = outcome(operation, &serde_json::from_value(function).unwrap());
            assert!(text.contains(said), "{operation:?} {state}: {text}");
        }
    }
}
