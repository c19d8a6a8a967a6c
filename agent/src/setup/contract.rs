//! What the contract of a function adds to its containers.

use std::path::PathBuf;

use headstart_config::{Agent, Config, Contract, Function};

use crate::start::Init;

/// The init's file, beside the agent's program unless `[agent]` names one.
const INIT_FILE: &str = "headstart-init";

/// Digits of the fingerprint that tell one revision of a function from another.
const REVISION_DIGITS: usize = 8;

/// The init of the function's instances.
pub(super) fn init(config: &Config, function: &Function) -> Init {
    let contract = match function.contract {
        Contract::Headstart => Vec::new(),
        Contract::Port(port) => vec!["port".to_owned(), port.to_string()],
        Contract::ListenFds => vec!["listen-fds".to_owned()],
    };
    Init { file: init_file(&config.agent), contract }
}

/// Where the init is.
pub(crate) fn init_file(agent: &Agent) -> PathBuf {
    // A path that cannot be read leads nowhere, and the error names it.
    let beside = || std::env::current_exe().unwrap_or_default().with_file_name(INIT_FILE);
    agent.init.clone().unwrap_or_else(beside)
}

/// The variables of the container contract of Knative and Cloud Run, which servers of contract `port` look for, and a home
/// that the function can write to. What the configuration sets stays.
pub(super) fn variables(config: &Config, function: &Function) -> Vec<(String, String)> {
    let home = ("HOME", "/tmp".to_owned());
    let all = match function.contract {
        Contract::Headstart => Vec::new(),
        Contract::ListenFds => vec![home],
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
