//! Arguments that several commands have.

use std::path::PathBuf;
use std::process::ExitCode;

use headstart_config::Config;

use crate::api::Client;

/// Which agent a command asks.
#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    /// The `admin` address of the agent, or the path of `admin.sock` in its `state_dir`.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    admin: String,
}

impl AgentArgs {
    pub(crate) fn client(&self) -> Client {
        Client::new(self.admin.clone())
    }
}

/// Which function of which agent.
#[derive(Debug, clap::Args)]
pub(crate) struct FunctionArgs {
    /// The function.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// A configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

impl ConfigArgs {
    /// Reads it.
    ///
    /// # Errors
    /// The exit code, when there are problems: they are printed.
    pub(crate) fn load(&self) -> Result<Config, ExitCode> {
        load(&self.config)
    }
}

/// As [`ConfigArgs::load`].
pub(crate) fn load(file: &std::path::Path) -> Result<Config, ExitCode> {
    Config::load(file).map_err(|errors| {
        eprintln!("{errors}");
        ExitCode::from(2)
    })
}
