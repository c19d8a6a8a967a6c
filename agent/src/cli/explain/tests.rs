//! What is said of each state.

use serde_json::{Value, json};

use super::*;
use crate::api::example;

/// An explanation of what the API says; `with` changes a cold function with one parked container.
fn explain(with: &Value, start: Option<Value>) -> Explanation {
    let start = start.map(|start| serde_json::from_value(start).unwrap());
    Explanation::of(example(with), start)
}

fn ready(open: Option<u32>) -> Value {
    let idle = (open == Some(0)).then_some(1.5);
    json!({
        "name": "orders-1", "state": "ready", "reason": "initialised", "since_seconds": 2.5, "open": open,
        "accepted": 9, "idle_seconds": idle,
    })
}

/// An instance whose processes are stopped.
fn asleep(state: &str, reason: &str) -> Value {
    let memory = json!({ "resident_bytes": 3 << 20, "swapped_bytes": 100 << 20 });
    json!({
        "name": "orders-1", "state": state, "reason": reason, "since_seconds": 2.5, "open": 0, "accepted": 9,
        "idle_seconds": null, "memory": memory,
    })
}

#[test]
fn every_state_says_why_how_long_and_what_a_syn_would_do() {
    for (with, next, sentences) in [
        (
            json!({}),
            Next::Release,
            [
                "orders (0.0.0.0:8081, oci) is cold: no instance runs, and one container is parked.",
                "It stays so: until a client connects or an operator wakes it (headstart wake).",
                "The next SYN: a parked container is released at once.",
            ],
        ),
        (
            json!({ "prepared": 0, "id": 7, "last_error": "an old one" }),
            Next::Make,
            [
                "orders (0.0.0.0:8081, oci, ID 7) is cold: no instance runs, and no container is parked.",
                "It stays so: until a client connects",
                "The next SYN: a container has to be made first: none is parked.",
            ],
        ),
        (
            json!({ "prepared": 0, "preparing": 1 }),
            Next::Make,
            ["is cold", "until a client connects", "none is parked, and one is being made."],
        ),
        (
            json!({ "prepared": 0, "last_error": "no such image", "retry_in_seconds": 2.0 }),
            Next::Make,
            ["is cold", "making the last one has failed.", "The last error: no such image."],
        ),
        (
            json!({ "state": "starting", "prepared": 0 }),
            Next::Join,
            ["its container is still being made.", "until the container is made", "nothing more"],
        ),
        (
            json!({ "state": "starting", "instances": 1 }),
            Next::Join,
            ["has not reported yet that it is ready.", "`init_timeout`", "nothing more"],
        ),
        (
            json!({ "state": "ready", "instances": 1, "prepared": 2, "running": [ready(Some(0))] }),
            Next::Nothing,
            ["2 containers are parked for the next start.", "headstart stop", "an instance accepts already."],
        ),
        (
            json!({ "state": "ready", "instances": 1, "freeze_after_seconds": 60.0, "running": [ready(Some(3))] }),
            Next::Nothing,
            [
                "until no client was connected for 60 s",
                "What keeps it awake: 3 open connections.",
                "Instance orders-1: ready for 2.5 s (initialised); 3 open of 9 accepted connections.",
            ],
        ),
        (
            json!({
                "state": "ready", "instances": 1, "concurrency": 1, "queued": 2, "stop_after_seconds": 900.0,
                "running": [ready(Some(1))],
            }),
            Next::Release,
            ["2 of them wait", "one open connection, 2 connections that wait.", "is released at once."],
        ),
        (
            json!({
                "state": "ready", "instances": 2, "concurrency": 1, "min_ready": 1,
                "running": [ready(Some(1)), ready(Some(1))],
            }),
            Next::WaitForRoom,
            [
                "instances accept",
                "2 open connections, min_ready = 1, neither",
                "one of the 2 instances, all that",
            ],
        ),
        (
            json!({ "state": "ready", "instances": 1, "stop_after_seconds": 900.0, "running": [ready(None)] }),
            Next::Nothing,
            ["an instance accepts", "does not count its connections", "it does not count connections."],
        ),
        (
            json!({ "state": "ready", "instances": 1, "stop_after_seconds": 900.0, "running": [ready(Some(0))] }),
            Next::Nothing,
            ["for 900 s, or it is stopped.", "nothing: it has been idle for 1.5 s.", "0 open of 9"],
        ),
        (
            json!({ "state": "frozen", "instances": 1, "stop_after_seconds": 900.0 }),
            Next::Thaw,
            ["no client was connected for long enough", "idle for 900 s", "thawed at once."],
        ),
        (
            json!({ "state": "frozen", "instances": 1, "hibernate_after_seconds": 60.0, "stop_after_seconds": 900.0 }),
            Next::Thaw,
            ["no client was connected", "idle for 60 s, then its memory goes to swap.", "thawed at once."],
        ),
        (
            json!({
                "state": "frozen", "instances": 1, "hibernate_after_seconds": 60.0, "stop_after_seconds": 900.0,
                "running": [asleep("frozen", "hibernate_failed")],
            }),
            Next::Thaw,
            [
                "its memory could not be written to swap.",
                "idle for 900 s, then it is stopped.",
                "thawed at once.",
            ],
        ),
        (
            json!({ "state": "hibernated", "instances": 1, "running": [asleep("hibernated", "idle")] }),
            Next::Thaw,
            [
                "100 MiB of its memory are in swap, 3 MiB are resident.",
                "until a client connects.",
                "thawed at once.",
            ],
        ),
        (
            json!({ "state": "stopping", "instances": 1 }),
            Next::Release,
            ["were asked to stop.", "`stop_grace`", "released at once."],
        ),
        (
            json!({ "state": "stopping", "instances": 2 }),
            Next::WaitForEnd,
            ["were asked to stop.", "`stop_grace`", "waits until an instance is gone"],
        ),
        (
            json!({ "state": "off", "max_instances": 0, "overload": "http-429" }),
            Next::TurnedAway,
            ["`max_instances` is 0.", "until the configuration", "answered by the agent (http-429)."],
        ),
        (
            json!({ "state": "failed", "failed_starts": 0, "retry_in_seconds": 20.0, "overload": "reset" }),
            Next::TurnedAway,
            ["`start_attempts`", "over, in 20.0 s.", "answered by the agent (reset)."],
        ),
        (
            json!({ "state": "failed", "failed_starts": 1, "retry_in_seconds": 3.24, "last_error": "exit code 3" }),
            Next::WaitForRetry,
            [
                "the pause after the failure is over, in 3.2 s.",
                "is tried again in 3.2 s.",
                "error: exit code 3.",
            ],
        ),
        (
            json!({ "state": "failed", "failed_starts": 1 }),
            Next::WaitForRetry,
            ["could not be started", "which is now.", "is tried again now."],
        ),
        (
            json!({ "state": "closed" }),
            Next::NotServed,
            ["the agent is stopping, or", "another agent", "nothing:"],
        ),
    ] {
        let explanation = explain(&with, None);
        assert_eq!(explanation.next_syn, next, "{with}");
        let text = explanation.text();
        for sentence in sentences {
            assert!(text.contains(sentence), "{with} lacks {sentence:?}:\n{text}");
        }
        assert!(text.contains("The last start: none is remembered"), "{text}");
    }
}

