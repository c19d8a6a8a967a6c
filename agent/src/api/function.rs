//! Functions and instances, as the API shows them.

use std::borrow::Cow;
use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::log;

use crate::event::FailureCause;

/// A configured function.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Function {
    /// The agent serves it.
    Served(Box<FunctionStatus>),
    /// The agent does not serve it.
    Unavailable(Unavailable),
}

impl Function {
    /// Configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Served(function) => &function.name,
            Self::Unavailable(function) => &function.name,
        }
    }

    /// The function, if it is served.
    ///
    /// # Errors
    /// Why it is not served.
    pub fn into_served(self) -> Result<FunctionStatus, Unavailable> {
        match self {
            Self::Served(function) => Ok(*function),
            Self::Unavailable(function) => Err(function),
        }
    }
}

/// Escapes control characters: clients show the text on a terminal, and functions supply a part of it.
fn printable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.map(|text| log::printable(&text).into_owned()))
}

/// A configured function that cannot be served, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{name} is configured and not served: {reason}")]
pub struct Unavailable {
    /// Configured name.
    pub name: String,
    /// What is wrong and what to do.
    pub reason: String,
    state: UnavailableState,
}

impl Unavailable {
    /// A function that is not served for this reason.
    #[must_use]
    pub fn new(name: String, reason: String) -> Self {
        Self { name, reason, state: UnavailableState::Unavailable }
    }
}

/// The one state of a function that is not served. It tells the two kinds of [`Function`] apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UnavailableState {
    Unavailable,
}

/// A function that is served.
///
/// A client reads what an agent of an earlier version leaves out as 0 or as nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FunctionStatus {
    /// Configured name.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What clients may put into their SYN to name it.
    pub id: Option<u32>,
    /// What clients need a key for: `no`, `wake` or `connect`.
    pub require_auth: Cow<'static, str>,
    /// The runtime, as the configuration names it.
    pub runtime: Cow<'static, str>,
    /// The function as a whole.
    pub state: FunctionSummary,
    /// Parked containers.
    #[serde(default)]
    pub prepared: usize,
    /// Containers that are being created.
    #[serde(default)]
    pub preparing: u32,
    /// Instances that were released and are not known to be gone.
    #[serde(default)]
    pub instances: usize,
    /// The same, one by one.
    #[serde(default)]
    pub running: Vec<InstanceStatus>,
    /// Connections that wait in the accept queue.
    #[serde(default)]
    pub queued: u32,
    /// Ended or discarded containers whose traces are being removed.
    #[serde(default)]
    pub removing: usize,
    /// What went wrong last, with a container or an instance, until one is ready.
    #[serde(default, deserialize_with = "printable")]
    pub last_error: Option<String>,
    /// Starts that have failed in a row; 0 again in a cool-down.
    #[serde(default)]
    pub failed_starts: u32,
    /// Whose failure the last failed start, or else the last failed container, is; nothing when none has failed since the last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureCause>,
    /// Until a start, or a container, that failed is tried again.
    pub retry_in_seconds: Option<f64>,
    /// Connections that one instance serves at a time; `None`: all.
    pub concurrency: Option<u32>,
    /// Instances that are kept ready without any demand.
    #[serde(default)]
    pub min_ready: u32,
    /// Instances that are kept initialised without any demand, and sleep; left out where none are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub standby: u32,
    /// Most instances at a time.
    #[serde(default)]
    pub max_instances: u32,
    /// How clients are answered that no instance will serve: `http-503`, `http-429` or `reset`.
    #[serde(default)]
    pub overload: Cow<'static, str>,
    /// Idle time after which an instance is frozen.
    pub freeze_after_seconds: Option<f64>,
    /// Idle time after which a frozen instance is hibernated; left out where it never is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernate_after_seconds: Option<f64>,
    /// Idle time after which an instance is stopped.
    pub stop_after_seconds: Option<f64>,
}

