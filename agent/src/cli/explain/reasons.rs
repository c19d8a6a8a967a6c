//! Why a function is in its state, how long it stays so, and what keeps it awake.

use crate::api::{FailureCause, FunctionStatus, FunctionSummary};

pub(super) fn why(function: &FunctionStatus) -> String {
    let parked = match function.prepared {
        0 => "no container is parked".to_owned(),
        1 => "one container is parked".to_owned(),
        count => format!("{count} containers are parked"),
    };
    match function.state {
        FunctionSummary::Cold => format!("no instance runs, and {parked}"),
        FunctionSummary::Starting if function.instances == 0 => {
            "a client or an operator has asked for it, and its container is still being made".into()
        }
        FunctionSummary::Starting => {
            "an instance was released or thawed and has not reported yet that it is ready".into()
        }
        FunctionSummary::Ready => {
            let ready = function.running.iter().filter(|one| one.state == "ready").count().max(1);
            let accept = if ready == 1 { "an instance accepts" } else { "instances accept" };
            let queued = match function.queued {
                0 => String::new(),
                count => format!(", {count} of them wait"),
            };
            format!("{accept} connections{queued}, and {parked} for the next start")
        }
        FunctionSummary::Frozen if function.running.iter().any(|one| one.reason == "hibernate_failed") => {
            "no client was connected for long enough, but its memory could not be written to swap".into()
        }
        FunctionSummary::Frozen => {
            "no client was connected for long enough, or an operator asked for it".into()
        }
        FunctionSummary::Hibernated => {
            let memory = function.running.iter().filter_map(|one| one.memory);
            let (resident, swapped) = memory.fold((0, 0), |(resident, swapped), memory| {
                (resident + memory.resident_bytes, swapped + memory.swapped_bytes)
            });
            format!(
                "no client was connected for long enough: {} MiB of its memory are in swap, {} MiB are resident",
                swapped >> 20,
                resident >> 20
            )
        }
        FunctionSummary::Stopping => "its instances were asked to stop".into(),
        FunctionSummary::Failed if function.failure == Some(FailureCause::Backend) => {
            "it could not be started, because a backend of it cannot be reached or has no connection left"
                .into()
        }
        FunctionSummary::Failed if function.failure == Some(FailureCause::Node) => {
            "it could not be started, because of its node: the runtime, the disk or a limit".into()
        }
        FunctionSummary::Failed if function.failed_starts == 0 => {
            "it fails to start, also after `start_attempts` attempts in a row, or ends within a second".into()
        }
        FunctionSummary::Failed => "it could not be started, or ended within a second".into(),
        FunctionSummary::Off => "its `max_instances` is 0".into(),
        FunctionSummary::Closed => "the agent is stopping, or the function is no longer configured".into(),
    }
}

pub(super) fn stays(function: &FunctionStatus) -> String {
    match function.state {
        FunctionSummary::Cold => "until a client connects or an operator wakes it (headstart wake)".into(),
        FunctionSummary::Starting if function.instances == 0 => {
            "until the container is made, or cannot be".into()
        }
        FunctionSummary::Starting => {
            "until it is ready or ends; it is killed after its `init_timeout`".into()
        }
        FunctionSummary::Ready => match (function.freeze_after_seconds, function.stop_after_seconds) {
            (Some(freeze), _) => format!("until no client was connected for {freeze} s, or it is stopped"),
            (None, Some(stop)) => format!("until no client was connected for {stop} s, or it is stopped"),
            (None, None) => {
                "until the instance ends by itself or is stopped (headstart stop): idle ones are kept".into()
            }
        },
        FunctionSummary::Frozen | FunctionSummary::Hibernated => {
            let frozen = function.state == FunctionSummary::Frozen;
            let failed = function.running.iter().any(|one| one.reason == "hibernate_failed");
            let hibernate = function.hibernate_after_seconds.filter(|_| frozen && !failed);
            let stop = function.stop_after_seconds.filter(|_| function.instances > function.standby as usize);
            let then = match (hibernate, stop) {
                (Some(after), _) => {
                    format!("; or until it was idle for {after} s, then its memory goes to swap")
                }
                (None, Some(stop)) => format!("; or until it was idle for {stop} s, then it is stopped"),
                (None, None) => String::new(),
            };
            format!("until a client connects{then}")
        }
        FunctionSummary::Stopping => {
            "until the instances are gone; they are killed after `stop_grace`".into()
        }
        FunctionSummary::Failed => {
            format!("until the pause after the failure is over, {}", left(function.retry_in_seconds))
        }
        FunctionSummary::Off => "until the configuration allows instances".into(),
        FunctionSummary::Closed => "until its instances are gone, or another agent runs".into(),
    }
}

/// What keeps instances that accept from being frozen or stopped.
pub(super) fn awake(function: &FunctionStatus) -> Option<String> {
    let ready: Vec<_> = function.running.iter().filter(|one| one.state == "ready").collect();
    if ready.is_empty() {
        return None;
    }
    let open: u32 = ready.iter().filter_map(|one| one.open).sum();
    let silent = ready.iter().filter(|one| one.open.is_none()).count();
    let kept = ready.iter().any(|one| one.reason == "freeze_failed");
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
        reasons.push(
            "it does not count its connections, so that the agent does not know when it is idle".into(),
        );
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

fn left(retry_in_seconds: Option<f64>) -> String {
    retry_in_seconds.map_or("which is now".to_owned(), |seconds| format!("in {seconds:.1} s"))
}
