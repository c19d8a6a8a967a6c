//! `adopt`: takes over the running instances of an earlier agent.
//!
//! The agent can take an instance over if three things are still there: the instance's note, and its control socket and
//! its activity page, which the service manager has stored. Nothing is lost then: messages of the instance wait in the
//! socket. An instance that lacks one of the three, or whose configuration has changed, is a survivor: it serves until it
//! is asked to stop.

use headstart_wire::Activity;

use crate::manager::ServiceManager;
use crate::node::{AdoptedInstance, Service};
use crate::start::{Note, Survivors};

/// Takes over what can be taken over, and leaves the rest to `survivors`. A function's number is its place in `services`.
pub async fn adopt(
    survivors: &mut Survivors,
    manager: &mut ServiceManager,
    services: &[Service],
) -> Vec<AdoptedInstance> {
    let mut adopted = Vec::new();
    for (instance, note) in survivors.notes() {
        let Some((function, service)) = (0..).zip(services).find(|(_, service)| fits(service, &note)) else {
            tracing::info!(instance, "not taken over: its function has changed, or is no longer configured");
            continue;
        };
        let Some((control, page)) = manager.take_instance(&instance) else {
            tracing::info!(instance, "not taken over: the service manager has not stored its descriptors");
            continue;
        };
        let activity = match page.try_clone().and_then(Activity::adopt) {
            Ok(activity) => activity,
            Err(error) => {
                tracing::warn!(instance, "not taken over: its activity page cannot be mapped: {error}");
                continue;
            }
        };
        match service.runtime.adopt(&instance).await {
            Ok(process) => {
                // From here on it is this agent's: the survivors must not read its output.
                survivors.keep(&instance);
                tracing::info!(instance, "taken over from an earlier agent");
                adopted.push(AdoptedInstance { function, instance, process, control, page, activity, note });
            }
            Err(error) => tracing::error!(instance, reason = error.reason(), "not taken over: {error}"),
        }
    }
    adopted
}

fn fits(service: &Service, note: &Note) -> bool {
    service.name == note.function && service.fingerprint == note.fingerprint
}
