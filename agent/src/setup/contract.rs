//! What the contract of a function adds to its containers.

use std::path::PathBuf;

use headstart_config::{Agent, Config, Contract, Function, Mount, NOBODY_ID, Problem};

use crate::start::{Adapter, INIT_HINT, Init, LAMBDA_HINT, StartError};

/// The init's file, beside the agent's program unless `[agent]` names one.
const INIT_FILE: &str = "headstart-init";

/// The file of the Runtime API of AWS Lambda, beside the init.
const LAMBDA_FILE: &str = "headstart-lambda";

/// Where an instance sees it.
const LAMBDA_PATH: &str = "/run/headstart/lambda";

/// Digits of the fingerprint that tell one revision of a function from another.
const REVISION_DIGITS: usize = 8;

/// The init of the function's instances.
pub(super) fn init(config: &Config, function: &Function) -> Init {
    let mut contract = match function.contract {
        Contract::Headstart | Contract::Lambda { .. } => Vec::new(),
        Contract::Port(port) => vec!["port".to_owned(), port.to_string()],
        Contract::ListenFds => vec!["listen-fds".to_owned()],
    };
    if let Some(signal) = function.stop_signal.filter(|_| !contract.is_empty()) {
        contract.extend(["stop", signal.as_str()].map(str::to_owned));
    }
    Init { file: init_file(&config.agent), contract }
}

/// What runs the function's command, if that is not the init and not the command itself.
pub(super) fn adapter(config: &Config, function: &Function) -> Option<Adapter> {
    let Contract::Lambda { timeout } = function.contract else { return None };
    let ms = [timeout, function.init_timeout].map(|time| time.as_millis().to_string());
    let words = [LAMBDA_PATH.to_owned()].into_iter().chain(ms).chain(["--".to_owned()]);
    Some(Adapter { file: lambda_file(&config.agent), words: words.collect() })
}

/// How an instance sees it.
pub(super) fn adapter_mount(adapter: &Adapter) -> Mount {
    Mount { source: adapter.file.clone(), target: LAMBDA_PATH.into(), read_only: true }
}

/// What the contracts of these functions need and is not there: one problem for each file.
pub(crate) fn problems(config: &Config) -> Vec<Problem> {
    let lack = |file: PathBuf, hint: &'static str, needs: fn(Contract) -> bool| {
        let function = config.functions.iter().find(|function| needs(function.contract))?;
        let missing = StartError::RuntimeMissing { path: file.clone(), hint };
        (!file.is_file()).then(|| function.origin.problem("contract", missing.to_string()))
    };
    let agent = &config.agent;
    let init = lack(init_file(agent), INIT_HINT, |contract| !contract.speaks());
    let lambda =
        lack(lambda_file(agent), LAMBDA_HINT, |contract| matches!(contract, Contract::Lambda { .. }));
    init.into_iter().chain(lambda).collect()
}

/// Where the init is.
pub(crate) fn init_file(agent: &Agent) -> PathBuf {
    // A path that cannot be read leads nowhere, and the error names it.
    let beside = || std::env::current_exe().unwrap_or_default().with_file_name(INIT_FILE);
    agent.init.clone().unwrap_or_else(beside)
}

/// Where the Runtime API of AWS Lambda is.
pub(crate) fn lambda_file(agent: &Agent) -> PathBuf {
    init_file(agent).with_file_name(LAMBDA_FILE)
}

/// The variables of the container contract of Knative and Cloud Run, which servers of contract `port` look for, and a home
/// that the function can write to: a user of its own is in no `/etc/passwd`. What the configuration sets stays.
pub(super) fn variables(config: &Config, function: &Function) -> Vec<(String, String)> {
    let home = ("HOME", "/tmp".to_owned());
    let all = match function.contract {
        Contract::Headstart if function.user == NOBODY_ID => Vec::new(),
        Contract::Headstart | Contract::ListenFds => vec![home],
        Contract::Lambda { .. } => lambda(function).into_iter().chain([home]).collect(),
        Contract::Port(port) => {
            let revision: String = config.fingerprint(function).chars().take(REVISION_DIGITS).collect();
            let name = &function.name;
            vec![
                home,
                ("PORT", port.to_string()),
                ("K_SERVICE", name.clone()),
                ("K_CONFIGURATION", name.clone()),
                ("K_REVISION", format!("{name}-{revision}")),
            ]
        }
    };
    let set = |key: &str| function.env.iter().any(|(own, _)| own == key);
    all.into_iter().filter(|(key, _)| !set(key)).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The variables that clients of Lambda's Runtime API read, but its address.
fn lambda(function: &Function) -> Vec<(&'static str, String)> {
    let name = &function.name;
    let mut variables = vec![
        ("AWS_LAMBDA_FUNCTION_NAME", name.clone()),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", (function.memory_bytes >> 20).to_string()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
        ("AWS_LAMBDA_LOG_STREAM_NAME", name.clone()),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".to_owned()),
    ];
    variables.extend(function.handler.clone().map(|handler| ("_HANDLER", handler)));
    // Clients that know it ask for so many events at a time.
    let several = function.concurrency.filter(|most| *most > 1);
    variables.extend(several.map(|most| ("AWS_LAMBDA_MAX_CONCURRENCY", most.to_string())));
    variables
}