/// The state of a function as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FunctionSummary {
    /// No instance; demand starts one.
    Cold,
    /// Instances are on their way.
    Starting,
    /// An instance accepts connections.
    Ready,
    /// All instances are frozen; demand thaws one.
    Frozen,
    /// The same, and their memory is in swap.
    Hibernated,
    /// All instances were asked to stop.
    Stopping,
    /// Starts fail; the next is tried later.
    Failed,
    /// `max_instances` is 0.
    Off,
    /// The agent is stopping, or the function was removed.
    Closed,
}

impl FunctionSummary {
    /// Its name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Frozen => "frozen",
            Self::Hibernated => "hibernated",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Off => "off",
            Self::Closed => "closed",
        }
    }
}

/// An instance of a function.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// The container's name.
    pub name: String,
    /// See `State` of the decision.
    pub state: Cow<'static, str>,
    /// Why it is in this state: see `DecisionReason`.
    pub reason: Cow<'static, str>,
    /// How long it has been in it.
    pub since_seconds: f64,
    /// Connections that are open; `None` when it does not count them.
    pub open: Option<u32>,
    /// Connections that it has accepted.
    pub accepted: u64,
    /// How long no connection has been opened or closed.
    pub idle_seconds: Option<f64>,
    /// Where its memory is, while it is hibernated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<HibernatedMemory>,
}

/// The memory of a hibernated instance, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HibernatedMemory {
    /// Resident: most of it is of files, and shared.
    pub resident_bytes: u64,
    /// In swap.
    pub swapped_bytes: u64,
}

/// What an operator can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Start the function as if a client had come.
    Wake,
    /// Freeze the idle instances.
    Freeze,
    /// Stop the running instances.
    Stop,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Wake, Self::Freeze, Self::Stop];

    /// Its name in the API and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wake => "wake",
            Self::Freeze => "freeze",
            Self::Stop => "stop",
        }
    }
}

/// A served function for tests: a cold one with one parked container, and what `with` changes.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

#[cfg(test)]
pub(crate) fn example(with: &serde_json::Value) -> Function {
    let mut function = serde_json::json!({
        "name": "orders", "listen": "0.0.0.0:8081", "id": null, "require_auth": "no", "runtime": "oci",
        "state": "cold", "prepared": 1, "max_instances": 2, "overload": "http-503",
    });
    let with = with.as_object().unwrap().clone();
    function.as_object_mut().unwrap().extend(with);
    serde_json::from_value(function).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_served_and_what_is_not_are_told_apart_by_their_state() {
        let served = example(&json!({}));
        assert!(matches!(&served, Function::Served(function) if function.state == FunctionSummary::Cold));
        let text = r#"{"name":"lost","reason":"port 80 is in use","state":"unavailable"}"#;
        let lost: Function = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&lost).unwrap(), text);
        let error = lost.into_served().unwrap_err().to_string();
        assert_eq!(error, "lost is configured and not served: port 80 is in use");
    }

    /// Clients of the API show it on a terminal.
    #[test]
    fn what_a_function_has_said_controls_no_terminal() {
        let shown = example(&json!({ "last_error": "exit code 3: \u{1b}[2Jdone\n" })).into_served().unwrap();
        assert_eq!(shown.last_error.as_deref(), Some("exit code 3: \\u{1b}[2Jdone\\n"));
    }

    /// Programs of others read it: a field that moves or gets another name is noticed here.
    #[test]
    fn the_json_of_a_function_stays_as_it_is() {
        let text = concat!(
            r#"{"name":"orders","listen":"0.0.0.0:8081","id":7,"require_auth":"wake","runtime":"oci","state":"ready","#,
            r#""prepared":1,"preparing":0,"instances":1,"running":[{"name":"orders-1","state":"ready","#,
            r#""reason":"initialised","since_seconds":2.5,"open":0,"accepted":9,"idle_seconds":1.5}],"queued":0,"#,
            r#""removing":0,"last_error":null,"failed_starts":0,"retry_in_seconds":null,"concurrency":null,"#,
            r#""min_ready":0,"max_instances":2,"overload":"http-503","freeze_after_seconds":60.0,"#,
            r#""stop_after_seconds":null}"#,
        );
        let function: Function = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&function).unwrap(), text);
    }
}