#[test]
fn what_is_not_served_says_why() {
    let function = json!({ "name": "orders", "state": "unavailable", "reason": "port 80 is in use" });
    let text = Explanation::of(serde_json::from_value(function).unwrap(), None).text();
    assert!(text.starts_with("orders is unavailable: port 80 is in use.\n"), "{text}");
    assert!(text.contains("nothing: the agent does not serve this function."), "{text}");
}

#[test]
fn which_clients_may_wake_it_is_said_where_it_matters() {
    for (auth, state, said) in [
        ("no", "cold", Some("beyond the budget")),
        ("no", "ready", None),
        ("wake", "cold", Some("others do it a round trip later")),
        ("wake", "ready", None),
        ("connect", "cold", Some("SYNs of others are dropped")),
        ("connect", "ready", Some("SYNs of others are dropped")),
        ("connect", "closed", None),
    ] {
        let explanation = explain(&json!({ "require_auth": auth, "state": state }), None);
        match (explanation.clients, said) {
            (Some(clients), Some(said)) => assert!(clients.contains(said), "{auth} {state}: {clients}"),
            (clients, said) => assert_eq!(clients, said, "{auth} {state}"),
        }
    }
}

#[test]
fn the_last_start_is_told_stage_by_stage_as_far_as_it_came() {
    let mut start = json!({
        "function": "orders", "instance": "orders-3", "runtime": "oci", "trigger": "syn", "outcome": "ready",
        "syn_ns": 1, "event_ns": 2, "start_ns": 3,
        "stages": { "syn_to_event": 0.000_075, "init": 0.002, "total": 0.0043, "hidden": 0.0043, "exposed": 0.0 },
    });
    let text = explain(&json!({}), Some(start.clone())).text();
    for said in [
        "The last start (orders-3, asked for by syn): ready after 4.300 ms; a connected client waited for 0.000 ms",
        "  syn_to_event            0.075 ms\n",
        "  init                    2.000 ms\n",
        "  first_response              - ms\n",
    ] {
        assert!(text.contains(said), "{said:?}:\n{text}");
    }
    start["outcome"] = "failed".into();
    let text = explain(&json!({}), Some(start)).text();
    assert!(text.contains("asked for by syn): failed; a stage without a time was not reached.\n"), "{text}");
}
